"""Few records, wide features, many columns: fit heads, gate and standard methods against scikit-learn, in one run.

    OMP_NUM_THREADS=1 python -P benchmarks/wide_heads.py
    OMP_NUM_THREADS=1 python -P benchmarks/wide_heads.py --records 1000 --folds 2 --loop-columns 2
    OMP_NUM_THREADS=1 python -P benchmarks/wide_heads.py --stages FOLDER

Features look like rocket's, morphology's and seed's (9,996, 202 and 2,304 wide, variances of the axes falling as their
number to the power -1.2); seven tasks look like PTB-XL's (132 columns, classes from 40 % to 0.3 % of the records),
whose signal lies in the leading axes. Three fifths of the records train, a fifth validates, a fifth tests, rotated.

The loop is what one would write with scikit-learn: per fold, expert and column StandardScaler and PCA, then
LogisticRegression or Ridge for every penalty and inner fold, and once more for the best penalty. Scaling and PCA are
measured on one fold, `--loop-columns` columns of each expert are fitted, and their seconds are scaled to all.

With `--stages` the stages `fit-heads` and `evaluate` run on such records in a study on disk: standard methods,
thresholds and 1,000 resamples of patients behind every interval, as in `dvc repro`.
"""

from __future__ import annotations

import argparse
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from cache import records_digest
from cache.records import BASE_COLUMNS, Target, write_records
from cache.storage.locations import Location, location_of
from stages.evaluate import EvaluatePaths, EvaluateSettings
from stages.evaluate import run as evaluate
from stages.fit_heads import FitHeadsPaths, FitHeadsSettings
from stages.fit_heads import run as fit_heads
from stages.heads import EnsembleHeads, TaskSpec
from stages.heads.baselines.methods import METHODS
from stages.heads.crossfit import inner_folds
from stages.heads.in_memory.probe import STRENGTHS
from stages.learning.peak_memory import PeakMemory

WIDTHS = {"rocket": 9996, "morphology": 202, "seed": 2304}
CLASSES = {"superclass": 5, "subclass": 23, "form": 19, "rhythm": 12, "all71": 71}
STANDARD = ("trivial", "mean", "stacking", "concat")
AXES, SIGNAL_AXES, INNER = 1500, 48, 5
LOOP_AXES = 512
Folds = list[tuple[np.ndarray, np.ndarray, np.ndarray]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=3000)
    parser.add_argument("--folds", type=int, default=5, help="of the five, so many are fitted")
    parser.add_argument("--loop-columns", type=int, default=4, help="columns per expert that the loop fits; 0: no loop")
    parser.add_argument("--stages", type=Path, help="a folder: run the stages fit-heads and evaluate there, alone")
    options = parser.parse_args()
    if options.stages is not None:
        time_stages(options.stages, options.records)
        return
    features, targets, tasks = make_data(options.records)
    folds = make_folds(options.records)[: options.folds]
    columns = sum(max(1, len(t.classes)) for t in tasks)
    size = f"{options.records} records x {tuple(WIDTHS.values())} x {len(tasks)} tasks ({columns} columns)"
    print(f"{size}, {len(folds)} folds")
    with PeakMemory() as memory:
        started = time.process_time()
        heads = EnsembleHeads(device="cpu").fit(features, targets, tasks, splits=folds)
        fit_s = time.process_time() - started
    print(f"heads and gate    {fit_s:8.1f} s of processor time, peak {memory.mb or 0:.0f} MB")
    with PeakMemory() as memory:
        started = time.process_time()
        fit_standard(heads, features, targets, folds)
        standard_s = time.process_time() - started
    print(f"standard methods  {standard_s:8.1f} s, {standard_s / fit_s:.2f} of that, peak {memory.mb or 0:.0f} MB")
    if options.loop_columns:
        loop_s = time_loop(features, targets, folds, columns, options.loop_columns)
        print(f"scikit-learn loop {loop_s:8.1f} s (scaled); ours takes {fit_s / loop_s:.4f} of it")


