"""What would labels of this study bring? The fit's answers recalibrated on a few patients, judged on all the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cache.records import Target
from stages.external.calibration import FLAT, log_odds, logistic_line, logistic_shift
from stages.scoring.blocks import PredictionBlock

Json = dict[str, Any]
WAYS = ("before", "intercept", "intercept_and_slope")
LEAST_OF_A_CLASS = 3
"""Records with a class, and without, that a recalibration needs; with fewer its answers stay as they are."""
FLOOR = 1e-6


def recalibration(target: Target, block: PredictionBlock, sizes: Sequence[int], draws: int, seed: int) -> list[Json]:
    """Return one entry a size: mean and range over draws of the error before and after, on patients not drawn.

    Parameters
    ----------
    block
        Labelled records of one method.
    sizes
        Labelled patients a recalibration is fitted on; sizes that leave fewer than half of the patients are left out.

    Returns
    -------
    Entries {"patients", "draws", METRIC: {WAY: {"value", "low", "high"}}}: MAE of values; Brier score and log loss of
    classes, mean over classes. Low and high are the 2.5 and 97.5 % quantiles of the draws. Empty for survival.
    """
    if target.kind == "survival":
        return []
    patients, everybody = block.patients.codes, np.unique(block.patients.codes)
    errors = _of_values if target.kind == "regression" else _of_classes
    found = []
    for size in sizes:
        if 2 * size > len(everybody):
            continue
        rng = np.random.default_rng([seed, size])
        drawn = [np.isin(patients, rng.choice(everybody, size, replace=False)) for _ in range(draws)]
        found.append({"patients": size, "draws": draws} | _summed([errors(target, block, fitted) for fitted in drawn]))
    return found


def _summed(parts: list[dict[str, dict[str, float]]]) -> Json:
    found: Json = {}
    for metric in parts[0]:
        found[metric] = {}
        for way in WAYS:
            values = np.array([part[metric][way] for part in parts])
            low, high = np.quantile(values, [0.025, 0.975])
            found[metric][way] = {"value": float(values.mean()), "low": float(low), "high": float(high)}
    return found


def _of_values(_: Target, block: PredictionBlock, fitted: np.ndarray) -> dict[str, dict[str, float]]:
    x, y = block.y_pred.astype(np.float64), block.y_true
    a = float((y[fitted] - x[fitted]).mean())
    spread = float(x[fitted].var())
    slope = float(np.cov(x[fitted], y[fitted], bias=True)[0, 1]) / spread if spread > FLAT else 0.0
    line = y[fitted].mean() + slope * (x - x[fitted].mean())
    ways = zip(WAYS, (x, x + a, line), strict=True)
    return {"mae": {way: float(np.abs(said - y)[~fitted].mean()) for way, said in ways}}


def _of_classes(target: Target, block: PredictionBlock, fitted: np.ndarray) -> dict[str, dict[str, float]]:
    truth, said = _matrices(target, block)
    answers = {"before": said, "intercept": said.copy(), "intercept_and_slope": said.copy()}
    for k in range(said.shape[1]):
        known = np.isfinite(truth[:, k])
        x, y, chosen = log_odds(said[:, k]), truth[:, k], fitted & known
        positive = int((y[chosen] == 1).sum())
        if min(positive, int(chosen.sum()) - positive) < LEAST_OF_A_CLASS:
            continue
        for way, fit in (("intercept", _shifted), ("intercept_and_slope", _bent)):
            answers[way][:, k] = fit(x, x[chosen], y[chosen], said[:, k])
    if target.kind == "multiclass":
        answers = {way: p / np.maximum(p.sum(1, keepdims=True), FLOOR) for way, p in answers.items()}
    return {
        name: {way: measure(truth[~fitted], p[~fitted], target.kind) for way, p in answers.items()}
        for name, measure in MEASURES.items()
    }


def _matrices(target: Target, block: PredictionBlock) -> tuple[np.ndarray, np.ndarray]:
    """Return truth (NaN: missing) and probabilities, float64 [n, classes]; of binary tasks one column."""
    said = block.y_pred.astype(np.float64)
    if target.kind == "binary":
        return block.y_true[:, None], said[:, None]
    if target.kind == "multiclass":
        return (block.y_true[:, None] == np.arange(len(target.classes))).astype(np.float64), said
    return block.y_true, said


def _shifted(x: np.ndarray, fitted: np.ndarray, y: np.ndarray, before: np.ndarray) -> np.ndarray:
    a = float(logistic_shift(fitted, y, np.ones((len(y), 1)))[0])
    return 1 / (1 + np.exp(-(a + x))) if np.isfinite(a) else before


def _bent(x: np.ndarray, fitted: np.ndarray, y: np.ndarray, before: np.ndarray) -> np.ndarray:
    a, b = (float(value[0]) for value in logistic_line(fitted, y, np.ones((len(y), 1))))
    if not np.isfinite(a + b):
        return _shifted(x, fitted, y, before)  # the few labels are told apart whole: no slope exists
    return 1 / (1 + np.exp(-(a + b * x)))


def _brier(truth: np.ndarray, said: np.ndarray, kind: str) -> float:
    squares = (truth - said) ** 2
    return float(squares.sum(1).mean() if kind == "multiclass" else np.nanmean(squares))


def _log_loss(truth: np.ndarray, said: np.ndarray, kind: str) -> float:
    p = np.clip(said, FLOOR, 1 - FLOOR)
    if kind == "multiclass":
        return float(-(truth * np.log(p)).sum(1).mean())
    return float(-np.nanmean(truth * np.log(p) + (1 - truth) * np.log(1 - p)))


MEASURES: dict[str, Callable[[np.ndarray, np.ndarray, str], float]] = {"brier": _brier, "log_loss": _log_loss}
