"""Conformal sets and intervals hold the truth as often as they promise: by patient, for each class, on many seeds."""

from pathlib import Path

import numpy as np
import pytest

from cache.errors import StoreError
from pipeline.views.predictions import _in_words
from stages.heads import EnsembleHeads, TaskSpec
from stages.heads.decisions.answers import Decisions
from stages.heads.decisions.conformal import FILE, Conformal, patient_quantile
from stages.heads.decisions.held_out import HeldOut
from stages.heads.decisions.settings import ConformalSection
from tests.stages.heads_study import TASKS, study

SEX = TaskSpec("sex", "binary", ("male", "female"))
FINDINGS = TaskSpec("findings", "multilabel", ("often", "rare"))
REPORT = TaskSpec("report", "multiclass", ("a", "b", "c"))
AGE = TaskSpec("age", "regression", unit="years")
GENERATED = (SEX, FINDINGS, REPORT, AGE)
N_SEEDS = 20


def generated(rng: np.random.Generator, n_patients: int) -> tuple[dict, dict, np.ndarray]:
    """Labels and answers of a model that is wrong in its own way: patients of one to six alike records."""
    patient = np.repeat(np.arange(n_patients), rng.integers(1, 7, n_patients))
    of_patient = rng.normal(size=(n_patients, 6))[patient] * 0.9
    noise = of_patient + 0.5 * rng.normal(size=(len(patient), 6))
    sex = (rng.random(n_patients) < 0.3)[patient].astype(float)
    findings = (rng.random((n_patients, 2)) < [0.4, 0.1])[patient].astype(float)
    report = rng.choice(3, n_patients, p=[0.6, 0.3, 0.1])[patient]
    age = rng.uniform(20, 90, n_patients)[patient]
    logits = np.eye(3)[report] * 2 + noise[:, 3:]
    truth = {"sex": sex, "findings": findings, "report": report, "age": age}
    answers = {
        "sex": 1 / (1 + np.exp(-3 * (sex - 0.5) - 2 * noise[:, 0])),
        "findings": 1 / (1 + np.exp(-3 * (findings - 0.7) - noise[:, 1:3])),
        "report": np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True),
        "age": 0.7 * age + 15 + np.abs(noise[:, 5]) * 8,
    }
    return truth, answers, patient


def by_patient(covered: np.ndarray, patient: np.ndarray) -> np.ndarray:
    """Each patient's share of covered records."""
    return np.bincount(patient, covered) / np.maximum(np.bincount(patient), 1)


def coverages(seed: int, promise: ConformalSection) -> dict[str, tuple[float, float, int, int]]:
    """Coverage over patients, its variance over a patient, and the numbers of patients that chose and that test."""
    rng = np.random.default_rng(seed)
    truth, answers, patient = generated(rng, 200)
    held = HeldOut(truth, [answers], np.ones((1, len(patient)), bool), patient)
    conformal = Conformal.choose(held, GENERATED, promise)
    truth, answers, patient = generated(rng, 300)
    sets = {name: conformal.sets(name, answers[name]) for name in ("sex", "report", "findings")}
    ends = conformal.interval("age", answers["age"])
    inside = (truth["age"] >= ends[:, 0]) & (truth["age"] <= ends[:, 1])
    rows = np.arange(len(patient))
    covered = {
        "age": inside,
        "sex": sets["sex"][rows, truth["sex"].astype(int)],
        "report": sets["report"][rows, truth["report"]],
        "often": sets["findings"][rows, 0, truth["findings"][:, 0].astype(int)],
    }
    found = {}
    for name, value in covered.items():
        shares = by_patient(value.astype(float), patient)
        found[name] = (shares.mean(), shares.var(), 200, 300)
    for k, label in enumerate(SEX.classes):
        members = truth["sex"] == k
        shares = by_patient(covered["sex"][members].astype(float), np.unique(patient[members], return_inverse=True)[1])
        found[label] = (shares.mean(), shares.var(), int(200 * (0.7, 0.3)[k]), len(shares))
    return found