def make_data(n: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], list[TaskSpec]]:
    """Experts' features, targets and tasks of one hidden state per record."""
    rng = np.random.default_rng(0)
    causes = rng.standard_normal((n, SIGNAL_AXES), np.float32)
    features = {name: make_expert(causes, width, rng) for name, width in WIDTHS.items()}
    targets: dict[str, np.ndarray] = {}
    tasks = []
    for name, n_classes in CLASSES.items():
        scores = causes @ rng.normal(size=(SIGNAL_AXES, n_classes)) / SIGNAL_AXES**0.5 * 2 + rng.logistic(
            size=(n, n_classes)
        )
        rates = np.geomspace(0.4, 0.003, n_classes)
        targets[name] = (scores > [np.quantile(s, 1 - r) for s, r in zip(scores.T, rates, strict=True)]).astype(float)
        tasks.append(TaskSpec(name, "multilabel", tuple(f"{name}{k}" for k in range(n_classes))))
    targets["age"] = 60 + 17 * (causes[:, 0] + rng.standard_normal(n)) / 2**0.5
    targets["sex"] = (causes[:, 1] + causes[:, 2] + rng.standard_normal(n) > 0).astype(float)
    return features, targets, [*tasks, TaskSpec("age", "regression"), TaskSpec("sex", "binary")]


def make_expert(causes: np.ndarray, width: int, rng: np.random.Generator) -> np.ndarray:
    """Features of correlated axes, of which the leading ones see the causes, float32 [n, width]."""
    axes = min(width, AXES)
    inner = rng.standard_normal((len(causes), axes), np.float32)
    inner[:, :SIGNAL_AXES] = 0.7 * causes + 0.7 * inner[:, :SIGNAL_AXES]
    inner *= (np.arange(1, axes + 1) ** -0.6).astype(np.float32)
    return (inner @ rng.standard_normal((axes, width), np.float32)) * rng.lognormal(size=width).astype(np.float32)


def make_folds(n: int) -> Folds:
    """Each fifth tests once, and the next one validates."""
    fold, rows = np.random.default_rng(1).permutation(n) % 5, np.arange(n)
    return [(rows[(fold != f) & (fold != (f + 1) % 5)], rows[fold == (f + 1) % 5], rows[fold == f]) for f in range(5)]


def fit_standard(
    heads: EnsembleHeads, features: dict[str, np.ndarray], targets: dict[str, np.ndarray], folds: Folds
) -> None:
    """Fit and ask what `ensemble evaluate` fits beside the heads, and ask the heads."""
    for fold, (*_, test) in enumerate(folds):
        held = {name: x[test] for name, x in features.items()}
        heads.predict_proba(held, fold=fold)
        heads.expert_predictions(held, fold=fold)
    for name in STANDARD:
        method = METHODS[name](**({"heads": heads} if name in ("mean", "stacking") else {}))
        method.fit(features, targets, heads.tasks_, splits=folds)
        for fold, (*_, test) in enumerate(folds):
            method.predict_proba({key: x[test] for key, x in features.items()}, fold=fold)


def time_loop(
    features: dict[str, np.ndarray], targets: dict[str, np.ndarray], folds: Folds, columns: int, measured: int
) -> float:
    """Processor seconds of the scikit-learn loop, from one fold and some columns."""
    train = folds[0][0]
    stacked = np.concatenate([y[train].reshape(len(train), -1) for y in targets.values()], 1)
    regression = [k for k in range(columns) if len(np.unique(stacked[:, k])) > 2]
    chosen = np.linspace(0, columns - 1, measured).round().astype(int)
    total = 0.0
    for x in features.values():
        started = time.process_time()
        scaled = StandardScaler().fit_transform(x[train])
        kept = min(LOOP_AXES, *scaled.shape)
        z = PCA(kept, svd_solver="randomized", random_state=0).fit_transform(scaled)
        total += time.process_time() - started
        started = time.process_time()
        for k in chosen:
            fit_column(z / np.sqrt((z**2).sum(1).mean()), stacked[:, k], k in regression)
        total += (time.process_time() - started) * columns / len(chosen)
    return total * len(folds)


