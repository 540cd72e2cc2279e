"""plots/: small CSV files that `dvc plots` draws and compares between revisions, one per task and picture.

Lives here: which files there are and their columns. Not here: the curves (`curves`), the report's drawings.
All pictures are of the method the report is about (the gate); `methods/` compares all.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cache.files import write_text
from cache.records import Target
from stages.scoring.blocks import PredictionBlock
from stages.scoring.comparison import labelled_test_block, main_method
from stages.scoring.curves import (
    class_columns,
    macro_curve,
    precision_recall,
    reliability,
    roc,
    spread_rows,
)
from stages.scoring.predictions import Predictions
from stages.scoring.survival.curves import horizon_calibration, risk_thirds

FOLDERS = ("calibration", "confusion", "kaplan_meier", "learning_curve", "methods", "pr", "predicted_vs_true", "roc")
MAX_SCATTER = 2000
MAX_CONFUSION = 5000


def write_plots(
    predictions: Predictions,
    metrics: dict[str, Any],
    folder: str | Path,
    learning_curve: dict[str, list[dict[str, Any]]] | None = None,
) -> list[Path]:
    """Write FOLDER/<picture>/<task>.csv and return the files; files of tasks that are gone are removed.

    Parameters
    ----------
    metrics
        Content of metrics.json, for `methods/`.
    learning_curve
        Task -> points of `stages.evaluate.learning_curve.learning_curve`, where one was asked for.
    """
    folder, written = Path(folder), []
    for task, found in metrics["tasks"].items():
        target = predictions.tasks[task]
        block = labelled_test_block(predictions, task, main_method(list(found["methods"])))
        pictures = {"methods": _methods(found), **_pictures(target, block)}
        if points := (learning_curve or {}).get(task):
            pictures["learning_curve"] = pd.DataFrame(points)
        for picture, frame in pictures.items():
            path = folder / picture / f"{file_name(task)}.csv"
            write_text(path, frame.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
            written.append(path)
    for picture in FOLDERS:
        (folder / picture).mkdir(parents=True, exist_ok=True)
        for stale in set((folder / picture).glob("*.csv")) - set(written):
            stale.unlink()
    return written


def file_name(task: str) -> str:
    """Return a task's name as a file name and anchor; where letters had to go, a digest keeps names apart.

    Examples
    --------
    >>> file_name("age"), file_name("AF/AFL"), file_name("AF+AFL")
    ('age', 'AF_AFL-42d10e02', 'AF_AFL-691467b9')
    """
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", task).strip("._") or "task"
    return plain if plain == task else f"{plain}-{hashlib.sha256(task.encode()).hexdigest()[:8]}"


def _methods(found: dict[str, Any]) -> pd.DataFrame:
    metric = found["headline"][0]
    rows = [{"method": name, "metric": metric} | _interval(values[metric]) for name, values in found["methods"].items()]
    return pd.DataFrame(rows)


def _interval(found: dict[str, Any]) -> dict[str, Any]:
    return {key: found[key] for key in ("value", "low", "high")}


def _pictures(target: Target, block: PredictionBlock) -> dict[str, pd.DataFrame]:
    if target.kind == "regression":
        rows = spread_rows(len(block), MAX_SCATTER)
        return {"predicted_vs_true": pd.DataFrame({"true": block.y_true[rows], "predicted": block.y_pred[rows]})}
    if target.kind == "survival":
        return _of_survival(target, block)
    curves = class_columns(target, block)
    found = {
        "roc": _curve([c for _, y, p in curves if (c := roc(y, p))], "fpr", "tpr"),
        "pr": _curve([c for _, y, p in curves if (c := precision_recall(y, p))], "recall", "precision"),
        "calibration": _calibration(target, block),
    }
    if target.kind == "multiclass":
        found["confusion"] = _confusion(target, block)
    return found


def _of_survival(target: Target, block: PredictionBlock) -> dict[str, pd.DataFrame]:
    curves = [
        pd.DataFrame({"time": group.time, "free_of_event": group.alive, "group": group.name})
        for group in risk_thirds(target, block)
    ]
    found = horizon_calibration(target, block, len(target.horizons) - 1)
    calibration = pd.DataFrame({"stated": found.predicted, "observed": found.observed, "n": found.n})
    return {"kaplan_meier": pd.concat(curves), "calibration": calibration}


def _curve(curves: list[Any], x: str, y: str) -> pd.DataFrame:
    if not curves:
        return pd.DataFrame({x: [], y: []})
    curve = curves[0] if len(curves) == 1 else macro_curve(curves)
    return pd.DataFrame({x: curve.x, y: curve.y})


def _calibration(target: Target, block: PredictionBlock) -> pd.DataFrame:
    found = reliability(target, block)
    return pd.DataFrame({"stated": found.stated, "observed": found.observed, "n": found.n})


def _confusion(target: Target, block: PredictionBlock) -> pd.DataFrame:
    """Return one row per record, as DVC's confusion template counts them; thinned where there are very many."""
    rows = spread_rows(len(block), MAX_CONFUSION)
    names = np.asarray(target.classes, dtype=object)
    return pd.DataFrame({"actual": names[block.y_true[rows]], "predicted": names[block.y_pred[rows].argmax(axis=1)]})
