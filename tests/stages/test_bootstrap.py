import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import stages.scoring.bootstrap as bootstrap_module
from cache.records import Target
from stages.scoring.blocks import PredictionBlock
from stages.scoring.bootstrap import bootstrap, estimate, paired_difference, patient_index, resamples
from stages.scoring.metrics import make_scorer

BINARY = Target("sex", "binary")
REGRESSION = Target("age", "regression")


def block(y, p):
    ids = np.arange(len(y)).astype(str)
    return PredictionBlock.of(ids, ids, ids, np.zeros(len(y), int), np.asarray(y, float), np.asarray(p))


def test_each_resample_draws_as_many_patients_and_does_not_depend_on_the_chunk():
    whole = np.concatenate(list(resamples(37, 50, seed=5, chunk=50)), axis=1)
    parts = np.concatenate(list(resamples(37, 50, seed=5, chunk=7)), axis=1)
    assert np.array_equal(whole, parts)
    assert (whole.sum(axis=0) == 37).all()
    assert not np.array_equal(whole, next(resamples(37, 50, seed=6, chunk=50)))


def test_replicates_are_metrics_of_the_drawn_patients_records():
    rng = np.random.default_rng(0)
    patients, n_patients = patient_index(rng.integers(0, 40, 120).astype(str))
    y, p = (rng.random(120) < 0.4).astype(float), rng.random(120).round(2)
    found = bootstrap(make_scorer(BINARY, block(y, p)), patients, n_patients, n_resamples=5, seed=1)
    counts = next(resamples(n_patients, 5, seed=1))
    for b in range(5):
        rows = np.repeat(np.arange(120), counts[patients, b].astype(int))
        assert found.replicates["auroc"][b] == pytest.approx(roc_auc_score(y[rows], p[rows]), abs=1e-6)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(200):
        errors = rng.exponential(10, 150)
        found = bootstrap(make_scorer(REGRESSION, block(np.zeros(150), errors)), np.arange(150), 150, 300)
        interval = estimate(found.values["mae"], found.replicates["mae"])
        covered += interval.low <= 10 <= interval.high
    assert 0.88 <= covered / 200 <= 0.99


def test_several_records_of_a_patient_widen_the_interval():
    rng = np.random.default_rng(1)
    errors = np.repeat(rng.exponential(10, 60), 5)
    scorer = make_scorer(REGRESSION, block(np.zeros(300), errors))
    by_patient = bootstrap(scorer, np.repeat(np.arange(60), 5), 60, 400)
    by_record = bootstrap(scorer, np.arange(300), 300, 400)
    assert by_patient.replicates["mae"].std() > 1.8 * by_record.replicates["mae"].std()


def test_a_paired_difference_is_narrower_than_the_intervals_of_its_sides():
    rng = np.random.default_rng(2)
    hardness = rng.exponential(10, 200)
    first, second = (
        bootstrap(make_scorer(REGRESSION, block(np.zeros(200), hardness + shift)), np.arange(200), 200, 400)
        for shift in (0.0, 0.5)
    )
    difference = paired_difference(first, second, "mae")
    assert difference.value == pytest.approx(-0.5)
    assert difference.excludes_zero
    alone = estimate(first.values["mae"], first.replicates["mae"])
    assert difference.high - difference.low < 0.1 * (alone.high - alone.low)


def test_very_many_records_are_counted_in_double_precision(monkeypatch):
    seen = []

    def scorer(weights):
        seen.append(weights.dtype)
        return make_scorer(REGRESSION, block(np.zeros(30), np.arange(30.0)))(weights)

    bootstrap(scorer, np.arange(30), 30, 5)
    monkeypatch.setattr(bootstrap_module, "FLOAT32_RECORDS", 29)
    bootstrap(scorer, np.arange(30), 30, 5)
    assert [str(dtype) for dtype in seen] == ["float64", "float32", "float64", "float64"]


def test_the_same_seed_gives_the_same_replicates():
    scorer = make_scorer(REGRESSION, block(np.zeros(30), np.arange(30.0)))
    first, again, other = (bootstrap(scorer, np.arange(30), 30, 50, seed).replicates["mae"] for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_class_of_one_patient_gets_a_value_but_no_interval():
    y = np.zeros(50)
    y[0] = 1
    found = bootstrap(make_scorer(BINARY, block(y, np.linspace(1, 0, 50))), np.arange(50), 50, 500)
    interval = estimate(found.values["auroc"], found.replicates["auroc"])
    assert interval.value == 1
    assert 0.5 < np.isfinite(found.replicates["auroc"]).mean() < 0.75
    assert np.isnan([interval.low, interval.high]).all()
    mostly = estimate(1.0, np.where(np.arange(100) < 15, np.nan, 1.0))
    assert (mostly.low, mostly.high) == (1, 1)


@pytest.mark.parametrize(("n_patients", "n_resamples"), [(1, 3), (40, 25), (700, 7)])
def test_resamples_are_those_of_one_generator_however_they_are_kept_and_cut(n_patients, n_resamples, monkeypatch):
    rng = np.random.default_rng(5)
    plain = [np.bincount(rng.integers(n_patients, size=n_patients), minlength=n_patients) for _ in range(n_resamples)]
    for kept in (bootstrap_module.KEPT_CELLS, 0):
        monkeypatch.setattr(bootstrap_module, "KEPT_CELLS", kept)
        for chunk in (1, 4, 100):
            parts = list(bootstrap_module.resamples(n_patients, n_resamples, 5, chunk))
            assert {part.dtype for part in parts} == {np.dtype("float32")}
            assert all(part.flags.c_contiguous and part.shape[1] <= chunk for part in parts)
            np.testing.assert_array_equal(np.concatenate(parts, axis=1), np.stack(plain, axis=1))
