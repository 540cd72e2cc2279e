"""Turns any recording into one row of signals.zarr: standard leads, 500 Hz, ten seconds, int16 microvolts.

Policy: the first ten seconds of a longer record; a shorter one is padded with missing samples. Missing stays missing.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache

import numpy as np
from scipy.signal import resample_poly

from cache.errors import InputError
from cache.signals import LEADS, LIMIT_UV, MISSING, N_SAMPLES, RATE_HZ, to_microvolts
from stages.readers.quality import Quality, judge
from stages.readers.recording import Counts, Recording, check_rate, lead_columns
from stages.readers.whole_microvolts import look_up, standardise_usual

FILTER_HALF_WIDTH = 10
"""Of scipy's default anti-aliasing filter, in samples of the lower rate."""


def standardise(recording: Recording | Counts, out: np.ndarray) -> Quality:
    """Write a recording into `out`, int16 [12, 5000], and judge it.

    Raises
    ------
    InputError
        No standard lead, two of one name, no samples, or a rate that no ECG has. `out` is then undefined.
    """
    quality = standardise_usual(recording, out) if isinstance(recording, Counts) else None
    return standardise_any(recording, out) if quality is None else quality


def standardise_any(recording: Recording | Counts, out: np.ndarray) -> Quality:
    """Do what `standardise` does, whatever the recording; several times slower where it is of the usual kind."""
    columns = _columns(recording.leads)
    check_rate(recording.rate_hz)
    if isinstance(recording, Counts):
        if 0 in recording.gains_per_mv:
            raise InputError("a lead has gain 0: it is not calibrated")
        if recording.rate_hz == RATE_HZ and recording.converters is None:
            return _from_counts(recording, columns, out)
        recording = recording.to_recording()
    return _from_millivolts(recording, columns, out)


def _leave_missing(out: np.ndarray, columns: list[tuple[int, int]], valid: int) -> None:
    """Mark what a recording does not have: leads, and the time after its end."""
    out[:, valid:] = MISSING
    if len(columns) < len(LEADS):
        out[[k for k in range(len(LEADS)) if k not in {place for place, _ in columns}], :valid] = MISSING


@lru_cache(maxsize=256)
def _columns(leads: tuple[str, ...]) -> list[tuple[int, int]]:
    return lead_columns(leads)


def _from_counts(counts: Counts, columns: list[tuple[int, int]], out: np.ndarray) -> Quality:
    valid = min(len(counts.samples), N_SAMPLES)
    _leave_missing(out, columns, valid)
    at_limit = 0
    for place, column in columns:
        out[place, :valid] = counts.samples[:valid, column]
        at_limit += look_up(out[place, :valid], counts.gains_per_mv[column], counts.baselines[column])
    return judge(
        out, [place for place, _ in columns], valid, at_limit, rate_hz=counts.rate_hz, n_samples=counts.n_samples
    )


def _from_millivolts(recording: Recording, columns: list[tuple[int, int]], out: np.ndarray) -> Quality:
    chosen = [column for _, column in columns]
    signals_mv = recording.signals_mv[chosen]
    valid, signals_mv = _at_500_hz(signals_mv, recording.rate_hz)
    _leave_missing(out, columns, valid)
    rows = to_microvolts(signals_mv)
    out[[place for place, _ in columns], :valid] = rows
    at_limit = np.abs(rows.astype(np.int32)) == LIMIT_UV
    if recording.clipped is not None:
        nearest = np.rint(np.arange(valid) * (recording.rate_hz / RATE_HZ)).astype(int)
        at_limit |= recording.clipped[chosen][:, np.minimum(nearest, recording.clipped.shape[1] - 1)]
    places, n_clipped = [place for place, _ in columns], int(at_limit.sum())
    return judge(out, places, valid, n_clipped, rate_hz=recording.rate_hz, n_samples=recording.n_samples)


def _at_500_hz(signals_mv: np.ndarray, rate_hz: float) -> tuple[int, np.ndarray]:
    """Return at most ten seconds at 500 Hz and their length."""
    ratio = Fraction(RATE_HZ / rate_hz).limit_denominator(1000)
    if ratio != 1 and signals_mv.shape[1]:
        lower = FILTER_HALF_WIDTH * max(ratio.numerator, ratio.denominator)
        enough = math.ceil(N_SAMPLES / ratio) + math.ceil(lower / ratio.numerator) + 1
        signals_mv = resample(signals_mv[:, :enough], ratio)
    signals_mv = signals_mv[:, :N_SAMPLES]
    return signals_mv.shape[1], signals_mv


def resample(signals_mv: np.ndarray, ratio: Fraction) -> np.ndarray:
    """Change the rate of [lead, time] by `ratio` with a linear-phase anti-aliasing filter (polyphase).

    Gaps are bridged by straight lines for the filter only; every output sample whose nearest input is missing is NaN.
    """
    missing = ~np.isfinite(signals_mv)
    if missing.any():
        signals_mv = np.stack([_bridged(row) for row in signals_mv])
    resampled = resample_poly(signals_mv, ratio.numerator, ratio.denominator, axis=1, padtype="line")
    if missing.any():
        nearest = np.rint(np.arange(resampled.shape[1]) / float(ratio)).astype(int)
        resampled[missing[:, np.minimum(nearest, missing.shape[1] - 1)]] = np.nan
    return resampled


def _bridged(row: np.ndarray) -> np.ndarray:
    known = np.flatnonzero(np.isfinite(row))
    return np.interp(np.arange(len(row)), known, row[known]) if len(known) else np.zeros(len(row))
