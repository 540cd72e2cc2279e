"""Records of any rate at 500 Hz, ten seconds: for what was made for that (detectors, the gate's view of the signal).

Experts do not use it: they resample as their authors do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from scipy.signal import resample_poly

from cache.signals import LEADS, MISSING, N_SAMPLES, RATE_HZ, SignalStore, to_microvolts, to_millivolts

FILTER_HALF_WIDTH = 10
"""Of scipy's default anti-aliasing filter, in samples of the lower rate."""


def row_at_500_hz(signals_uv: np.ndarray, rate_hz: float) -> np.ndarray:
    """Return the first ten seconds of int16 microvolts [12, time] at 500 Hz, [12, 5000]; behind its end = missing."""
    out = np.full((len(LEADS), N_SAMPLES), MISSING, dtype=np.int16)
    if rate_hz == RATE_HZ:
        found = signals_uv[:, :N_SAMPLES]
    else:
        found = to_microvolts(at_500_hz(to_millivolts(signals_uv), rate_hz))
    out[:, : found.shape[1]] = found
    return out


def read_at_500_hz(store: SignalStore, rows: slice) -> np.ndarray:
    """Read contiguous rows of a store as float32 mV [rows, 12, 5000] at 500 Hz; missing, or behind the end = NaN."""
    signals_mv = np.full((rows.stop - rows.start, len(LEADS), N_SAMPLES), np.nan, dtype=np.float32)
    for positions, group_mv, rate_hz in store.read_groups(rows):
        for position, record_mv in zip(positions.tolist(), group_mv, strict=True):
            found = at_500_hz(record_mv, rate_hz)
            signals_mv[position, :, : found.shape[1]] = found
    return signals_mv


def all_at_500_hz(signals: Sequence[tuple[np.ndarray, float]]) -> np.ndarray:
    """Return what `read_at_500_hz` does, of records given as mV [12, time] and rate."""
    signals_mv = np.full((len(signals), len(LEADS), N_SAMPLES), np.nan, dtype=np.float32)
    for out, (record_mv, rate_hz) in zip(signals_mv, signals, strict=True):
        found = at_500_hz(record_mv, rate_hz)
        out[:, : found.shape[1]] = found
    return signals_mv


def at_500_hz(signals_mv: np.ndarray, rate_hz: float) -> np.ndarray:
    """Return at most ten seconds of [12, time] at 500 Hz."""
    ratio = Fraction(RATE_HZ / rate_hz).limit_denominator(1000)
    if ratio != 1 and signals_mv.shape[1]:
        lower = FILTER_HALF_WIDTH * max(ratio.numerator, ratio.denominator)
        enough = math.ceil(N_SAMPLES / ratio) + math.ceil(lower / ratio.numerator) + 1
        signals_mv = resample(signals_mv[:, :enough], ratio)
    return signals_mv[:, :N_SAMPLES]


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
