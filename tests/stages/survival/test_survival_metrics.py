"""Metrics of times to event: equal to plain loops and to lifelines, with and without ties, and for reweightings."""

import json
import warnings

import numpy as np
import pytest

from cache.follow_up import follow_up, status_at, times_and_events
from cache.records import Target, open_records, write_records
from stages.scoring.blocks import PredictionBlock
from stages.scoring.metrics import METRICS_OF, make_scorer, score
from stages.scoring.predictions import open_predictions, writing_predictions
from stages.scoring.summary import summarise
from stages.scoring.survival.curves import horizon_calibration, risk_thirds
from tests.stages.survival import plain_metrics as plain
from tests.stages.survival.follow_up_study import make_study
from tests.stages.synthetic_predictions import write_study

HORIZONS = (30.0, 180.0, 365.0)
DEATH = Target("death", "survival", unit="days", horizons=HORIZONS)


def block_of(n: int = 90, seed: int = 0, *, tied: bool = True) -> PredictionBlock:
    """Predictions of which some are equal, and times of which many are (`tied`)."""
    study = make_study(n, seed, tied=tied)
    rng = np.random.default_rng(seed)
    eta = (study.log_hazard + rng.normal(size=n)).round(1)
    alive = np.exp(-np.outer(np.exp(eta), np.array(HORIZONS) / 350))
    names = np.array([f"r{i:03d}" for i in range(n)], object)
    patients = np.array([f"p{i:03d}" for i in rng.integers(0, n // 2, n)], object)
    predicted = np.column_stack([eta, alive]).astype(np.float32)
    return PredictionBlock.of(names, patients, np.full(n, "test", object), np.zeros(n, int), study.signed, predicted)


@pytest.mark.parametrize("tied", [False, True])
def test_metrics_are_those_of_plain_loops(tied):
    block = block_of(tied=tied)
    signed, eta, alive = block.y_true, block.y_pred[:, 0].astype(float), block.y_pred[:, 1:].astype(float)
    found = score(DEATH, block)
    assert tuple(found.values) == METRICS_OF["survival"]
    auc = [plain.auc_at(signed, alive[:, h], at) for h, at in enumerate(HORIZONS)]
    brier = [plain.brier_at(signed, alive[:, h], at) for h, at in enumerate(HORIZONS)]
    gap = [plain.calibration_error(signed, alive[:, h], at) for h, at in enumerate(HORIZONS)]
    expected = {
        "c_harrell": plain.c_index(signed, eta),
        "c_uno": plain.uno(signed, eta, HORIZONS[-1]),
        "auc_mean": np.mean(auc),
        "brier_integrated": plain.trapezoid(brier, list(HORIZONS)),
        "calibration_error": gap[-1],
    }
    for name, value in expected.items():
        assert found.values[name][0] == pytest.approx(value, abs=1e-6), name
    for name, values in {"auc": auc, "brier": brier, "calibration_error": gap}.items():
        np.testing.assert_allclose(found.per_class[name][:, 0], values, atol=1e-6)


@pytest.mark.parametrize("tied", [False, True])
def test_concordance_is_that_of_lifelines(tied):
    block = block_of(300, 1, tied=tied)
    times, events = times_and_events(block.y_true)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lifelines import KaplanMeierFitter
        from lifelines.utils import concordance_index

        expected = concordance_index(times, -block.y_pred[:, 0].astype(float), events)
        curves = [KaplanMeierFitter().fit(times[rows], events[rows]) for rows in _thirds(block)]
    assert score(DEATH, block).values["c_harrell"][0] == pytest.approx(expected, abs=1e-12)
    for group, theirs in zip(risk_thirds(DEATH, block), curves, strict=True):
        np.testing.assert_allclose(group.alive, theirs.predict(group.time), atol=1e-12)
        assert group.at_risk[0] == group.n == int(theirs.event_table["at_risk"].iloc[0])


def _thirds(block):
    return np.array_split(np.argsort(-block.y_pred[:, -1].astype(float), kind="stable"), 3)


def test_a_weight_counts_as_so_many_records():
    block = block_of(60)
    weights = np.random.default_rng(2).integers(0, 4, (60, 3)).astype(np.float32)
    many = make_scorer(DEATH, block)(weights)
    for r in range(3):
        alone = score(DEATH, block.take(np.repeat(np.arange(60), weights[:, r].astype(int))))
        for name in ("c_harrell", "c_uno", "auc_mean", "brier_integrated"):
            assert many.values[name][r] == pytest.approx(alone.values[name][0], abs=1e-9), name


def test_what_the_records_do_not_define_is_not_a_number():
    block = block_of(40)
    censored = PredictionBlock(**{**vars(block), "y_true": -np.abs(block.y_true)})
    found = score(DEATH, censored).values
    assert np.isnan(found["c_harrell"][0])
    assert np.isnan(found["auc_mean"][0])
    early = PredictionBlock(**{**vars(block), "y_true": block.y_true / 1e3})  # nobody is seen beyond a day
    assert np.isnan(score(DEATH, early).values["brier_integrated"][0])
    nobody = PredictionBlock(**{**vars(block), "y_true": np.full(40, np.nan)})
    assert np.isnan(score(DEATH, nobody).values["c_uno"][0])


def test_calibration_at_a_horizon_compares_with_kaplan_meier():
    block = block_of(400, 3, tied=False)
    found = horizon_calibration(DEATH, block, 1)
    assert found.n.tolist() == [80] * 5
    assert (np.diff(found.predicted) > 0).all()
    highest = np.argsort(-block.y_pred[:, 2].astype(float), kind="stable")[-80:]
    assert found.observed[-1] == pytest.approx(1 - plain.alive_at(block.y_true[highest], 180.0))


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """predictions.parquet of two methods, records with age and sex, metrics."""
    folder = tmp_path_factory.mktemp("judged")
    records = write_study(folder, n=120)
    blocks = {"gate": block_of(120, 5), "expert:a": block_of(120, 5), "trivial": block_of(120, 5)}
    blocks["expert:a"].y_pred[::3, 0] *= -1
    blocks["trivial"].y_pred[:] = [0, 0.9, 0.7, 0.5]
    blocks["gate"].y_true[:7] = np.nan
    for other in ("expert:a", "trivial"):
        blocks[other].y_true[:7] = np.nan
    ids, patients = records["record_id"].to_numpy(), records["patient_id"].to_numpy()
    records["death"] = blocks["gate"].y_true
    with writing_predictions(folder / "predictions.parquet", {"death": DEATH}) as table:
        for name, block in blocks.items():
            columns = {"record_ids": ids, "patient_ids": patients, "y_true": block.y_true, "y_pred": block.y_pred}
            table.add("death", name, "test", 0, **columns)
    predictions = open_predictions(folder / "predictions.parquet")
    return folder, records, predictions, summarise(predictions, records, n_resamples=120)


def test_predictions_come_back_as_they_were_written(judged):
    _, records, predictions, _ = judged
    assert predictions.tasks == {"death": DEATH}
    block = predictions.read("death", "gate", "test")
    order = np.argsort(block.record_ids.astype(str))
    np.testing.assert_array_equal(block.y_true[order], records["death"])
    assert block.y_pred.shape == (120, 4)
    rows = predictions.path.parent / "predictions.parquet"
    status = plain.pd.read_parquet(rows).query("method == 'gate' and `class` == 'survival_180'")["y_true"]
    np.testing.assert_array_equal(status, status_at(records["death"].to_numpy(), HORIZONS)[:, 1])


def test_figures_follow_from_predictions_alone(judged):
    folder, _, _, metrics = judged
    task = metrics["tasks"]["death"]
    assert task["headline"] == ["c_harrell"]
    assert task["best_single_expert"] == "expert:a"
    for method in ("gate", "expert:a", "trivial"):
        signed, answers, _ = plain.read_method(folder / "predictions.parquet", "death", method)
        found = task["methods"][method]
        alive = {at: answers[f"survival_{at:g}"].astype(float) for at in HORIZONS}
        eta = answers["log_hazard"].astype(float)
        assert found["c_harrell"]["value"] == pytest.approx(plain.c_index(signed, eta), abs=1e-6)
        assert found["c_uno"]["value"] == pytest.approx(plain.uno(signed, eta, 365.0), abs=1e-6)
        brier = [plain.brier_at(signed, alive[at], at) for at in HORIZONS]
        assert found["brier_integrated"]["value"] == pytest.approx(plain.trapezoid(brier, list(HORIZONS)), abs=1e-6)
        for h, at in enumerate(HORIZONS):
            values = task["horizons"][h]["methods"][method]
            assert values["brier"]["value"] == pytest.approx(brier[h], abs=1e-6)
            assert values["auc"]["value"] == pytest.approx(plain.auc_at(signed, alive[at], at), abs=1e-6)
    signed, answers, _ = plain.read_method(folder / "predictions.parquet", "death", "gate")
    assert task["n"]["events"] == int((signed > 0).sum())
    assert task["n"]["missing"] == 7
    parts = np.array_split(np.argsort(-answers["survival_365"], kind="stable"), 3)
    assert [third["n"] for third in task["thirds"]] == [len(rows) for rows in parts]
    for third, rows in zip(task["thirds"], parts, strict=True):
        assert third["at_risk"] == [int((np.abs(signed[rows]) >= at).sum()) for at in (0, *HORIZONS)]


def test_intervals_are_by_patient_and_groups_are_judged(judged):
    folder, _, _, metrics = judged
    task = metrics["tasks"]["death"]
    signed, answers, patients = plain.read_method(folder / "predictions.parquet", "death", "gate")
    rng, names, draws = np.random.default_rng(7), np.unique(patients), []
    for _ in range(60):
        rows = np.concatenate([np.flatnonzero(patients == name) for name in rng.choice(names, len(names))])
        draws.append(plain.c_index(signed[rows], answers["log_hazard"][rows]))
    low, high = np.quantile(draws, [0.025, 0.975])
    found = task["methods"]["gate"]["c_harrell"]
    assert found["low"] == pytest.approx(low, abs=0.03)
    assert found["high"] == pytest.approx(high, abs=0.03)
    assert task["differences"]["gate"]["c_harrell"]["verdict"] == "better"
    assert set(task["subgroups"]) == {"age_years", "sex"}
    assert sum(group["n"] for group in task["subgroups"]["sex"].values()) <= 113
    json.dumps(metrics["tasks"]["death"]["horizons"])


def test_records_keep_kind_and_horizons(judged, tmp_path):
    records = judged[1]
    targets = [Target("age", "regression", unit="years"), DEATH]
    write_records(tmp_path / "records.parquet", records, targets)
    again = open_records(tmp_path / "records.parquet")
    assert again.attrs["targets"] == {target.name: target for target in targets}
    np.testing.assert_array_equal(again["death"], records["death"])


def test_pairs_are_counted_fast_and_right_on_many_records():
    n = 3000
    rng = np.random.default_rng(0)
    signed = follow_up(rng.integers(1, 60, n), rng.random(n) < 0.3)
    block = block_of(n)
    block = PredictionBlock(**{**vars(block), "y_true": signed})
    from stages.heads.survival.concordance import harrells_c

    expected = harrells_c(signed, block.y_pred[:, 0])
    assert score(DEATH, block).values["c_harrell"][0] == pytest.approx(expected, abs=1e-12)
