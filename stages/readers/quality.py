"""What a row of signals.zarr is worth, judged by the finished row. Not here: how a recording becomes one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cache.errors import InputError
from cache.signals import LEADS, MISSING


class Quality(NamedTuple):
    """What a row is worth; the columns of records.parquet of the same names.

    `nan_fraction` and `clipped_fraction` are over the leads that are there and the samples before padding.
    """

    sampling_rate_hz: float
    n_samples: int
    valid: int
    nan_fraction: float
    flat_leads: tuple[str, ...]
    missing_leads: tuple[str, ...]
    clipped_fraction: float


def judge(
    out: np.ndarray, places: Sequence[int], valid: int, at_limit: int, *, rate_hz: float, n_samples: int
) -> Quality:
    """Judge a finished row, of which `places` are the leads that the file has and `at_limit` samples are clipped.

    Raises
    ------
    InputError
        There is not one sample.
    """
    low, high = (out[:, :valid].min(axis=1), out[:, :valid].max(axis=1)) if valid else (np.full(12, MISSING),) * 2
    recorded = [place for place in places if high[place] != MISSING]
    if not recorded:
        raise InputError("there is not one sample in any of its leads")
    holed = [place for place in recorded if low[place] == MISSING]
    n_missing = int((out[holed, :valid] == MISSING).sum()) if holed else 0
    flat = [k for k in recorded if low[k] == high[k] or (k in holed and _flat(out[k, :valid]))]
    return Quality(
        sampling_rate_hz=float(rate_hz),
        n_samples=n_samples,
        valid=valid,
        nan_fraction=n_missing / (len(recorded) * valid),
        flat_leads=tuple(LEADS[k] for k in flat),
        missing_leads=tuple(name for k, name in enumerate(LEADS) if k not in recorded),
        clipped_fraction=at_limit / (len(recorded) * valid),
    )


def _flat(row: np.ndarray) -> bool:
    known = row[row != MISSING]
    return bool(known.min() == known.max())


WAVE_SECONDS = 2.0
"""Holds a beat at any heart rate above 30 a minute."""
PLAUSIBLE_MV = (0.05, 8.0)
"""Height of the QRS complex, in the middle one of the leads, that ECGs of any kind have."""


def typical_height_mv(signals_uv: np.ndarray, rate_hz: float) -> float:
    """Return the height of the largest wave of a beat in mV: the median over time, then over leads; NaN if all is flat.

    Parameters
    ----------
    signals_uv
        int16 microvolts [12, time]; flat and missing leads do not count.

    >>> beats = np.zeros((12, 5000), dtype=np.int16)
    >>> beats[:, ::400] = 1200
    >>> typical_height_mv(beats, 500.0)
    1.2
    """
    size = min(signals_uv.shape[1], round(WAVE_SECONDS * rate_hz))
    n_parts = signals_uv.shape[1] // size
    parts = signals_uv[:, : n_parts * size].reshape(len(signals_uv), n_parts, size)
    low = np.where(parts == MISSING, np.int16(32767), parts).min(axis=2).astype(np.int32)
    heights = np.maximum(parts.max(axis=2) - low, 0)
    leads = np.median(heights, axis=1)
    return float(np.median(leads[leads > 0])) / 1000 if (leads > 0).any() else float("nan")
