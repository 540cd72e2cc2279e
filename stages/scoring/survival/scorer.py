"""The metrics of a survival task, for any reweighting of the records (docs/methods.md has the formulas).

Lives here: Harrell's and Uno's C, time-dependent AUC and Brier score with inverse-probability-of-censoring weights,
calibration in fifths. Censoring is estimated anew from the reweighted records themselves, so that all of it can be
computed from predictions.parquet alone. Not here: pairs (`survival.concordance`), curves (`survival.curves`).
"""

from __future__ import annotations

import numpy as np

from cache.follow_up import status_at, times_and_events
from cache.records import Target
from stages.scoring.ranking import Ranking, ratio
from stages.scoring.survival.concordance import Pairs
from stages.scoring.survival.kaplan_meier import KaplanMeier

FIFTHS = 5
AT_HORIZONS = ("auc", "brier", "calibration_error")
"""Metrics that each horizon has."""
Arrays = dict[str, np.ndarray]


class SurvivalScorer:
    """One method's predictions of one survival task.

    Parameters
    ----------
    signed
        Signed times [n] (`cache.follow_up`); NaN: not known, left out.
    predicted
        [n, 1 + horizons]: log-hazards, and probabilities that the event has not come by each horizon.
    """

    def __init__(self, target: Target, signed: np.ndarray, predicted: np.ndarray) -> None:
        self._rows = np.flatnonzero(~np.isnan(signed))
        signed, predicted = signed[self._rows], predicted[self._rows].astype(np.float64)
        self._times, self._events = times_and_events(signed)
        self._horizons, self._alive = target.horizons, predicted[:, 1:]
        self._pairs = Pairs(signed, predicted[:, 0])
        self._censoring = KaplanMeier(signed, of_censoring=True)
        status = status_at(signed, target.horizons)
        self._status = status
        self._rankings = [
            Ranking(status[:, h] == 0, -self._alive[:, h], np.flatnonzero(~np.isnan(status[:, h])))
            for h in range(len(target.horizons))
        ]
        self._fifths = [_fifths(signed, self._alive[:, h]) for h in range(len(target.horizons))]

    def __call__(self, weights: np.ndarray) -> tuple[Arrays, Arrays]:
        """Return metric -> [resamples], and metric -> [horizons, resamples], of weights [n, resamples]."""
        weights = weights[self._rows].astype(np.float64)
        if not len(weights):
            return self._undefined(weights.shape[1])
        free = self._censoring.curve(weights)
        before = self._censoring.before(free)
        per_horizon = [self._at(h, weights, free, before) for h in range(len(self._horizons))]
        found = {name: np.stack([values[name] for values in per_horizon]) for name in AT_HORIZONS}
        harrell, uno = self._pairs(
            [weights * self._events[:, None], weights * self._undoing_censoring(before)], weights
        )
        return {
            "c_harrell": ratio(*harrell),
            "c_uno": ratio(*uno),
            "auc_mean": found["auc"].mean(axis=0),
            "brier_integrated": self._integrated(found["brier"]),
            "calibration_error": found["calibration_error"][-1],
        }, found

    def _undefined(self, n_resamples: int) -> tuple[Arrays, Arrays]:
        nothing = np.full((len(self._horizons), n_resamples), np.nan)
        names = ("c_harrell", "c_uno", "auc_mean", "brier_integrated", "calibration_error")
        return dict.fromkeys(names, nothing[0]), dict.fromkeys(AT_HORIZONS, nothing)

    def _undoing_censoring(self, before: np.ndarray) -> np.ndarray:
        """Return Uno's weights of events until the last horizon (Uno et al. 2011), [n, resamples]."""
        counted = (self._events & (self._times <= self._horizons[-1]))[:, None]
        return np.divide(counted, before**2, out=np.zeros_like(before), where=counted & (before > 0))

    def _at(self, h: int, weights: np.ndarray, free: np.ndarray, before: np.ndarray) -> Arrays:
        """Return the metrics of one horizon, [resamples] each; NaN where nobody is observed beyond it."""
        came, later = (self._status[:, h] == 0)[:, None], (self._status[:, h] == 1)[:, None]
        of_event = np.divide(came, before, out=np.zeros_like(before), where=came & (before > 0))
        at_horizon = self._censoring.at(free, self._horizons[h])
        observed = (weights * later).sum(axis=0) > 0
        of_later = np.divide(1.0, at_horizon, out=np.zeros_like(at_horizon), where=observed & (at_horizon > 0))
        alive = self._alive[:, h, None]
        squared = (weights * of_event * alive**2).sum(axis=0) + (weights * later * (1 - alive) ** 2).sum(
            axis=0
        ) * of_later
        auc, _ = self._rankings[h](weights * np.where(came, of_event, 1.0))
        return {
            "auc": auc,
            "brier": np.where(observed, ratio(squared, weights.sum(axis=0)), np.nan),
            "calibration_error": np.where(observed, self._gap(h, weights), np.nan),
        }

    def _gap(self, h: int, weights: np.ndarray) -> np.ndarray:
        """Mean distance of predicted and observed survival over fifths of equal counts."""
        total, gap = np.zeros(weights.shape[1]), np.zeros(weights.shape[1])
        for rows, estimator in self._fifths[h]:
            part = weights[rows]
            n = part.sum(axis=0)
            observed = estimator.at(estimator.curve(part), self._horizons[h])
            predicted = ratio(self._alive[rows, h] @ part, n)
            gap += np.where(n > 0, n * abs(predicted - observed), 0.0)
            total += n
        return ratio(gap, total)

    def _integrated(self, brier: np.ndarray) -> np.ndarray:
        """Mean over the time between the first and the last horizon, by trapezoids; of one horizon its own."""
        if len(brier) == 1:
            return brier[0]
        return np.trapezoid(brier, self._horizons, axis=0) / (self._horizons[-1] - self._horizons[0])


def _fifths(signed: np.ndarray, alive: np.ndarray) -> list[tuple[np.ndarray, KaplanMeier]]:
    parts = np.array_split(np.argsort(alive, kind="stable"), FIFTHS)
    return [(rows, KaplanMeier(signed[rows])) for rows in parts if len(rows)]
