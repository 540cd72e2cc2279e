"""Disturbed records: each disturbance does what it says, and the figures are those of the written answers."""

import contextlib
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.metrics import roc_auc_score

from cache.signals import LEADS
from stages.report import ReportPaths, ReportSettings, run
from stages.robustness.disturbances import (
    LEAD_SETS,
    LEVELS,
    Disturbance,
    DisturbedEcg,
    all_disturbances,
    disturbed,
)
from stages.robustness.settings import KINDS, RobustnessSection

SEED = (0, 1, 2)


@pytest.fixture(scope="module")
def ecg() -> DisturbedEcg:
    """Twelve leads that obey Einthoven and Goldberger."""
    time = np.arange(5000) / 500
    waves = np.stack([np.sin(2 * np.pi * 1.2 * time + k) ** 21 * (1 + 0.3 * k) for k in range(8)])
    one, two = waves[:2]
    limbs = [one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2]
    return DisturbedEcg(np.stack([*limbs, *waves[2:]]).astype(np.float32), 500.0)


def done(ecg: DisturbedEcg, kind: str, level: float | str, **options) -> DisturbedEcg:
    return disturbed(ecg, Disturbance(kind, level), SEED, **{"derive_leads": False, **options})


@pytest.mark.parametrize("kind", ["noise", "wander", "mains"])
def test_noise_has_the_stated_ratio_and_keeps_the_limb_equations(ecg, kind):
    for level in LEVELS[kind]:
        found = done(ecg, kind, level)
        added = found.signals_mv.astype(float) - ecg.signals_mv
        centred = ecg.signals_mv - np.median(ecg.signals_mv, axis=1, keepdims=True)
        assert 10 * np.log10((centred**2).mean() / (added**2).mean()) == pytest.approx(level, abs=0.1)
        one, two, three, avr, avl, avf = found.signals_mv[:6].astype(float)
        assert np.abs(two - one - three).max() < 0.003  # whole microvolts
        assert np.abs(avr + avl + avf).max() < 0.003
    power = np.abs(np.fft.rfft(added, axis=1)) ** 2
    hz = np.fft.rfftfreq(5000, 1 / 500)
    share = {
        "noise": power[:, hz > 1].sum() / power.sum() > 0.95,
        "wander": power[:, hz < 1].sum() / power.sum() > 0.95,
        "mains": power[:, np.abs(hz - 50) < 1].sum() / power.sum() > 0.9,
    }
    assert share[kind]


def test_the_same_noise_is_scaled_and_the_seed_decides(ecg):
    loud, quiet = (done(ecg, "noise", level).signals_mv - ecg.signals_mv for level in (0.0, 12.0))
    assert np.corrcoef(loud.ravel(), quiet.ravel())[0, 1] > 0.99
    np.testing.assert_array_equal(done(ecg, "noise", 6.0).signals_mv, done(ecg, "noise", 6.0).signals_mv)
    other = disturbed(ecg, Disturbance("noise", 6.0), (0, 1, 3), derive_leads=False)
    assert not np.array_equal(other.signals_mv, done(ecg, "noise", 6.0).signals_mv)


def test_missing_leads_stay_missing_under_noise(ecg):
    holed = ecg.signals_mv.copy()
    holed[7], holed[2, 100:200] = np.nan, np.nan
    for kind in ("noise", "wander", "mains", "rate", "exchange"):
        found = done(DisturbedEcg(holed, 500.0), kind, LEVELS[kind][0])
        assert np.isnan(found.signals_mv[7]).all(), kind


def test_lost_leads_are_gone_or_computed(ecg):
    for level, kept in LEAD_SETS.items():
        found = done(ecg, "leads", level)
        assert [lead for lead, row in zip(LEADS, found.signals_mv, strict=True) if np.isfinite(row).all()] == list(kept)
    assert [int(level) for level in LEAD_SETS] == [len(kept) for kept in LEAD_SETS.values()]
    eight = done(ecg, "leads", 8.0, derive_leads=True)
    np.testing.assert_allclose(eight.signals_mv, ecg.signals_mv, atol=0.0025)
    without = done(ecg, "lead", "V3")
    assert np.isnan(without.signals_mv[LEADS.index("V3")]).all()
    assert np.isfinite(without.signals_mv).all(axis=1).sum() == 11


def test_short_records_and_other_rates_have_their_length(ecg):
    assert done(ecg, "seconds", 2.5).signals_mv.shape == (12, 1250)
    for rate_hz in LEVELS["rate"]:
        found = done(ecg, "rate", rate_hz)
        assert (found.rate_hz, found.signals_mv.shape[1]) == (rate_hz, 10 * rate_hz)
    same = done(ecg, "rate", 1000.0).signals_mv[:, ::2]
    assert np.corrcoef(same[1], ecg.signals_mv[1])[0, 1] > 0.999


def test_exchanged_electrodes_are_those_that_x(ecg):
    left = done(ecg, "exchange", "RA-LA").signals_mv
    np.testing.assert_allclose(left[0], -ecg.signals_mv[0], atol=0.002)
    np.testing.assert_allclose(left[1], ecg.signals_mv[2], atol=0.002)
    np.testing.assert_allclose(left[3], ecg.signals_mv[4], atol=0.002)
    np.testing.assert_array_equal(left[6:], done(ecg, "leads", 8.0).signals_mv[6:])
    legs = done(ecg, "exchange", "LA-LL").signals_mv
    np.testing.assert_allclose(legs[0], ecg.signals_mv[1], atol=0.002)
    np.testing.assert_allclose(legs[2], -ecg.signals_mv[2], atol=0.002)
    far = done(ecg, "exchange", "RA-LL").signals_mv
    np.testing.assert_allclose(far[1], -ecg.signals_mv[1], atol=0.002)
    for exchanged in (left, legs, far):
        again = exchanged[:6].astype(float)
        assert np.abs(again[1] - again[0] - again[2]).max() < 0.003


