"""metrics.json: what predictions.parquet says about every task and method.

Lives here: counts, and the layout of metrics.json. Not here: the metrics (`metrics`), intervals (`bootstrap`), which
methods are compared (`comparison`), pictures (`curves`, `stages.report`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cache.errors import MissingFileError, StoreError
from cache.files import write_text
from cache.fingerprint import file_digest
from cache.records import Target
from stages.scoring.blocks import PredictionBlock
from stages.scoring.bootstrap import LEVEL, RESAMPLES, SEED, Bootstrap, Estimate, estimate
from stages.scoring.comparison import (
    Comparison,
    Draws,
    Resample,
    compare,
    judged_methods,
    main_method,
    one_by_one,
)
from stages.scoring.metrics import HEADLINE, METRICS, METRICS_OF, score
from stages.scoring.predictions import Predictions
from stages.scoring.record_parts import Records, labelled_records
from stages.scoring.subgroups import RecordGroups, subgroups
from stages.scoring.survival.summary import events_of, horizons_of, thirds_of

SCHEMA_VERSION = 1
NOT_JUDGED = "no test record has a label and a prediction"
Json = dict[str, Any]


def summarise(
    predictions: Predictions,
    records: Records | None = None,
    n_resamples: int = RESAMPLES,
    seed: int = SEED,
    on_progress: Callable[[str, str], None] | None = None,
    resample: Resample = one_by_one,
) -> Json:
    """Return the content of metrics.json: metrics of the rows whose split is `test`.

    Parameters
    ----------
    records
        records.parquet, for training counts and for subgroups by age band and sex; without it they are left out. Of one
        on disk (`RecordRows`) a row group at a time is read.
    on_progress
        Called with (task, method) before each method is scored.
    resample
        Who resamples; the numbers are the same.

    Raises
    ------
    InputError
        Methods whose truths disagree. A method, or a whole task, without a labelled test record is left out.
    """
    report = on_progress or (lambda task, method: None)  # noqa: ARG005
    cohort = None if records is None else _Cohort(records, predictions.tasks)
    tasks, left_out = {}, {}
    for name, target in predictions.tasks.items():
        judged = judged_methods(predictions, name)
        if not judged:
            left_out[name] = NOT_JUDGED
            continue
        compared = compare(predictions, target, judged, Draws(n_resamples, seed), partial(report, name), resample)
        tasks[name] = _task(predictions, compared, cohort)
        if unjudged := [method for method in predictions.methods(name) if method not in judged]:
            tasks[name]["left_out"] = dict.fromkeys(unjudged, NOT_JUDGED)
    return {
        "schema_version": SCHEMA_VERSION,
        "bootstrap": {"unit": "patient", "resamples": n_resamples, "seed": seed, "level": LEVEL},
        "tasks": tasks,
        "left_out": left_out,
    }


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON: null for undefined, no timestamps, the same bytes for the same content."""
    write_text(Path(path), json.dumps(_plain(content), indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def write_metrics(path: str | Path, metrics: Json, predictions: str | Path) -> None:
    """Write metrics.json, which names the digest of the predictions.parquet that it was computed from."""
    digest = file_digest(Path(predictions))
    write_json(path, {**metrics, "predictions_sha256": digest})


def require_pair(metrics: Json, metrics_path: str | Path, predictions_path: str | Path) -> None:
    """Refuse metrics that were computed from other predictions.

    Raises
    ------
    StoreError
        Naming both files.
    """
    if metrics.get("predictions_sha256") != file_digest(Path(predictions_path)):
        raise StoreError(
            f"{metrics_path} was not computed from this {predictions_path}; run `ensemble evaluate` again, or bring "
            "the two files of one evaluation"
        )


def read_metrics(path: str | Path = "metrics.json") -> Json:
    """Read metrics.json."""
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist; run `ensemble evaluate` first")
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StoreError(f"{path}: not JSON ({str(error).splitlines()[0]}); run `ensemble evaluate` again") from error
    if not isinstance(metrics, dict) or "tasks" not in metrics:
        raise StoreError(f"{path}: has no 'tasks'; was it written by `ensemble evaluate`?")
    return metrics


def headline(metrics: Json) -> dict[str, dict[str, float | None]]:
    """Return {TASK: {METRIC: main method's value, METRIC_best_expert: ...}}: narrow enough for `dvc metrics show`."""
    found: dict[str, dict[str, float | None]] = {}
    for name, task in _plain(metrics)["tasks"].items():
        shown = {"": main_method(list(task["methods"])), "_best_expert": task["best_single_expert"]}
        found[name] = {
            metric + suffix: task["methods"][method][metric]["value"]
            for metric in task["headline"]
            for suffix, method in shown.items()
            if method
        }
    return found


def _plain(value: Any) -> Any:
    """Return JSON's own types, NaN and infinities as null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _Cohort:
    """What the judged records' table adds: labels of the records that a fit has learnt from, and groups."""

    def __init__(self, records: Records, tasks: Mapping[str, Target]) -> None:
        self.labelled = labelled_records(records, tasks, ("train", "val"))
        self.groups = RecordGroups(records)


def _task(predictions: Predictions, compared: Comparison, cohort: _Cohort | None) -> Json:
    target, main = compared.target, compared.blocks[compared.main]
    found: Json = {
        "kind": target.kind,
        "unit": target.unit,
        "classes": list(target.classes),
        "headline": list(HEADLINE[target.kind]),
        "n": _counts(predictions, compared, cohort),
        "methods": {name: _method(sample) for name, sample in compared.samples.items()},
        "best_single_expert": compared.best,
        "differences": _differences(compared),
    }
    if target.kind in ("multiclass", "multilabel"):
        found["per_class"] = {name: _per_class(compared, name) for name in compared.shown}
    if target.kind == "survival":
        found["horizons"] = horizons_of(target, main, compared.samples)
        found["thirds"] = thirds_of(target, main)
    if len(np.unique(main.fold)) > 1:
        found["folds"] = {name: _folds(target, block) for name, block in compared.blocks.items()}
    if cohort is not None:
        found["subgroups"] = subgroups(compared, cohort.groups)
    return found


def _interval(found: Estimate) -> Json:
    return {"value": found.value, "low": found.low, "high": found.high}


def _method(sample: Bootstrap) -> Json:
    metrics = {name: _interval(estimate(value, sample.replicates[name])) for name, value in sample.values.items()}
    for name, count in sample.n_classes.items():
        metrics[name]["n_classes"] = count
    return metrics


def _differences(compared: Comparison) -> Json:
    """Return each method's metrics minus the best single expert's, with a verdict."""
    if compared.best is None:
        return {}
    metrics = METRICS_OF[compared.target.kind]
    others = [name for name in compared.samples if name != compared.best]
    return {
        name: {metric: _verdict(metric, found) for metric, found in compared.difference(name, metrics).items()}
        for name in others
    }


def _verdict(metric: str, found: Estimate) -> Json:
    """Add "better", "worse" or, where the interval holds 0, "same"; null where there is no interval."""
    better = (found.value > 0) == METRICS[metric].higher_is_better
    verdict = ("better" if better else "worse") if found.excludes_zero else "same"
    return {**_interval(found), "verdict": verdict if np.isfinite(found.low) else None}


def _counts(predictions: Predictions, compared: Comparison, cohort: _Cohort | None) -> Json:
    target, test = compared.target, compared.blocks[compared.main]
    whole = predictions.read(target.name, compared.main, "test")
    found: Json = {
        "test": len(test),
        "patients_test": test.patients.n_used,
        "missing": int((~whole.labelled).sum()),
    }
    if cohort is not None:
        found |= cohort.labelled.get(target.name, {})
    if target.kind == "survival":
        found["events"] = events_of(test)
    elif target.kind != "regression":
        found["positives"] = _positives(target, test)
    return found


def _positives(target: Target, block: PredictionBlock) -> Any:
    """Return the records of class 1, or of each class."""
    if target.kind == "binary":
        return int((block.y_true == 1).sum())
    hot = block.y_true[:, None] == np.arange(len(target.classes)) if target.kind == "multiclass" else block.y_true == 1
    return dict(zip(target.classes, hot.sum(axis=0).tolist(), strict=True))


def _per_class(compared: Comparison, method: str) -> Json:
    sample, positives = compared.samples[method], _positives(compared.target, compared.blocks[method])
    found = {name: {"n_positive": positives[name]} for name in compared.target.classes}
    for metric, values in sample.per_class.items():
        for name, value, replicates in zip(found, values, sample.per_class_replicates[metric], strict=True):
            found[name][metric] = _interval(estimate(float(value), replicates))
    return found


def _folds(target: Target, block: PredictionBlock) -> Json:
    """Return mean and standard deviation over folds (ddof 1), as papers with cross-validation report them."""
    parts = [score(target, block.take(block.fold == fold)).values for fold in np.unique(block.fold)]
    table = {name: np.array([part[name][0] for part in parts]) for name in parts[0]}
    return {
        name: {"mean": values.mean(), "std": values.std(ddof=1), "values": values.tolist()}
        for name, values in table.items()
    }
