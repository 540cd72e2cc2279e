"""Thresholds are chosen by their rule, on records that no model learnt from, and stay with the fit."""

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.metrics import roc_auc_score, roc_curve

from cache.errors import StoreError, UsageError
from stages.heads import EnsembleHeads
from stages.heads.decisions.operating_points import FILE, OperatingPoints, check_rules
from stages.heads.decisions.rules import choose_threshold
from stages.heads.decisions.settings import OperatingPointsSection, OperatingRule
from tests.stages.heads_study import TASKS, study


def sample(seed: int = 0, n: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities with many ties, and labels that go with them."""
    rng = np.random.default_rng(seed)
    label = (rng.random(n) < 0.3).astype(float)
    p = np.clip(np.round(0.3 * label + rng.random(n) * 0.7, 2), 0, 1)
    return p.astype(np.float32), label


@pytest.mark.parametrize("seed", range(5))
def test_youden_is_the_highest_point_of_the_roc_curve_above_chance(seed):
    p, label = sample(seed)
    found = choose_threshold(p, label, OperatingRule())
    fpr, tpr, _ = roc_curve(label, p, drop_intermediate=False)
    assert found.sensitivity + found.specificity - 1 == pytest.approx((tpr - fpr).max(), abs=1e-12)
    above = p >= found.threshold
    assert found.sensitivity == pytest.approx(above[label == 1].mean())
    assert found.specificity == pytest.approx((~above)[label == 0].mean())
    assert found.alarm_rate == pytest.approx(above.mean())
    assert not np.isin(found.threshold, p), "a threshold on a probability would hang on its last bit"


@pytest.mark.parametrize("value", [0.5, 0.9, 0.99])
def test_a_given_rate_is_kept_and_the_other_is_as_good_as_can_be(value):
    p, label = sample(1)
    fpr, tpr, _ = roc_curve(label, p, drop_intermediate=False)
    by_sensitivity = choose_threshold(p, label, OperatingRule(rule="sensitivity", value=value))
    assert by_sensitivity.sensitivity >= value
    assert by_sensitivity.specificity == pytest.approx((1 - fpr)[tpr >= value].max())
    by_specificity = choose_threshold(p, label, OperatingRule(rule="specificity", value=value))
    assert by_specificity.specificity >= value
    assert by_specificity.sensitivity == pytest.approx(tpr[1 - fpr >= value].max())
    by_alarms = choose_threshold(p, label, OperatingRule(rule="alarm_rate", value=value))
    alarms = np.array([(p >= t).mean() for t in np.unique(p)])
    sensitivities = np.array([(p >= t)[label == 1].mean() for t in np.unique(p)])
    assert by_alarms.alarm_rate <= value
    assert by_alarms.sensitivity == pytest.approx(sensitivities[alarms <= value].max())


def test_missing_labels_choose_nothing_and_one_class_alone_has_no_threshold():
    p, label = sample()
    holed = np.where(np.arange(len(p)) % 3 == 0, np.nan, label)
    kept = ~np.isnan(holed)
    assert choose_threshold(p, holed, OperatingRule()) == choose_threshold(p[kept], label[kept], OperatingRule())
    alone = choose_threshold(p, np.zeros(len(p)), OperatingRule())
    assert np.isnan(alone.threshold)
    assert (alone.n, alone.positives) == (len(p), 0)


def test_a_rule_says_what_it_needs():
    with pytest.raises(ValidationError, match="rule 'sensitivity' needs a value"):
        OperatingRule(rule="sensitivity")
    with pytest.raises(ValidationError, match="takes no value"):
        OperatingRule(value=0.9)
    with pytest.raises(ValidationError, match="a share above 0 and below 1"):
        OperatingRule(rule="alarm_rate", value=1.5)
    with pytest.raises(UsageError, match=r"'rr' is no task with classes.*there are: sex, report, super"):
        check_rules(OperatingPointsSection(tasks={"rr": OperatingRule()}), TASKS)


@pytest.fixture(scope="module")
def small() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    features, targets = study(160)
    return {"wide": features["wide"][:, :60]}, targets


def without_patients(n: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    rows = np.arange(n)
    return [
        (rows[n // 2 :], rows[n // 4 : n // 2], rows[: n // 4]),
        (rows[n // 2 :], rows[: n // 4], rows[n // 4 : n // 2]),
    ]


def points_of(features: dict[str, np.ndarray], targets: dict[str, np.ndarray]) -> tuple[EnsembleHeads, OperatingPoints]:
    heads = EnsembleHeads(lora=False, gate_epochs=0, inner_folds=3)
    n = len(features["wide"])
    heads.fit(features, targets, TASKS, splits=without_patients(n), groups=np.arange(n) // 4)
    return heads, OperatingPoints.choose(heads.held_out_, heads.tasks_, OperatingPointsSection())


def test_test_records_choose_no_threshold_of_their_fit(small):
    features, targets = small
    heads, points = points_of(features, targets)
    n = len(features["wide"])
    flipped = {name: values.copy() for name, values in targets.items()}
    for name in ("sex", "super"):
        flipped[name][: n // 4] = 1 - flipped[name][: n // 4]
    flipped["report"][: n // 4] = np.roll(flipped["report"][: n // 4], 1)
    _, changed = points_of(features, flipped)
    for name in ("sex", "super", "report"):
        np.testing.assert_array_equal(points.tasks[name].of_folds[0], changed.tasks[name].of_folds[0])
        assert (points.tasks[name].of_folds[1] != changed.tasks[name].of_folds[1]).any(), "fit 1 validates on them"
    held = heads.held_out_
    assert held.judged.sum(axis=1).tolist() == [n - n // 4] * 2
    assert set(held.of_fold("sex", 0).groups).isdisjoint(np.arange(n // 4) // 4)


def test_held_out_answers_know_nothing_of_noise(small):
    rng = np.random.default_rng(3)
    targets = small[1]
    noise = {"wide": rng.normal(size=(160, 120)).astype(np.float32)}
    heads, _ = points_of(noise, targets)
    held = heads.held_out_.averaged("sex")
    learnt = heads.predict_proba(noise, fold=0)["sex"][80:]
    assert roc_auc_score(held.y_true, held.y_pred) < 0.65
    assert roc_auc_score(targets["sex"][80:], learnt) > 0.75, "the fit itself has learnt the noise by heart"


def test_averaged_answers_are_the_mean_of_the_fits_that_hold_a_record_out(small):
    heads, points = points_of(*small)
    held = heads.held_out_
    found, rows = held.averaged("super"), np.flatnonzero(held.judged.any(axis=0))
    for k in (0, 30, 100):
        folds = [f for f in range(2) if held.judged[f, rows[k]]]
        np.testing.assert_allclose(found.y_pred[k], np.mean([held.y_pred[f]["super"][rows[k]] for f in folds], axis=0))
    np.testing.assert_array_equal(found.y_true, small[1]["super"])
    np.testing.assert_allclose(held.averaged("rr").y_true, small[1]["rr"], rtol=1e-6)
    np.testing.assert_array_equal(held.averaged("report").y_true, small[1]["report"])
    expected = choose_threshold(found.y_pred[:, 1], found.y_true[:, 1], OperatingRule())
    assert points.tasks["super"].thresholds[1] == expected.threshold
    report = held.averaged("report")
    for k, threshold in enumerate(points.tasks["report"].thresholds):
        against_the_rest = np.where(report.y_true < 0, np.nan, report.y_true == k)
        expected = choose_threshold(report.y_pred[:, k], against_the_rest, OperatingRule())
        np.testing.assert_equal(threshold, expected.threshold)


def test_thresholds_stay_with_the_fit(small, tmp_path: Path):
    _, points = points_of(*small)
    points.save(tmp_path)
    loaded = OperatingPoints.load(tmp_path)
    for name, task in points.tasks.items():
        np.testing.assert_array_equal(loaded.tasks[name].thresholds, task.thresholds)
        np.testing.assert_array_equal(loaded.tasks[name].of_folds, task.of_folds)
        assert loaded.tasks[name].facts == task.facts
        assert loaded.tasks[name].rule == task.rule
    assert set(loaded.tasks) == {"sex", "super", "report"}
    assert loaded.tasks["sex"].classes == ("female",)
    limit = loaded.thresholds("sex")[0]
    said = loaded.above("sex", np.array([limit, limit - 1e-6, np.nan]))
    np.testing.assert_array_equal(said, [1, 0, np.nan])
    assert loaded.above("super", np.full((3, 2), 0.99)).shape == (3, 2)
    assert loaded.above("rr", np.zeros(3)) is None


def test_a_fit_of_before_has_no_thresholds_and_a_damaged_file_is_named(tmp_path: Path):
    assert OperatingPoints.load(tmp_path).tasks == {}
    (tmp_path / FILE).write_text("{")
    with pytest.raises(StoreError, match=r"operating_points.json: damaged"):
        OperatingPoints.load(tmp_path)
    (tmp_path / FILE).write_text(json.dumps({"schema_version": 2, "tasks": {}}))
    with pytest.raises(StoreError, match="schema 2, expected 1"):
        OperatingPoints.load(tmp_path)
