"""A study with a time to event from stores to predictions, metrics and report, whatever the folds."""

from pathlib import Path

import numpy as np
import pytest

from cache.embeddings import Identity, Layout, Shard
from cache.errors import InputError
from cache.follow_up import follow_up
from cache.records import Target, open_records, records_digest, write_records
from cache.upkeep.resume import create_embeddings
from stages.evaluate import EvaluatePaths, EvaluateSettings
from stages.evaluate import run as run_evaluate
from stages.fit_heads import FitHeadsPaths, FitHeadsSettings
from stages.fit_heads import run as run_fit
from stages.scoring.predictions import open_predictions
from tests.stages.survival import plain_metrics as plain

N = 160
DEATH = Target("death", "survival", unit="days", horizons=(90.0, 365.0))
OPTIONS = {"lora_epochs": 2, "gate_epochs": 2}
NAMES = ("predictions.parquet", "gate_weights.parquet", "metrics.json", "headline.json", "evaluation.json")


def write_store(path: Path, records: list[str], vectors: np.ndarray) -> None:
    layout = Layout(len(records), ("block_1",), (8,), 8, 0, "float32", 64)
    store = create_embeddings(
        path, layout, Identity({"expert": path.stem, "version": "1"}, "s", records_digest(records))
    )
    for shard in range(store.n_shards):
        part = vectors[store.rows_of(shard)].astype(np.float32)
        store.write(shard, Shard(part[:, None], part, None))


@pytest.fixture
def study(tmp_path: Path, make_cohort) -> Path:
    """Two experts that see the age, of which the hazard depends, and the sex; a tenth of the times are missing."""
    make_cohort(tmp_path, N)
    records = open_records(tmp_path / "records.parquet")
    targets = records.attrs["targets"]
    rng = np.random.default_rng(0)
    known = np.stack([np.nan_to_num(records["age"].to_numpy(float), nan=60.0) / 20, rng.normal(size=N)], 1)
    died = rng.exponential(600 * np.exp(-1.2 * (known[:, 0] - known[:, 0].mean()) - 0.5 * known[:, 1]))
    left = rng.uniform(200, 500, N)
    death = follow_up(np.minimum(died, left), died <= left)
    death[::10] = np.nan
    write_records(tmp_path / "records.parquet", records.assign(death=death), [*targets.values(), DEATH])
    for name in ("a", "b"):
        vectors = known @ rng.normal(size=(2, 8)) + 0.5 * rng.normal(size=(N, 8))
        write_store(tmp_path / f"embeddings/{name}.zarr", records["record_id"].tolist(), vectors)
    return tmp_path


def stores(folder: Path) -> dict[str, Path]:
    return {name: folder / f"embeddings/{name}.zarr" for name in ("a", "b")}


def fit(folder: Path, **settings):
    paths = FitHeadsPaths(folder / "records.parquet", folder / "signals.zarr", stores(folder), folder / "heads")
    return run_fit(FitHeadsSettings(options=OPTIONS, **settings), paths)


def evaluate(folder: Path, **settings):
    places = [folder / name for name in ("heads", *NAMES, "remembered")]
    paths = EvaluatePaths(folder / "records.parquet", folder / "signals.zarr", stores(folder), *places)
    return run_evaluate(EvaluateSettings(bootstrap=100, **settings), paths)


@pytest.mark.parametrize(
    "folds", [3, pytest.param("split", marks=pytest.mark.slow), pytest.param("all", marks=pytest.mark.slow)]
)
def test_any_folds_will_do(study, folds):
    summary = fit(study, folds=folds)
    assert "death" in summary.tasks
    metrics = evaluate(study).metrics["tasks"]["death"]
    assert {"gate", "expert:a", "expert:b", "mean", "concat", "stacking", "trivial"} == set(metrics["methods"])
    table = open_predictions(study / "predictions.parquet")
    assert table.tasks["death"] == DEATH
    signed, answers, _ = plain.read_method(study / "predictions.parquet", "death", "gate")
    found = metrics["methods"]["gate"]
    assert found["c_harrell"]["value"] == pytest.approx(plain.c_index(signed, answers["log_hazard"]), abs=1e-6)
    brier = [plain.brier_at(signed, answers[f"survival_{h:g}"].astype(float), h) for h in DEATH.horizons]
    assert found["brier_integrated"]["value"] == pytest.approx(plain.trapezoid(brier, list(DEATH.horizons)), abs=1e-6)
    if folds != "split":
        assert found["c_harrell"]["value"] > 0.6
        assert metrics["n"]["test"] == len(signed) > 130
    trivial = metrics["methods"]["trivial"]
    assert trivial["c_harrell"]["value"] == 0.5


def test_a_share_with_few_events_has_no_point_and_a_named_task_is_refused(study):
    fit(study, folds=3, tasks=("death", "age"))
    found = evaluate(study, fractions=(0.15, 1.0))
    reason = found.missing_points["death"]["0.15"]
    assert "events in training; 10 are needed" in reason
    assert {point["metric"] for point in found.learning_curve["death"]} == {"c_harrell"}
    records = open_records(study / "records.parquet")
    targets = list(records.attrs["targets"].values())
    few = np.where(np.arange(N) < 5, 1.0, -1.0) * np.abs(records["death"].to_numpy())
    write_records(study / "records.parquet", records.assign(death=few), targets)
    with pytest.raises(InputError, match=r"task 'death' cannot be learnt, fold 0: \d events in training; 10"):
        fit(study, folds=3, tasks=("death", "age"))
    assert "events in training" in fit(study, folds=3).skipped["death"]
