"""Scores of the kept predictions: every method's metric, the gate's differences, with intervals over patients."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cache.records import Target
from stages.heads import TaskSpec
from stages.heads.targets.calibration import rate_shift
from stages.heads.targets.tasks import Block as TaskBlock
from stages.scoring.blocks import PredictionBlock
from stages.scoring.bootstrap import Bootstrap, bootstrap, paired_difference, patient_index
from stages.scoring.metrics import HEADLINE, METRICS, make_scorer

RIVALS = ("stacking", "mean", "concat", "best_single")
RATED = ("stacking", "mean")
"""Rivals that are judged once more with the base rates that the gate counts (`rate_shift`): METHOD+rates."""
BESIDE = (*(f"{rival}+rates" for rival in RATED), "flat")
"""What the gate is compared with besides, where there is such."""


@dataclass(frozen=True)
class Instance:
    """One row of the table.

    Attributes
    ----------
    values
        Method -> metric, higher is better (an error with its sign turned).
    differences
        Rival -> gate minus rival with its interval, in the same sense.
    """

    name: str
    metric: str
    values: dict[str, float]
    differences: dict[str, tuple[float, float, float]]
    calibration: dict[str, dict[str, float]]


def instances(results: Path, cohorts: tuple[str, ...], resamples: int) -> Iterator[Instance]:
    """Score every task of every finished setting; scores are kept beside the predictions."""
    for path in sorted(results.glob("*--*.npz")):
        if path.stem.split("--")[0] not in cohorts or path.stem.endswith(".writing"):
            continue
        kept = path.with_suffix(".json")
        if not kept.is_file() or kept.stat().st_mtime < path.stat().st_mtime:
            rows = score_file(path, resamples)
            kept.write_text(json.dumps([vars(row) for row in rows]))
        yield from (Instance(**row) for row in json.loads(kept.read_text()))


def score_file(path: Path, resamples: int) -> list[Instance]:
    with np.load(path) as stored:
        arrays = dict(stored)
    tasks = json.loads(str(arrays["about"]))["tasks"]
    scored = (score_task(path.stem, arrays, TaskSpec(**task), resamples) for task in tasks.values())
    return [row for row in scored if row is not None]


def score_task(setting: str, arrays: dict[str, np.ndarray], task: TaskSpec, resamples: int) -> Instance | None:
    """Score all methods on the records that all of them have a prediction for."""
    metric = HEADLINE[task.kind][0]
    sign = 1.0 if METRICS[metric].higher_is_better else -1.0
    said = {k.split("/", 1)[1]: v for k, v in arrays.items() if k.split("/", 1)[0] == task.name}
    truth = said.pop("truth")
    rows = np.all([np.isfinite(p.reshape(len(p), -1)).all(1) for p in said.values()], axis=0)
    if task.kind in ("binary", "multilabel"):
        splits = arrays["splits/tested"], arrays["splits/labelled"]
        said |= {f"{rival}+rates": with_base_rates(said[rival], truth, *splits) for rival in RATED}
    compared = [m for m in (*RIVALS, *BESIDE) if m in said]
    names = arrays["patients"][rows]
    index, n_patients = patient_index(names)
    target = Target(task.name, task.kind, unit=task.unit, classes=task.classes, horizons=task.horizons)
    found: dict[str, Bootstrap] = {}
    for method in ("gate", *compared):
        p = said[method]
        block = PredictionBlock.of(names, names, names, np.zeros(len(names), int), truth[rows], p[rows])
        found[method] = bootstrap(make_scorer(target, block), index, n_patients, resamples)
    if not np.isfinite(found["gate"].values[metric]):
        return None
    differences = {}
    for rival in compared:
        d = paired_difference(found["gate"], found[rival], metric)
        bounds = (d.low, d.high) if sign > 0 else (-d.high, -d.low)
        differences[rival] = (sign * d.value, *bounds)
    calibration: dict[str, dict[str, float]] = {
        name: {m: b.values[name] for m, b in found.items()} for name in ("ece", "brier") if name in found["gate"].values
    }
    values = {m: sign * b.values[metric] for m, b in found.items()}
    return Instance(f"{setting}--{task.name}", metric, values, differences, calibration)


def with_base_rates(p: np.ndarray, truth: np.ndarray, tested: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """Raise probabilities as the gate raises its own: by one or two records more of either class in a fold's labels.

    Parameters
    ----------
    tested
        [n]: the split that tests each record, -1: none.
    labelled
        bool [splits, n]: the records whose labels each split learns from.
    """
    raised = np.array(p, np.float64)
    for k, known_rows in enumerate(labelled):
        test = tested == k
        y = torch.from_numpy(truth[known_rows].reshape(known_rows.sum(), -1)).float()
        known = (~y.isnan()).float()
        block = TaskBlock(TaskSpec("any", "multilabel", tuple(map(str, range(y.shape[1])))), 0, y.shape[1])
        shift = rate_shift(y.nan_to_num()[None], known[None], (block,))[0].numpy()
        odds = np.log(np.clip(p[test], 1e-7, 1 - 1e-7)) - np.log1p(-np.clip(p[test], 1e-7, 1 - 1e-7))
        raised[test] = 1 / (1 + np.exp(-(odds + (shift if p.ndim > 1 else shift[0]))))
    return raised