@pytest.mark.parametrize("promise", [ConformalSection(), ConformalSection(coverage=0.8, by_class=False)], ids=str)
def test_coverage_is_as_promised_within_its_binomial_error_on_twenty_seeds(promise):
    runs = [coverages(seed, promise) for seed in range(N_SEEDS)]
    names = ("age", "sex", "report", "often", *(SEX.classes if promise.by_class else ()))
    for name in names:
        values = np.array([run[name] for run in runs])
        variance = promise.coverage * (1 - promise.coverage)  # of a patient with one record: the most there can be
        errors = np.sqrt(variance * (1 / values[:, 2] + 1 / values[:, 3]))
        away = np.abs(values[:, 0] - promise.coverage) / errors
        assert away.max() < 3.5, f"{name}: a seed is {away.max():.1f} binomial errors away"
        mean_error = np.sqrt((errors**2).mean() / N_SEEDS)
        assert abs(values[:, 0].mean() - promise.coverage) < 3 * mean_error + 1 / 60, name
        assert values[:, 0].mean() > promise.coverage - 3 * mean_error, name


def test_records_that_are_counted_one_by_one_would_miss_the_promise():
    """A patient with many easy ECGs must not speak for those with one hard one."""
    rng = np.random.default_rng(0)
    patient = np.concatenate([np.repeat(np.arange(50), 40), np.arange(50, 100)])
    scores = np.where(patient < 50, 0.1, 0.9) + 0.01 * rng.random(len(patient))
    assert np.quantile(scores, 0.9) < 0.2
    assert patient_quantile(scores, patient, 0.9) > 0.9


def test_the_quantile_is_the_conformal_one_where_each_patient_has_one_record():
    rng = np.random.default_rng(1)
    for n in (9, 10, 57, 200):
        scores = rng.random(n)
        k = int(np.ceil(0.9 * (n + 1)))
        assert patient_quantile(scores, np.arange(n), 0.9) == np.sort(scores)[k - 1]
    assert patient_quantile(scores[:8], np.arange(8), 0.9) == np.inf
    again = np.repeat(np.arange(9), 5)
    assert patient_quantile(np.arange(9.0)[again], again, 0.9) == 8


def test_a_class_of_few_patients_has_the_limit_of_all():
    rng = np.random.default_rng(2)
    truth, answers, patient = generated(rng, 60)
    keep = (truth["report"] < 2) | (patient < np.flatnonzero(np.bincount(patient, truth["report"] == 2))[4])
    few = {"report": truth["report"][keep]}
    held = HeldOut(few, [{"report": answers["report"][keep]}], np.ones((1, keep.sum()), bool), patient[keep])
    found = Conformal.choose(held, (REPORT,), ConformalSection()).tasks["report"]
    assert found.patients[2] == len(np.unique(patient[keep]))
    assert found.patients[0] < found.patients[2]
    pooled = Conformal.choose(held, (REPORT,), ConformalSection(by_class=False)).tasks["report"]
    assert found.limits[2] == pooled.limits[0] == pooled.limits[2]


