"""Weighted concordant pairs of follow-up times, for many reweightings of the same records.

Lives here: `Pairs`. Not here: which weights make Harrell's or Uno's C (`survival.scorer`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from cache.follow_up import times_and_events


class _Level(NamedTuple):
    """One merge: records in the order of (block, score), and what each earlier event counts there."""

    order: np.ndarray
    later: np.ndarray
    events: np.ndarray
    start: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


class Pairs:
    """Pairs of an event and a record that outlived it.

    Of two records with one time, an event comes before a censored one; two events are not compared. Pairs are counted
    as a merge sort meets them: the records are sorted by time once, and in each of log2(n) rounds the earlier half of
    every block is compared with the later half by running sums over scores. n records cost n log n a reweighting,
    where comparing all pairs would cost n squared.

    Parameters
    ----------
    signed
        Signed times [n], all known (`cache.follow_up`).
    score
        [n]; higher means an earlier event.

    Examples
    --------
    >>> pairs = Pairs(np.array([1.0, 2.0, -3.0]), np.array([0.9, -1.0, 0.2]))
    >>> [(wins, total)] = pairs([np.array([[1.0], [1.0], [0.0]])], np.ones((3, 1)))
    >>> float(wins[0]), float(total[0])
    (2.0, 3.0)
    """

    def __init__(self, signed: np.ndarray, score: np.ndarray) -> None:
        times, events = times_and_events(signed)
        self._rank = np.lexsort((score, ~events, times))
        times, events, score = times[self._rank], events[self._rank], np.asarray(score, np.float64)[self._rank]
        n = len(times)
        same = (times[1:] == times[:-1]) & (events[1:] == events[:-1])
        self._group_last = _ends(same, n)
        tied = same & (score[1:] == score[:-1]) & events[1:]
        self._tied_starts = np.flatnonzero(~np.concatenate([[False], tied])) if n else np.zeros(0, np.int64)
        _, place = np.unique(score, return_inverse=True)
        self._levels = list(_levels(events, place))

    def __call__(self, of_events: Sequence[np.ndarray], of_others: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return weights of concordant pairs (of equal scores half) and of all pairs, [resamples] each.

        Parameters
        ----------
        of_events
            What a record counts as the earlier one, [n, resamples], float64, 0 without the event; several ways of
            weighing events cost little more than one.
        of_others
            What it counts as the later one, [n, resamples].
        """
        weighed, b = [a[self._rank] for a in of_events], of_others[self._rank]
        wins = np.zeros((len(weighed), b.shape[1]))
        for level in self._levels:
            sums = _cumulated(b[level.order] * level.later[:, None])
            beaten = sums[level.lower]
            beaten += sums[level.upper]
            beaten -= 2 * sums[level.start]
            wins += np.stack([np.einsum("ij,ij->j", a[level.events], beaten) for a in weighed]) / 2
        if len(b):
            # equal time, score and event were counted as half a win, and are no pair
            others = np.add.reduceat(b, self._tied_starts, axis=0)
            for number, a in enumerate(weighed):
                tied, alone = (np.add.reduceat(x, self._tied_starts, axis=0) for x in (a, a * b))
                wins[number] -= (tied * others - alone).sum(axis=0) / 4
        sums = _cumulated(b)
        outlived = sums[-1] - sums[self._group_last + 1]
        return [(won, np.einsum("ij,ij->j", a, outlived)) for won, a in zip(wins, weighed, strict=True)]


def _ends(same: np.ndarray, n: int) -> np.ndarray:
    """Return the last position of each record's group, given whether neighbours belong together."""
    ends = np.append(np.flatnonzero(~same), n - 1) if n else np.zeros(0, np.int64)
    return ends[np.searchsorted(ends, np.arange(n))]


def _levels(events: np.ndarray, place: np.ndarray) -> Iterator[_Level]:
    """Yield the merges of records sorted by time; `place`: rank of the score among the different ones."""
    n, size, width = len(events), 1, int(place.max(initial=0)) + 2
    position = np.arange(n)
    while size < n:
        block = position // (2 * size)
        later = (position // size) % 2 == 1
        key = block * width + place
        order = np.argsort(key, kind="stable")
        found = np.flatnonzero(events & ~later)
        ordered, wanted = key[order], key[found]
        yield _Level(
            order,
            later[order].astype(np.float64),
            found,
            np.searchsorted(ordered, block[found] * width),
            np.searchsorted(ordered, wanted),
            np.searchsorted(ordered, wanted, side="right"),
        )
        size *= 2


def _cumulated(weights: np.ndarray) -> np.ndarray:
    """Return running sums with a zero row before them: [n + 1, resamples]."""
    sums = np.zeros((len(weights) + 1, weights.shape[1]))
    np.cumsum(weights, axis=0, out=sums[1:])
    return sums