def fit_column(z: np.ndarray, y: np.ndarray, regression: bool) -> None:
    """Choose the penalty by inner folds, and fit with it."""
    fold = inner_folds(np.arange(len(z)), None, INNER, 0)
    losses = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for strength in STRENGTHS:
            loss = 0.0
            for k in range(INNER):
                learn, judge = fold != k, fold == k
                if len(np.unique(y[learn])) < 2:
                    continue
                model = make_model(strength, regression).fit(z[learn], y[learn])
                loss += (
                    float(((model.predict(z[judge]) - y[judge]) ** 2).mean())
                    if regression
                    else log_loss(y[judge], model.predict_proba(z[judge])[:, 1], labels=[0, 1])
                )
            losses.append(loss)
        make_model(STRENGTHS[int(np.argmin(losses))], regression).fit(z, y)


def make_model(strength: float, regression: bool) -> Ridge | LogisticRegression:
    return Ridge(strength) if regression else LogisticRegression(C=1 / strength, max_iter=1000)


def time_stages(folder: Path, n: int) -> None:
    """Run `fit-heads` and `evaluate` on a study of made-up records on disk, every fold tested once."""
    stores = make_study(folder, n)
    common = folder / "records.parquet", location_of(folder / "signals.zarr"), stores, folder / "heads"
    fit_s, fit_mb = measure(lambda: fit_heads(FitHeadsSettings(folds="all"), FitHeadsPaths(*common)))
    print(f"stage fit-heads   {fit_s:8.1f} s of processor time, peak {fit_mb:.0f} MB", flush=True)
    tables = {name: folder / f"{name}.parquet" for name in ("predictions", "gate_weights")}
    texts = {name: folder / f"{name}.json" for name in ("metrics", "headline", "evaluation", "costs", "decisions")}
    shutil.rmtree(folder / "finished", ignore_errors=True)
    paths = EvaluatePaths(*common, **tables, **texts, finished=folder / "finished")
    seconds, peak_mb = measure(lambda: evaluate(EvaluateSettings(), paths))
    print(f"stage evaluate    {seconds:8.1f} s, {seconds / fit_s:.2f} of that, peak {peak_mb:.0f} MB")


def make_study(folder: Path, n: int) -> dict[str, Location]:
    """Write records.parquet and one store an expert, two records a patient; return the stores."""
    features, targets, tasks = make_data(n)
    folder.mkdir(parents=True, exist_ok=True)
    patients = np.arange(n) // 2
    records = pd.DataFrame({name: [None] * n for name in BASE_COLUMNS})
    records["record_id"] = [f"r{k}" for k in range(n)]
    records["patient_id"], records["source"] = patients.astype(str), "made-up"
    records["split"], records["status"] = "train", "ok"
    records["fold"] = np.random.default_rng(0).permutation(patients.max() + 1)[patients] % 5
    columns = []
    for task in tasks:
        y = targets[task.name]
        columns.append(Target(task.name, task.kind, classes=task.classes))
        records[task.name] = [
            [c for c, v in zip(task.classes, row, strict=True) if v] if task.kind == "multilabel" else row for row in y
        ]
    write_records(folder / "records.parquet", records, columns)
    for name, x in features.items():
        digest = {"records_digest": records_digest(records["record_id"])}
        group = zarr.create_group(folder / f"{name}.zarr", attributes=digest, overwrite=True)
        group.create_array("layers", data=x[:, None], chunks=(256, 1, x.shape[1]))
        group.create_array("embedding", data=x, chunks=(256, x.shape[1]))
        group.create_array("done", data=np.ones(n, bool))
    return {name: location_of(folder / f"{name}.zarr") for name in features}


def measure(work: Callable[[], Any]) -> tuple[float, float]:
    """Processor seconds and peak megabytes of a stage."""
    with PeakMemory() as memory:
        started = time.process_time()
        work()
        seconds = time.process_time() - started
    return seconds, memory.mb or 0.0


if __name__ == "__main__":
    main()
