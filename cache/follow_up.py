"""Follow-up times with their censoring in one number: the time where the event came, minus the time where it did not.

A survival target is one column. 365.0 says that the event came after 365 days, -365.0 that it had not come when the
observation ended there. It is the convention of gradient boosting's Cox objective (XGBoost's `survival:cox`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cache.errors import InputError


def follow_up(time: Any, event: Any) -> np.ndarray:
    """Join times and events to one array.

    Parameters
    ----------
    time
        [n] above 0, of the event or of the end of the observation; NaN where it is not known.
    event
        [n] of 0 (censored) and 1 (the event came); NaN where it is not known.

    Returns
    -------
    float64 [n], NaN where either is not known.

    Raises
    ------
    InputError
        A time that is not above 0 or not finite, or an event that is neither 0 nor 1.

    Examples
    --------
    >>> follow_up([365.0, 30.0], [0, 1]).tolist()
    [-365.0, 30.0]
    """
    times, events = np.asarray(time, np.float64), np.asarray(event, np.float64)
    if times.shape != events.shape:
        raise InputError(f"times have the shape {times.shape}, but events {events.shape}")
    known = ~np.isnan(times) & ~np.isnan(events)
    if (wrong := times[known & ~((times > 0) & np.isfinite(times))]).size:
        raise InputError(f"a follow-up time of {wrong[0]:g}; times must be above 0 and finite")
    if (wrong := events[known & (events != 0) & (events != 1)]).size:
        raise InputError(f"an event of {wrong[0]:g}; events must be 0 (censored) or 1")
    return np.where(known, np.where(events == 1, times, -times), np.nan)


def times_and_events(signed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return times, float64 [n], and whether the event came, bool [n], of `follow_up`'s array (NaN: NaN, False).

    Examples
    --------
    >>> times_and_events(np.array([-365.0, 30.0]))[1].tolist()
    [False, True]
    """
    signed = np.asarray(signed, np.float64)
    return np.abs(signed), signed > 0


def status_at(signed: np.ndarray, horizons: tuple[float, ...]) -> np.ndarray:
    """Return whether the event had not come by each horizon, float64 [n, horizons]: 1, 0, or NaN (censored before)."""
    times, events = times_and_events(signed)
    later = times[:, None] > np.asarray(horizons, np.float64)
    return np.where(later, 1.0, np.where(events[:, None] & ~later, 0.0, np.nan))