@pytest.fixture(scope="module")
def study(tmp_path_factory, make_cohort, tiny_ecgfm) -> Path:
    """A study whose expert is the tiny ECG-FM."""
    folder = tmp_path_factory.mktemp("disturbed")
    make_cohort(folder, 60)
    params = {
        "cohort": {"source": "wfdb", "path": "."},
        "experts": {"ecgfm": {"weights": str(tiny_ecgfm.weights), "config": tiny_ecgfm.config}},
        "machine": {"device": "cpu"},
        "fit_heads": {"folds": 3, "options": {"lora": False, "gate_epochs": 0}},
        "evaluate": {"bootstrap": 100},
        "robustness": {"all": {"records": 40, "kinds": ["noise", "leads", "seconds"]}},
        "report": {"cases": 0},
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    return folder


@pytest.fixture(scope="module")
def robust(study) -> Path:
    from pipeline import cli

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(study)
        for words in ("embed --expert ecgfm", "fit-heads", "evaluate", "evaluate --robustness", "report"):
            patch.setattr(sys, "argv", ["ensemble", *words.split()])
            with contextlib.suppress(SystemExit):
                cli.main()
    return study


def test_undisturbed_answers_are_those_of_the_evaluation(robust):
    answers = pd.read_parquet(robust / "robustness/all.parquet")
    assert answers["record_id"].nunique() == 40
    plain = answers[answers["kind"] == "undisturbed"]
    judged = pd.read_parquet(robust / "predictions.parquet").astype({"record_id": str, "task": str, "method": str})
    both = plain.merge(judged[judged["split"] == "test"], on=["record_id", "task", "method"], suffixes=("", "_judged"))
    assert len(both) == len(plain)
    np.testing.assert_allclose(both["y_pred"], both["y_pred_judged"], atol=1e-4, rtol=1e-3)
    np.testing.assert_array_equal(both["fold"], both["fold_judged"])


def test_figures_are_those_of_the_written_answers(robust):
    answers = pd.read_parquet(robust / "robustness/all.parquet")
    found = json.loads((robust / "robustness/all.json").read_text())
    assert set(found["tasks"]) == {"sex", "age"}
    for method in ("gate", "expert:ecgfm"):
        judged = found["tasks"]["sex"]["methods"][method]
        rows = answers[(answers["task"] == "sex") & (answers["method"] == method) & answers["y_true"].notna()]
        base = rows[rows["kind"] == "undisturbed"].set_index("record_id")
        assert judged["undisturbed"]["value"] == pytest.approx(roc_auc_score(base["y_true"], base["y_pred"]))
        assert len(judged["disturbed"]) == 4 + 4 + 2
        for each in judged["disturbed"]:
            part = rows[(rows["kind"] == each["kind"]) & (rows["level"] == each["level"])].set_index("record_id")
            known = part[part["y_pred"].notna() & base["y_pred"].notna()]
            assert each["records"] == len(known)
            assert each["without"] == len(base) - len(known)
            if not len(known):  # the expert refuses records without leads that it needs
                assert each["value"] is each["difference"]["value"] is None
                continue
            value = roc_auc_score(known["y_true"], known["y_pred"])
            assert each["value"] == pytest.approx(value), each
            same = base.loc[known.index]
            expected = value - roc_auc_score(same["y_true"], same["y_pred"])
            assert each["difference"]["value"] == pytest.approx(expected, abs=1e-9)
    age = found["tasks"]["age"]
    assert age["metric"] == "mae"


def test_the_report_shows_curves_of_this_evaluation_alone(robust):
    page = (robust / "report.html").read_text(encoding="utf-8")
    assert 'aria-label="noise of sex"' in page
    assert "8 leads" in page


def test_results_of_another_evaluation_are_left_out_and_named(robust, tmp_path):
    stale = tmp_path / "robustness/all.json"
    stale.parent.mkdir()
    text = (robust / "robustness/all.json").read_text()
    stale.write_text(text.replace('"predictions_sha256": "', '"predictions_sha256": "0'))
    inputs = (robust / name for name in ("records.parquet", "metrics.json", "predictions.parquet"))
    made = run(ReportSettings(cases=0), ReportPaths(*inputs, tmp_path / "report.html", robustness=stale.parent))
    page = made.report.read_text(encoding="utf-8")
    assert "robustness/all.json is of another evaluation and left out" in page
    assert 'aria-label="noise of sex"' not in page


def test_kinds_and_levels_have_stable_names():
    found = all_disturbances(KINDS)
    assert len({(one.kind, one.level) for one in found}) == len(found) == 4 + 4 + 3 + 12 + 4 + 2 + 3 + 3
    assert [one.words for one in found if one.kind == "exchange"] == [
        "RA-LA exchanged",
        "RA-LL exchanged",
        "LA-LL exchanged",
    ]
    assert [one.words for one in found if one.kind == "leads"] == ["8 leads", "6 leads", "2 leads", "1 lead"]
    assert RobustnessSection().kinds == KINDS
