"""Label efficiency: the same method fitted on shares of the training patients, judged on the same test records.

Lives here: `learning_curve`, and a fit's predictions written as a table. Not here: metrics (`stages.scoring`), the
methods (`stages.heads`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cache.errors import InputError, UsageError
from cache.files import write_text
from stages.evaluate.methods import FoldPredictions, Setting
from stages.heads import EnsembleHeads
from stages.learning.folds import Split
from stages.scoring.comparison import EXPERT_PREFIX, Draws, Resample, one_by_one
from stages.scoring.predictions import PredictionWriter, open_predictions, writing_predictions
from stages.scoring.summary import summarise

MEAN = "mean"


def learning_curve(
    setting: Setting,
    folder: Path,
    fractions: tuple[float, ...],
    metrics: Mapping[str, Any],
    draws: Draws,
    on_fit: Callable[[str], None],
    resample: Resample = one_by_one,
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, dict[str, str]]]:
    """Return task -> points of gate, single experts and mean, and task -> fraction -> why it has no point there.

    A fraction that has finished is not fitted again.

    A share takes its patients from training and validation alike (labels are paid for in both), smaller shares lie
    inside larger ones, and the test records are always the same ones. The point at 1 is the study's own fit.

    Parameters
    ----------
    folder
        Folder of finished fractions; the seed that draws the patients is part of their names.
    metrics
        Content of metrics.json, for the point at 1.
    """
    if wrong := [f for f in fractions if not 0 < f <= 1]:
        raise UsageError(f"--fractions {wrong[0]:g}: a share of the patients lies above 0 and is at most 1")
    curve: dict[str, list[dict[str, Any]]] = {}
    missing: dict[str, dict[str, str]] = {}
    for fraction in sorted(set(fractions)):
        found: Mapping[str, Any] = metrics
        if fraction < 1:
            found, skipped = _fraction(setting, folder, fraction, draws, on_fit, resample)
            for task, reason in skipped.items():
                missing.setdefault(task, {})[f"{fraction:g}"] = reason
        for task, judged in found["tasks"].items():
            curve.setdefault(task, []).extend(_points(fraction, judged))
    return curve, missing


def _fraction(
    setting: Setting,
    folder: Path,
    fraction: float,
    draws: Draws,
    on_fit: Callable[[str], None],
    resample: Resample,
) -> tuple[Mapping[str, Any], dict[str, str]]:
    """Return the metrics of a fit on a share of the patients, and task -> why it was not learnt; both stay on disk."""
    name = f"fraction-{fraction!r}-seed-{draws.seed}"
    table, reasons = (folder / f"{name}.{suffix}" for suffix in ("parquet", "json"))
    if not reasons.is_file():
        on_fit(f"gate on {fraction:.0%} of the patients")
        try:
            skipped = _fit_fraction(setting, fraction, table, draws.seed)
        except InputError as error:  # too few for any task: no reason to throw away what has been evaluated
            table.unlink(missing_ok=True)
            skipped = {task.name: str(error) for task in setting.data.tasks}
        write_text(reasons, json.dumps(skipped))
    skipped = json.loads(reasons.read_text(encoding="utf-8"))
    if not table.is_file():
        return {"tasks": {}}, skipped
    return summarise(open_predictions(table), None, draws.n, draws.seed, resample=resample), skipped


def _points(fraction: float, task: Mapping[str, Any]) -> list[dict[str, Any]]:
    metric = task["headline"][0]
    names = [name for name in task["methods"] if name in ("gate", MEAN) or name.startswith(EXPERT_PREFIX)]
    return [
        {"fraction": fraction, "method": name, "metric": metric}
        | {key: task["methods"][name][metric][key] for key in ("value", "low", "high")}
        for name in names
    ]


def _fit_fraction(setting: Setting, fraction: float, path: Path, seed: int) -> dict[str, str]:
    """Fit on a share of the patients, write its predictions of the test records, and return the tasks left out."""
    data, heads = setting.data, setting.heads
    splits = [patient_share(split, data.membership.patient.codes, fraction, seed) for split in setting.splits]
    fit = EnsembleHeads(**{**heads.get_params(), "on_unusable": "skip"})
    fit.fit(
        data.features,
        data.targets,
        heads.tasks_,
        splits=splits,
        groups=data.membership.patient.codes,
        gate_signal=setting.signal,
        seen=data.seen,
        taught=data.taught,
    )
    subset = replace(setting, heads=fit, splits=splits)
    with writing_predictions(path, {t.name: t for t in data.tasks}) as table:
        for method, predictions in (fit_predictions(subset) | {MEAN: _means(subset)}).items():
            for fold, (_, _, test) in enumerate(splits):
                write_block(table, setting, method, "test", fold, test, predictions[fold])
    return fit.skipped_


def patient_share(split: Split, patients: np.ndarray, fraction: float, seed: int) -> Split:
    """Keep a share of the training and of the validation patients, at least one each; nested in the fraction.

    Parameters
    ----------
    patients
        Each record's patient [n], a name or a number ordered as the names are.
    """
    kept = []
    for number, rows in enumerate(split[:2]):
        known = np.unique(patients[rows])
        chosen = np.random.default_rng([seed, number]).permutation(known)[: max(1, round(fraction * len(known)))]
        kept.append(rows[np.isin(patients[rows], chosen)])
    return kept[0], kept[1], split[2]


def fit_predictions(setting: Setting) -> dict[str, FoldPredictions]:
    """Gate and single experts -> fold -> task -> predictions for all rows."""
    data, heads, signal = setting.data, setting.heads, setting.signal
    folds = range(len(setting.splits))
    found = {"gate": [heads.predict_proba(data.features, gate_signal=signal, fold=fold) for fold in folds]}
    single = [heads.expert_predictions(data.features, gate_signal=signal, fold=fold) for fold in folds]
    return found | {f"{EXPERT_PREFIX}{name}": [fold[name] for fold in single] for name in heads.experts_}


def _means(setting: Setting) -> FoldPredictions:
    heads, features = setting.heads, setting.data.features
    return [heads.uniform_mean(features, gate_signal=setting.signal, fold=f) for f in range(len(setting.splits))]


def write_block(
    table: PredictionWriter,
    setting: Setting,
    method: str,
    split: str,
    fold: int,
    part: np.ndarray,
    predicted: Mapping[str, np.ndarray],
) -> None:
    """Write one method's predictions of some rows; a task or record that it has no prediction for is left out."""
    data = setting.data
    for task in data.tasks:
        if task.name not in predicted:
            continue
        y_pred = np.asarray(predicted[task.name])
        rows = part[np.isfinite(y_pred[part].reshape(len(part), -1)).all(axis=1)]
        table.add(
            task.name,
            method,
            split,
            fold,
            record_ids=setting.ids.of(rows),
            patient_ids=data.patient_ids(rows),
            y_true=data.targets[task.name][rows],
            y_pred=y_pred[rows],
        )
