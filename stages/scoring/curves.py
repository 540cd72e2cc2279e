"""Data behind the pictures: ROC, precision-recall, reliability, confusion, predicted against true.

Lives here: arrays, thinned so that a page stays small. Not here: files (`plots`), drawings (`stages.report`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cache.records import Target
from stages.scoring.blocks import PredictionBlock
from stages.scoring.metrics import ECE_BINS, calibration_bin, nan_mean

MAX_POINTS = 200
_GRID = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Curve:
    """Points of a curve, x ascending."""

    x: np.ndarray
    y: np.ndarray


def class_columns(target: Target, block: PredictionBlock) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Return (class, truth 0/1, probability) of every class's labelled records; binary gives one."""
    if target.kind == "binary":
        return [(target.classes[1] if len(target.classes) == 2 else target.name, block.y_true, block.y_pred)]
    hot = block.y_true
    if target.kind == "multiclass":
        hot = (block.y_true[:, None] == np.arange(len(target.classes))).astype(float)
    known = [~np.isnan(hot[:, k]) for k in range(hot.shape[1])]
    return [(name, hot[known[k], k], block.y_pred[known[k], k]) for k, name in enumerate(target.classes)]


def roc(y_true: np.ndarray, y_pred: np.ndarray) -> Curve | None:
    """Return (false positive rate, sensitivity); None where a side is absent."""
    true, false = _thresholds(y_true, y_pred)
    if not true[-1] or not false[-1]:
        return None
    return _thinned(np.r_[0, false / false[-1]], np.r_[0, true / true[-1]])


def precision_recall(y_true: np.ndarray, y_pred: np.ndarray) -> Curve | None:
    """Return (sensitivity, precision), starting at the highest threshold; None without positives."""
    true, false = _thresholds(y_true, y_pred)
    if not true[-1]:
        return None
    precision = true / (true + false)
    return _thinned(np.r_[0, true / true[-1]], np.r_[precision[0], precision])


def macro_curve(curves: list[Curve]) -> Curve:
    """Return the mean of several curves over a common grid of x."""
    return Curve(_GRID, nan_mean(np.stack([np.interp(_GRID, curve.x, curve.y) for curve in curves])))


def _thresholds(y_true: np.ndarray, y_pred: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return true and false positives at each distinct threshold, from the highest down."""
    order = np.argsort(-y_pred, kind="stable")
    score, positive = y_pred[order], y_true[order] == 1
    ends = np.append(np.flatnonzero(np.diff(score)), len(score) - 1)
    true = np.cumsum(positive)[ends]
    return true, ends + 1 - true


def _thinned(x: np.ndarray, y: np.ndarray) -> Curve:
    """Keep at most `MAX_POINTS` points, evenly spread along the path (equal axes)."""
    if len(x) <= MAX_POINTS:
        return Curve(x, y)
    length = np.r_[0, np.cumsum(np.hypot(np.diff(x), np.diff(y)))]
    keep = np.unique(np.searchsorted(length, np.linspace(0, length[-1], MAX_POINTS)).clip(0, len(x) - 1))
    return Curve(x[keep], y[keep])


@dataclass(frozen=True)
class Reliability:
    """Stated against observed probability, bins without records left out.

    Attributes
    ----------
    stated, observed
        Mean probability and share of positives in each bin.
    n
        Records (multilabel: record-class pairs) in each bin.
    """

    stated: np.ndarray
    observed: np.ndarray
    n: np.ndarray


def reliability(target: Target, block: PredictionBlock) -> Reliability:
    """Return the reliability of the probabilities; multiclass: of the most probable class, as its ECE is."""
    if target.kind == "multiclass":
        top = np.argmax(block.y_pred, axis=1)
        probability, outcome = block.y_pred[np.arange(len(block)), top], (top == block.y_true).astype(float)
    else:
        columns = class_columns(target, block)
        outcome = np.concatenate([y for _, y, _ in columns])
        probability = np.concatenate([p for _, _, p in columns])
    bins = calibration_bin(probability.astype(np.float64))
    n = np.bincount(bins, minlength=ECE_BINS)
    filled = n > 0
    stated, observed = (np.bincount(bins, values, ECE_BINS)[filled] / n[filled] for values in (probability, outcome))
    return Reliability(stated, observed, n[filled])


def confusion(target: Target, block: PredictionBlock) -> np.ndarray:
    """Return counts [true class, most probable class] of a multiclass task."""
    size = len(target.classes)
    cells = block.y_true * size + np.argmax(block.y_pred, axis=1)
    return np.bincount(cells, minlength=size * size).reshape(size, size)


def spread_rows(n: int, at_most: int) -> np.ndarray:
    """Return at most so many row numbers, evenly spaced: a sample without random state."""
    return np.arange(n) if n <= at_most else np.linspace(0, n - 1, at_most).astype(np.int64)
