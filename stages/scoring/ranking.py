"""AUROC and average precision of many reweightings of the same scores, sorted once.

Lives here: one class's ranking. Not here: which metrics a task has (`metrics`), where the weights come from
(`bootstrap`).
"""

from __future__ import annotations

import numpy as np
from scipy import sparse


class Ranking:
    """Scores of one class against the rest.

    With integer weights a result is that of the data set in which each record occurs so often; with weights 1 it is
    `sklearn.metrics.roc_auc_score` and `average_precision_score` (ties count half, or share one threshold).

    Parameters
    ----------
    positive
        Truth, bool [n].
    score
        Higher means more likely positive, [n].
    rows
        Indices of the records with a known label; the weights given later are for all records.
    """

    def __init__(self, positive: np.ndarray, score: np.ndarray, rows: np.ndarray) -> None:
        order = rows[np.argsort(score[rows], kind="stable")]
        self._positive, negative = order[positive[order]], order[~positive[order]]
        high, low = score[self._positive], score[negative]
        below, not_above = np.searchsorted(low, high, side="left"), np.searchsorted(low, high, side="right")
        self._no_ties = bool((below == not_above).all())
        # negatives are counted up to the positives' scores alone: a rare class asks for few of these sums
        ends = np.unique(np.concatenate([[0], below, not_above, [len(low)]]))
        self._below, self._not_above = np.searchsorted(ends, below), np.searchsorted(ends, not_above)
        self._between = sparse.csr_array(
            (np.ones(len(low), np.float32), negative, np.append(0, ends)), shape=(len(ends), len(score))
        )
        self._first_tied = np.searchsorted(high, high, side="left")

    def __call__(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return AUROC and average precision [resamples]; NaN where one side is absent (AP: no positives).

        Parameters
        ----------
        weights
            How often each record counts, [n, resamples]; the arithmetic is done in its dtype.
        """
        of_positives = weights[self._positive]
        negatives, positives = np.cumsum(self._between @ weights, axis=0), _cumulated(of_positives)
        below = negatives[self._below]
        mean_below = below if self._no_ties else (below + negatives[self._not_above]) / 2
        true = positives[-1] - positives[self._first_tied]
        shown = true + (negatives[-1] - below)
        precision = np.divide(true, shown, out=np.zeros_like(true), where=shown > 0)
        wins = np.einsum("ij,ij->j", of_positives, mean_below, dtype=np.float64)
        gained = np.einsum("ij,ij->j", of_positives, precision, dtype=np.float64)
        n_positive, n_negative = positives[-1].astype(np.float64), negatives[-1].astype(np.float64)
        return ratio(wins, n_positive * n_negative), ratio(gained, n_positive)


def _cumulated(weights: np.ndarray) -> np.ndarray:
    """Return running sums down the rows with a zero row before them: [n + 1, resamples]."""
    sums = np.zeros((len(weights) + 1, weights.shape[1]), dtype=weights.dtype)
    np.cumsum(weights, axis=0, out=sums[1:])
    return sums


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Return the quotient, NaN where the denominator is zero."""
    out = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), np.nan)
    return np.divide(numerator, denominator, out=out, where=denominator != 0)
