"""The metrics of each kind of task, for any reweighting of the records: weights of 1 give the plain value.

Lives here: names, directions, definitions. Not here: resampling (`bootstrap`), calibration curves (`curves`).

Values are scikit-learn's on the same records (tests compare them). What scikit-learn leaves undefined is NaN here and
never 0: AUROC where a class or its opposite does not occur, F1 of a class that neither occurs nor is predicted.
Macro means go over the classes for which the metric is defined; `Scores.n_classes` says how many those are.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from scipy import sparse

from cache.records import Kind, Target
from stages.scoring.blocks import PredictionBlock
from stages.scoring.ranking import Ranking, ratio
from stages.scoring.survival.scorer import SurvivalScorer

ECE_BINS = 15
THRESHOLD = 0.5
"""At or above it a binary or multilabel class counts as predicted."""


@dataclass(frozen=True)
class Metric:
    """What a person needs to read a metric's value."""

    title: str
    higher_is_better: bool
    has_unit: bool = False
    meaning: str = ""


METRICS: dict[str, Metric] = {
    "auroc": Metric("AUROC", True, meaning="chance that a positive scores above a negative; 0.5 is guessing"),
    "auroc_macro": Metric("macro AUROC", True, meaning="AUROC of each class against the rest, averaged over classes"),
    "auprc": Metric("AUPRC", True, meaning="average precision; guessing gives the share of positives"),
    "auprc_macro": Metric("macro AUPRC", True, meaning="average precision of each class, averaged over classes"),
    "accuracy": Metric("accuracy", True, meaning="share of records whose most probable class is right"),
    "f1": Metric("F1", True, meaning="harmonic mean of precision and sensitivity at probability 0.5"),
    "f1_macro": Metric("macro F1", True, meaning="F1 of each class, averaged over classes"),
    "precision_macro": Metric("macro precision", True, meaning="share of a class's predictions that are right"),
    "recall_macro": Metric("macro recall", True, meaning="share of a class's records that are found"),
    "sensitivity": Metric("sensitivity", True, meaning="share of positives found at probability 0.5"),
    "specificity": Metric("specificity", True, meaning="share of negatives left alone at probability 0.5"),
    "brier": Metric("Brier", False, meaning="mean squared error of the probabilities"),
    "ece": Metric("ECE", False, meaning=f"mean gap of stated and observed probability, {ECE_BINS} equal bins"),
    "mae": Metric("MAE", False, True, "mean absolute error, in the task's unit"),
    "median_absolute_error": Metric("median abs. error", False, True, "half of the records have a smaller error"),
    "rmse": Metric("RMSE", False, True, "root of the mean squared error, in the task's unit"),
    "mse": Metric("MSE", False, meaning="mean squared error, in the squared unit"),
    "r2": Metric("R²", True, meaning="share of the variance that is explained; below 0 is worse than the mean"),
    "pearson": Metric("Pearson r", True, meaning="linear correlation of predicted and true values"),
    "c_harrell": Metric("Harrell's C", True, meaning="chance that who has the event earlier was given the higher risk"),
    "c_uno": Metric("Uno's C", True, meaning="the same until the last horizon, weighted so that censoring is undone"),
    "auc_mean": Metric("mean AUC(t)", True, meaning="AUROC of event by a horizon against none by then, over horizons"),
    "brier_integrated": Metric(
        "integrated Brier", False, meaning="squared error of the probability of no event, between the horizons"
    ),
    "calibration_error": Metric(
        "calibration error", False, meaning="gap of predicted and observed risk at the last horizon, in fifths"
    ),
}

METRICS_OF: dict[Kind, tuple[str, ...]] = {
    "regression": ("mae", "median_absolute_error", "rmse", "mse", "r2", "pearson"),
    "binary": (
        *("auroc", "auprc", "f1", "accuracy", "sensitivity", "specificity"),
        *("f1_macro", "precision_macro", "recall_macro", "brier", "ece"),
    ),
    "multiclass": (
        *("auroc_macro", "accuracy", "f1_macro", "precision_macro", "recall_macro"),
        *("auprc_macro", "brier", "ece"),
    ),
    "multilabel": ("auroc_macro", "auprc_macro", "f1_macro", "brier", "ece"),
    "survival": ("c_harrell", "c_uno", "auc_mean", "brier_integrated", "calibration_error"),
}
HEADLINE: dict[Kind, tuple[str, ...]] = {
    "regression": ("mae",),
    "binary": ("auroc",),
    "multiclass": ("auroc_macro", "accuracy"),
    "multilabel": ("auroc_macro",),
    "survival": ("c_harrell",),
}
"""The metrics a comparison is about; the first one names the best expert."""


@dataclass(frozen=True)
class Scores:
    """Metrics of several reweightings.

    Attributes
    ----------
    values
        Metric -> [resamples].
    n_classes
        Macro metric -> number of classes for which it is defined, [resamples].
    per_class
        "auroc" and "auprc" -> [classes, resamples]; empty for regression; of survival, metrics of the horizons.
    """

    values: dict[str, np.ndarray]
    n_classes: dict[str, np.ndarray] = field(default_factory=dict)
    per_class: dict[str, np.ndarray] = field(default_factory=dict)


