"""Turns any recording into a row of signals.zarr: standard leads, its own rate and length, int16 microvolts.

Policy: at most so many seconds from the beginning; nothing is resampled, filtered or padded. Missing stays missing.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from cache.errors import InputError
from cache.signals import LEADS, LIMIT_UV, MISSING, to_microvolts
from stages.readers.lead_names import lead_columns
from stages.readers.quality import Quality, judge
from stages.readers.recording import SECONDS_KEPT, Counts, Recording, check_rate, samples_kept
from stages.readers.standard_leads import keep_standard
from stages.readers.whole_microvolts import look_up


def standardise(recording: Recording | Counts, seconds: float | None = SECONDS_KEPT) -> tuple[np.ndarray, Quality]:
    """Return a recording as int16 microvolts [12, time], and what it is worth.

    Parameters
    ----------
    seconds
        What is kept from the beginning; None: all.

    Raises
    ------
    InputError
        No standard lead, two of one name, no samples, or a rate that no ECG has.
    """
    recording = keep_standard(recording)
    columns = _columns(recording.leads)
    check_rate(recording.rate_hz)
    if isinstance(recording, Counts):
        if 0 in recording.gains_per_mv:
            raise InputError("a lead has gain 0: it is not calibrated")
        if recording.converters is None:
            return _from_counts(recording, columns, seconds)
        recording = recording.to_recording()
    return _from_millivolts(recording, columns, seconds)


@lru_cache(maxsize=256)
def _columns(leads: tuple[str, ...]) -> list[tuple[int, int]]:
    return lead_columns(leads)


def _from_counts(counts: Counts, columns: list[tuple[int, int]], seconds: float | None) -> tuple[np.ndarray, Quality]:
    valid = samples_kept(len(counts.samples), counts.rate_hz, seconds)
    out = np.full((len(LEADS), valid), MISSING, dtype=np.int16)
    at_limit = 0
    for place, column in columns:
        out[place] = counts.samples[:valid, column]
        at_limit += look_up(out[place], counts.gains_per_mv[column], counts.baselines[column])
    places = [place for place, _ in columns]
    return out, judge(out, places, valid, at_limit, rate_hz=counts.rate_hz, n_samples=counts.n_samples)


def _from_millivolts(
    recording: Recording, columns: list[tuple[int, int]], seconds: float | None
) -> tuple[np.ndarray, Quality]:
    places, chosen = [place for place, _ in columns], [column for _, column in columns]
    valid = samples_kept(recording.signals_mv.shape[1], recording.rate_hz, seconds)
    out = np.full((len(LEADS), valid), MISSING, dtype=np.int16)
    rows = to_microvolts(recording.signals_mv[chosen, :valid])
    out[places] = rows
    at_limit = np.abs(rows.astype(np.int32)) == LIMIT_UV
    if recording.clipped is not None:
        at_limit |= recording.clipped[chosen, :valid]
    n_clipped = int(at_limit.sum())
    return out, judge(out, places, valid, n_clipped, rate_hz=recording.rate_hz, n_samples=recording.n_samples)
