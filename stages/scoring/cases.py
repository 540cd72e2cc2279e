"""Which records of a task are worth a look: the most certain, right and wrong, the least certain, the mislabelled.

Lives here: choosing among predictions that were made out of sample. Not here: pictures (`stages.report`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cache.records import Target
from stages.scoring.blocks import PredictionBlock, rows_in_common


class Cases(NamedTuple):
    """Rows of a block, the most telling one first; int arrays.

    Attributes
    ----------
    right, wrong
        Of the most certain ones; of a regression, the smallest and the largest errors.
    unsure
        Least certain ones; of a regression, those on which the experts differ the most.
    mislabelled
        Those whose label is probably wrong; none for a regression.
    """

    right: np.ndarray
    wrong: np.ndarray
    unsure: np.ndarray
    mislabelled: np.ndarray


def choose(target: Target, block: PredictionBlock, experts: list[PredictionBlock], count: int) -> Cases:
    """Choose at most `count` records of each kind; none of a survival task.

    Parameters
    ----------
    block
        Labelled test records of one method, sorted: ties go to the first.
    experts
        What each single expert says of the same task; used for a regression alone.
    """
    if target.kind == "survival":
        # of a censored record nobody knows whether the answer was right
        return Cases(_NONE, _NONE, _NONE, _NONE)
    if target.kind == "regression":
        error = np.abs(block.y_pred.astype(np.float64) - block.y_true)
        return Cases(_lowest(error, count), _lowest(-error, count), _lowest(-_spread(block, experts), count), _NONE)
    of_truth, doubt = _confidence(target, block)
    right = of_truth > 0.5 if target.kind != "multiclass" else block.y_pred.argmax(axis=1) == block.y_true
    return Cases(
        _lowest(np.where(right, doubt, np.inf), count),
        _lowest(np.where(right, np.inf, of_truth), count),
        _lowest(-doubt, count),
        label_issues(target, block)[:count],
    )


_NONE = np.zeros(0, dtype=np.int64)


def _lowest(scores: np.ndarray, count: int) -> np.ndarray:
    order = np.argsort(scores, kind="stable")[:count]
    return order[np.isfinite(scores[order])]


def _confidence(target: Target, block: PredictionBlock) -> tuple[np.ndarray, np.ndarray]:
    """Return the probability of what is true, and the doubt, [n]; of several findings those of the worst class."""
    if target.kind == "multiclass":
        ranked = np.sort(block.y_pred.astype(np.float64), axis=1)
        of_truth = np.take_along_axis(block.y_pred, block.y_true[:, None], axis=1)[:, 0].astype(np.float64)
        return of_truth, 1.0 - (ranked[:, -1] - ranked[:, -2])
    truth = block.y_true if block.y_true.ndim == 2 else block.y_true[:, None]
    predicted = block.y_pred.astype(np.float64).reshape(truth.shape)
    of_truth = np.where(np.isnan(truth), np.nan, np.where(truth == 1, predicted, 1.0 - predicted))
    doubt = np.where(np.isnan(truth), np.nan, 1.0 - 2.0 * np.abs(predicted - 0.5))
    return np.nanmin(of_truth, axis=1), np.nanmax(doubt, axis=1)


def _spread(block: PredictionBlock, experts: list[PredictionBlock]) -> np.ndarray:
    """Return the standard deviation over experts, [n]; -inf where fewer than two speak."""
    said = np.full((len(experts), len(block)), np.nan)
    for e, expert in enumerate(experts):
        rows, place = rows_in_common(expert, block)
        said[e, place] = expert.y_pred[rows]
    enough = (~np.isnan(said)).sum(axis=0) >= 2
    found = np.full(len(block), -np.inf)
    found[enough] = np.nanstd(said[:, enough], axis=0)
    return found


def label_issues(target: Target, block: PredictionBlock) -> np.ndarray:
    """Return the rows whose label is probably wrong by confident learning, the least believable label first.

    The rule of Northcutt et al. 2021 (cleanlab's filter "confident_learning"): a class's threshold is the mean
    probability of the class over the records labelled so; a record is an issue where the most probable of the classes
    that reach their threshold is not its label. They are ranked by the probability of the label. Several findings are
    judged one by one; a record counts with its worst.

    Parameters
    ----------
    block
        Predictions of models that have not learnt from these records.
    """
    if target.kind == "regression":
        return _NONE
    if target.kind == "multiclass":
        return _ranked(_issues(block.y_true, block.y_pred.astype(np.float64)))
    truth = block.y_true if block.y_true.ndim == 2 else block.y_true[:, None]
    predicted = block.y_pred.astype(np.float64).reshape(truth.shape)
    worst = np.full(len(block), np.inf)
    for k in range(truth.shape[1]):
        known = ~np.isnan(truth[:, k])
        both = np.column_stack([1.0 - predicted[known, k], predicted[known, k]])
        worst[known] = np.minimum(worst[known], _issues(truth[known, k].astype(np.int64), both))
    return _ranked(worst)


def _issues(label: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Return the probability of the label where it is an issue, inf elsewhere, [n]."""
    n_classes = probability.shape[1]
    members = label[:, None] == np.arange(n_classes)
    sums, counts = (probability * members).sum(axis=0), members.sum(axis=0)
    threshold = np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)
    reached = np.where(probability >= threshold - 1e-12, probability, -np.inf)
    suggested = reached.argmax(axis=1)
    issue = np.isfinite(reached.max(axis=1, initial=-np.inf)) & (suggested != label)
    return np.where(issue, probability[np.arange(len(label)), label], np.inf)


def _ranked(scores: np.ndarray) -> np.ndarray:
    order = np.argsort(scores, kind="stable")
    return order[np.isfinite(scores[order])]
