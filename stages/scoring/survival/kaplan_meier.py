"""Kaplan-Meier's estimator, of the event or of the censoring, for many reweightings of the same records."""

from __future__ import annotations

import numpy as np

from cache.follow_up import times_and_events


class KaplanMeier:
    """Survival curves of weighted records (Kaplan and Meier 1958).

    Parameters
    ----------
    signed
        Signed times [n], all known (`cache.follow_up`).
    of_censoring
        Estimate the chance of not yet being censored. Of one time, events come first: who had the event then is no
        longer at risk of being censored.

    Attributes
    ----------
    times
        The different times, ascending, [t].

    Examples
    --------
    >>> curve = KaplanMeier(np.array([1.0, 2.0, -3.0])).curve(np.ones((3, 1)))
    >>> curve[:, 0].round(3).tolist()
    [0.667, 0.333, 0.333]
    """

    def __init__(self, signed: np.ndarray, *, of_censoring: bool = False) -> None:
        times, events = times_and_events(signed)
        self._order = np.argsort(times, kind="stable")
        self._events = events[self._order].astype(np.float64)[:, None]
        self._of_censoring = of_censoring
        self.times, self._starts, self._group = np.unique(times[self._order], return_index=True, return_inverse=True)
        self._group_of = np.empty(len(times), np.int64)
        self._group_of[self._order] = self._group

    def curve(self, weights: np.ndarray) -> np.ndarray:
        """Return the curve just after each of `times`, [t, resamples], of weights [n, resamples]."""
        at_risk, events, leaving = self.counts(weights)
        lost = leaving - events if self._of_censoring else events
        exposed = at_risk - events if self._of_censoring else at_risk
        share = np.divide(lost, exposed, out=np.zeros_like(lost), where=exposed > 0)
        return np.cumprod(1 - share, axis=0)

    def counts(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return who is at risk, has the event, and leaves at each of `times`, [t, resamples]."""
        weights = weights[self._order].astype(np.float64)
        leaving, events = self._by_time(weights), self._by_time(weights * self._events)
        at_risk = np.cumsum(leaving[::-1], axis=0)[::-1]
        return at_risk, events, leaving

    def _by_time(self, values: np.ndarray) -> np.ndarray:
        """Sum sorted records [n, resamples] over equal times."""
        return values if len(self._starts) == len(values) else np.add.reduceat(values, self._starts, axis=0)

    def before(self, curve: np.ndarray) -> np.ndarray:
        """Return the curve just before each record's own time, [n, resamples]."""
        return np.concatenate([np.ones_like(curve[:1]), curve])[self._group_of]

    def at(self, curve: np.ndarray, horizon: float) -> np.ndarray:
        """Return the curve at a horizon, [resamples]."""
        after = int(np.searchsorted(self.times, horizon, side="right"))
        return curve[after - 1] if after else np.ones(curve.shape[1])
