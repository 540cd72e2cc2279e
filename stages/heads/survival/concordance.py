"""Harrell's C of one set of log-hazards: what `score` returns. Metrics with intervals are in `stages.scoring`."""

from __future__ import annotations

import numpy as np

from cache.follow_up import times_and_events

ROWS = 512
"""Records with the event that are compared with all others at a time."""


def harrells_c(signed: np.ndarray, log_hazard: np.ndarray) -> float:
    """Return the share of comparable pairs whose earlier event has the higher log-hazard (Harrell et al. 1982).

    Of a pair the earlier one must have the event; of one time, an event comes before a censored record, and two events
    are not compared. Equal log-hazards count half. NaN where no pair can be compared.

    Examples
    --------
    >>> harrells_c(np.array([1.0, 2.0, -3.0]), np.array([0.9, -1.0, 0.2])).__round__(3)
    0.667
    """
    times, events = times_and_events(signed)
    wins = pairs = 0.0
    first = np.flatnonzero(events)
    for start in range(0, len(first), ROWS):
        rows = first[start : start + ROWS, None]
        later = (times > times[rows]) | ((times == times[rows]) & ~events)
        wins += float((later * ((log_hazard[rows] > log_hazard) + 0.5 * (log_hazard[rows] == log_hazard))).sum())
        pairs += float(later.sum())
    return wins / pairs if pairs else float("nan")