@pytest.fixture(scope="module")
def fit() -> tuple[EnsembleHeads, dict, dict]:
    features, targets = study(160)
    features = {"wide": features["wide"][:, :60]}
    rows = np.arange(160)
    splits = [(rows[80:], rows[40:80], rows[:40]), (rows[80:], rows[:40], rows[40:80])]
    heads = EnsembleHeads(lora=False, gate_epochs=0, inner_folds=3)
    heads.fit(features, targets, TASKS, splits=splits, groups=rows // 2)
    heads.decisions_ = Decisions.choose(heads.held_out_, heads.tasks_)
    return heads, features, targets


def test_limits_stay_with_the_fit_and_give_its_intervals(fit, tmp_path: Path):
    heads, features, _ = fit
    heads.save(tmp_path)
    loaded = EnsembleHeads.load(tmp_path)
    for name, task in heads.decisions_.conformal.tasks.items():
        again = loaded.decisions_.conformal.tasks[name]
        np.testing.assert_array_equal(again.limits, task.limits)
        np.testing.assert_array_equal(again.of_folds, task.of_folds)
        np.testing.assert_array_equal(again.patients, task.patients)
    assert set(loaded.decisions_.conformal.tasks) == {"rr", "sex", "report", "super"}
    for fold in (None, 1):
        value = loaded.predict_proba(features, fold=fold)["rr"]
        limits = heads.decisions_.conformal.tasks["rr"]
        expected = value[:, None] + (limits.limits if fold is None else limits.of_folds[fold])
        np.testing.assert_array_equal(loaded.predict_interval(features, fold=fold)["rr"], expected)
    (tmp_path / FILE).unlink()
    plain = EnsembleHeads.load(tmp_path)
    width = np.diff(plain.predict_interval(features)["rr"], axis=1)
    assert np.ptp(width) < 1e-6
    assert plain.decisions_.conformal.sets("sex", np.array([0.5])) is None
    (tmp_path / FILE).write_text("[]")
    with pytest.raises(StoreError, match=r"conformal.json: damaged"):
        EnsembleHeads.load(tmp_path)


def test_what_is_said_of_one_record_follows_from_thresholds_and_limits(fit):
    heads, features, _ = fit
    decisions, p = heads.decisions_, heads.predict_proba(features)
    for row in (0, 7, 11):
        said = decisions.of(TASKS[1], p["sex"][row])
        assert said["above"] == (p["sex"][row] >= said["threshold"])
        limits = decisions.conformal.tasks["sex"].limits
        held = [
            name
            for name, score, limit in zip(TASKS[1].classes, (p["sex"][row], 1 - p["sex"][row]), limits, strict=True)
            if score <= limit
        ]
        assert said["set"] == held
        assert said["uncertain"] == (len(held) != 1)
        several = decisions.of(TASKS[3], p["super"][row])
        assert several["above"] == {
            c: v >= several["thresholds"][c] for c, v in zip("xy", p["super"][row], strict=True)
        }
        assert several["uncertain"] == [c for c in "xy" if len(several["sets"][c]) != 1]
        value = decisions.of(TASKS[0], p["rr"][row])
        assert value["low"] < p["rr"][row] < value["high"]
        assert value["coverage"] == 0.9
        one_of = decisions.of(TASKS[2], p["report"][row])
        assert one_of["above"] == {
            c: v >= one_of["thresholds"][c] for c, v in zip("abc", p["report"][row], strict=True)
        }
    unclear = Decisions(conformal=decisions.conformal).of(TASKS[1], np.float64(np.nan))
    assert unclear["set"] == []


def test_the_terminal_says_on_which_side_of_the_threshold_and_how_sure():
    sure = {"kind": "binary", "positive": "female", "probability": 0.82, "threshold": 0.414, "above": True}
    sure |= {"set": ["female"], "uncertain": False, "coverage": 0.9}
    assert _in_words(sure) == "female: 0.82 (above 0.41)"
    both = sure | {"probability": 0.3, "above": False, "set": ["male", "female"], "uncertain": True}
    assert _in_words(both) == "female: 0.30 (below 0.41); uncertain: male or female at 90 %"
    assert _in_words(both | {"set": []}).endswith("uncertain: no class at 90 %")
    several = {"kind": "multilabel", "probabilities": {"MI": 0.7, "CD": 0.2}, "thresholds": {"MI": 0.5, "CD": None}}
    several |= {"above": {"MI": True, "CD": None}, "uncertain": ["CD"], "coverage": 0.9}
    assert _in_words(several) == "MI 0.70 (above 0.50), CD 0.20 uncertain"
    value = {"kind": "regression", "value": 61.0, "unit": "years", "low": 50.0, "high": 72.0, "coverage": 0.8}
    assert _in_words(value) == "61.0 years (80 %: 50.0 to 72.0)"
    before = {"kind": "binary", "positive": "1", "probability": 0.5}
    assert _in_words(before) == "1: 0.50"


@pytest.mark.slow
def test_whole_fits_cover_new_patients_as_promised_on_twenty_seeds():
    kept: dict[str, list[float]] = {"rr": [], "sex": [], "x": []}
    for seed in range(N_SEEDS):
        features, targets = study(900, seed)
        features = {"narrow": features["layered"]["embedding"]}
        rows = np.arange(900)
        heads = EnsembleHeads(lora=False, gate_epochs=0, inner_folds=5, seed=seed)
        heads.fit(features, targets, TASKS, splits=[(rows[:250], rows[250:400], rows[400:])], groups=rows)
        conformal = Decisions.choose(heads.held_out_, heads.tasks_).conformal
        p, test = heads.predict_proba(features), rows[400:]
        ends = conformal.interval("rr", p["rr"], 0)[test]
        kept["rr"].append(((targets["rr"][test] >= ends[:, 0]) & (targets["rr"][test] <= ends[:, 1])).mean())
        kept["sex"].append(conformal.sets("sex", p["sex"], 0)[test, targets["sex"][test].astype(int)].mean())
        several = conformal.sets("super", p["super"], 0)
        kept["x"].append(several[test, 0, targets["super"][test, 0].astype(int)].mean())
    error = np.sqrt(0.09 * (1 / 500 + 1 / 400))
    for name, found in kept.items():
        assert np.abs(np.array(found) - 0.9).max() < 3.5 * error, (name, found)
        assert abs(np.mean(found) - 0.9) < 3 * error / np.sqrt(N_SEEDS) + 0.01, (name, np.mean(found))