class Scorer(Protocol):
    """One method's predictions for one task, prepared so that any reweighting of its records is quickly scored."""

    def __call__(self, weights: np.ndarray) -> Scores:
        """Score the records, each counted as often as `weights` [n, resamples] says."""


@dataclass(frozen=True)
class JudgedAnswers:
    """Truths and predictions of n records, as `PredictionBlock` has them."""

    y_true: np.ndarray
    y_pred: np.ndarray

    def __len__(self) -> int:
        return len(self.y_true)


def make_scorer(target: Target, block: PredictionBlock | JudgedAnswers) -> Scorer:
    """Return the scorer of a task's kind for one method's predictions; unlabelled records do not count."""
    if target.kind == "regression":
        return _RegressionScorer(block.y_true, block.y_pred)
    if target.kind == "survival":
        scorer = SurvivalScorer(target, block.y_true, block.y_pred)
        return lambda weights: _survival_scores(scorer, weights)
    return _ClassScorer(target.kind, block.y_true, block.y_pred)


def _survival_scores(scorer: SurvivalScorer, weights: np.ndarray) -> Scores:
    values, per_horizon = scorer(weights)
    return Scores(values, per_class=per_horizon)


def score(target: Target, block: PredictionBlock) -> Scores:
    """Return the plain metrics of one method, each as an array of length 1."""
    return make_scorer(target, block)(np.ones((len(block), 1)))


class _RegressionScorer:
    """Sums of errors as one matrix product; the median by running sums over the sorted absolute errors."""

    def __init__(self, y_true: np.ndarray, y_pred: np.ndarray) -> None:
        self._rows = np.flatnonzero(~np.isnan(y_true))
        true, predicted = y_true[self._rows], y_pred[self._rows].astype(np.float64)
        error = predicted - true
        centre = true.mean() if len(true) else 0.0
        true, predicted = true - centre, predicted - centre
        self._sums = np.stack(
            [np.ones_like(true), abs(error), error**2, true, true**2, predicted, predicted**2, true * predicted]
        )
        self._order = np.argsort(abs(error), kind="stable")
        self._sorted = np.append(abs(error)[self._order], np.nan)

    def __call__(self, weights: np.ndarray) -> Scores:
        weights = weights[self._rows]
        n, absolute, squared, y, yy, p, pp, yp = self._sums @ weights
        spread_y, spread_p = yy - ratio(y * y, n), pp - ratio(p * p, n)
        mse = ratio(squared, n)
        return Scores(
            {
                "mae": ratio(absolute, n),
                "median_absolute_error": self._median(weights, n),
                "rmse": np.sqrt(mse),
                "mse": mse,
                "r2": 1 - ratio(squared, _unless_rounding(spread_y, yy)),
                "pearson": _correlation(yp - ratio(y * p, n), spread_y, spread_p, yy, pp),
            }
        )

    def _median(self, weights: np.ndarray, n: np.ndarray) -> np.ndarray:
        running = np.cumsum(weights[self._order], axis=0)
        lower = (running < np.floor((n + 1) / 2)).sum(axis=0)
        upper = (running < np.floor(n / 2) + 1).sum(axis=0)
        return np.where(n > 0, (self._sorted[lower] + self._sorted[upper]) / 2, np.nan)


