"""The samples that a strip shows, and where some are missing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cache.errors import InputError, UsageError
from cache.signals import LEADS
from stages.plots.layouts import PAPER_SECONDS


def sheet(signals_mv: np.ndarray, rate_hz: float, start_s: float = 0.0) -> np.ndarray:
    """Return the ten seconds of one sheet, [12, time] in mV; behind the record's end NaN.

    Raises
    ------
    InputError
        Signals of another shape, or a rate that is not positive.
    UsageError
        A start that lies outside the record.
    """
    signals_mv = np.asarray(signals_mv, dtype=np.float32)
    if signals_mv.ndim != 2 or signals_mv.shape[0] != len(LEADS) or not rate_hz > 0:
        raise InputError(
            f"an ECG to draw is float [12, time] in mV with a rate in Hz; got {signals_mv.shape} at {rate_hz:g} Hz"
        )
    seconds = signals_mv.shape[1] / rate_hz
    if not 0 <= start_s < max(seconds, 1e-9):
        raise UsageError(f"--start {start_s:g}: the record has {seconds:.1f} s; start between 0 and there")
    first, width = round(start_s * rate_hz), round(PAPER_SECONDS * rate_hz)
    found = np.full((len(LEADS), width), np.nan, dtype=np.float32)
    part = signals_mv[:, first : first + width]
    found[:, : part.shape[1]] = part
    return found


def gaps(wave_mv: np.ndarray) -> Iterator[tuple[int, int]]:
    """Give the runs of missing samples, as (first, one behind the last)."""
    edges = np.flatnonzero(np.diff(np.isnan(wave_mv).astype(np.int8), prepend=0, append=0))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