def _unless_rounding(spread: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Return the spread, 0 where it is only rounding of a constant column."""
    return np.where(spread > 1e-12 * total, spread, 0.0)


def _correlation(
    joint: np.ndarray, spread_y: np.ndarray, spread_p: np.ndarray, yy: np.ndarray, pp: np.ndarray
) -> np.ndarray:
    return ratio(joint, np.sqrt(_unless_rounding(spread_y, yy) * _unless_rounding(spread_p, pp)))


class _ClassScorer:
    """Binary is one class, multiclass is one class against the rest with the most probable one predicted."""

    def __init__(self, kind: Kind, y_true: np.ndarray, y_pred: np.ndarray) -> None:
        self._kind = kind
        probability = y_pred.reshape(len(y_pred), -1).astype(np.float64)
        truth = (y_true[:, None] == np.arange(probability.shape[1])) if kind == "multiclass" else None
        known = np.broadcast_to(y_true[:, None] >= 0, probability.shape) if kind == "multiclass" else None
        if truth is None or known is None:
            labels = y_true.reshape(len(y_true), -1)
            known, truth = ~np.isnan(labels), labels == 1
        self._rows = np.flatnonzero(known.any(axis=1))
        self._known, truth, probability = known[self._rows], truth[self._rows], probability[self._rows]
        predicted = _predicted(kind, probability)
        self._rankings = [
            Ranking(truth[:, k], probability[:, k], np.flatnonzero(self._known[:, k])) for k in range(truth.shape[1])
        ]
        self._indicators = [truth, predicted & self._known, truth & predicted]
        self._squared = np.where(self._known, (probability - truth) ** 2, 0.0)
        self._bins, self._cells = _calibration_bins(kind, probability, truth, self._known)

    def __call__(self, weights: np.ndarray) -> Scores:
        weights = weights[self._rows]
        true, predicted, hits = (column.T.astype(weights.dtype) @ weights for column in self._indicators)
        n = self._known.T.astype(weights.dtype) @ weights
        ranked = [ranking(weights) for ranking in self._rankings]
        per_class = {"auroc": np.stack([r[0] for r in ranked]), "auprc": np.stack([r[1] for r in ranked])}
        brier = ratio(self._squared.T @ weights, n)
        gaps = abs(self._cells @ weights).reshape(-1, self._bins, weights.shape[1]).sum(axis=1)
        if self._kind == "multiclass":
            whole = {"accuracy": ratio(hits.sum(axis=0), n[0]), "brier": brier.sum(axis=0), "ece": ratio(gaps[0], n[0])}
            return _only("multiclass", _with_macro(whole, per_class, true, predicted, hits))
        ece = ratio(gaps, n)
        if self._kind == "binary":
            whole = {"brier": brier[0], "ece": ece[0]}
            return _binary_scores(whole, per_class, n[0], (true[0], predicted[0], hits[0]))
        whole = {"brier": nan_mean(brier), "ece": nan_mean(ece)}
        return _only("multilabel", _with_macro(whole, per_class, true, predicted, hits))


def _only(kind: Kind, scores: Scores) -> Scores:
    """Return the metrics a kind reports, in its order."""
    names = METRICS_OF[kind]
    counts = {name: count for name, count in scores.n_classes.items() if name in names}
    return Scores({name: scores.values[name] for name in names}, counts, scores.per_class)


def _predicted(kind: Kind, probability: np.ndarray) -> np.ndarray:
    if kind == "multiclass":
        return np.argmax(probability, axis=1)[:, None] == np.arange(probability.shape[1])
    return probability >= THRESHOLD


def _calibration_bins(
    kind: Kind, probability: np.ndarray, truth: np.ndarray, known: np.ndarray
) -> tuple[int, sparse.csr_array]:
    """Return (bins, matrix [classes * bins, n] of outcome minus stated probability); multiclass: of the top class."""
    if kind == "multiclass":
        top = np.argmax(probability, axis=1)[:, None]
        probability, truth = np.take_along_axis(probability, top, 1), np.take_along_axis(truth, top, 1)
        known = known[:, :1]
    n, classes = probability.shape
    cell = calibration_bin(probability) + ECE_BINS * np.arange(classes)
    gap = np.where(known, truth - probability, 0.0)
    rows = np.broadcast_to(np.arange(n)[:, None], cell.shape)
    return ECE_BINS, sparse.csr_array((gap.ravel(), (cell.ravel(), rows.ravel())), shape=(classes * ECE_BINS, n))


def calibration_bin(probability: np.ndarray) -> np.ndarray:
    """Return the equal-width bin (left, right] of each probability; 0 belongs to the first."""
    return np.clip(np.ceil(probability * ECE_BINS).astype(np.int64) - 1, 0, ECE_BINS - 1)


def nan_mean(values: np.ndarray) -> np.ndarray:
    """Return the mean over axis 0 of what is not NaN; NaN where nothing is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(values, axis=0)


def _with_macro(
    whole: dict[str, np.ndarray],
    per_class: dict[str, np.ndarray],
    true: np.ndarray,
    predicted: np.ndarray,
    hits: np.ndarray,
) -> Scores:
    occurs = (true + predicted) > 0
    parts = {
        "auroc_macro": per_class["auroc"],
        "auprc_macro": per_class["auprc"],
        "f1_macro": ratio(2 * hits, true + predicted),
        "precision_macro": np.where(occurs, ratio(hits, np.maximum(predicted, 1)), np.nan),
        "recall_macro": np.where(occurs, ratio(hits, np.maximum(true, 1)), np.nan),
    }
    defined = {name: np.isfinite(part).sum(axis=0) for name, part in parts.items()}
    return Scores(whole | {name: nan_mean(part) for name, part in parts.items()}, defined, per_class)


def _binary_scores(
    whole: dict[str, np.ndarray],
    per_class: dict[str, np.ndarray],
    n: np.ndarray,
    counts: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> Scores:
    """Return the metrics of class 1, and the macro means over both classes that papers report."""
    true, predicted, hits = counts
    rejected = n - true - predicted + hits
    both = [np.stack(pair) for pair in ((n - true, true), (n - predicted, predicted), (rejected, hits))]
    whole = whole | {
        "auroc": per_class["auroc"][0],
        "auprc": per_class["auprc"][0],
        "f1": ratio(2 * hits, true + predicted),
        "accuracy": ratio(hits + rejected, n),
        "sensitivity": ratio(hits, true),
        "specificity": ratio(rejected, n - true),
    }
    return _only("binary", _with_macro(whole, per_class, *both))
