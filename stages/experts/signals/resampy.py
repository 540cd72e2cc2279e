"""Resampling by a windowed sinc as the package resampy's `kaiser_best` does it, as a sparse matrix.

Lives here: the filter and the weights that follow from it. Not here: other ways to resample (`dsp`).
"""

from __future__ import annotations

from fractions import Fraction
from functools import cache, lru_cache

import numpy as np
import scipy.sparse

ZERO_CROSSINGS = 50
TABLE = 2**13
"""Steps of the filter's table from one zero crossing to the next; between steps it is interpolated linearly."""
ROLL_OFF = 0.917347
BETA = 12.9846
"""Of the Kaiser window."""


def resample_kaiser_best(signals: np.ndarray, rate_hz: float, target_hz: float) -> np.ndarray:
    """Resample [..., time] along time; nothing is padded, so the ends fade.

    Examples
    --------
    >>> resample_kaiser_best(np.ones((1, 500)), 500, 240).shape
    (1, 240)
    """
    if rate_hz == target_hz:
        return signals
    ratio = Fraction(target_hz / rate_hz).limit_denominator(10_000)
    flat = signals.reshape(-1, signals.shape[-1])
    weights = _weights(signals.shape[-1], ratio)
    return np.ascontiguousarray((weights @ flat.T).T).reshape(*signals.shape[:-1], weights.shape[0])


@cache
def half_filter() -> np.ndarray:
    """Return the right half of the filter, float64 [50 * 2**13 + 1]: a sinc cut by a Kaiser window."""
    n = ZERO_CROSSINGS * TABLE
    window = np.kaiser(2 * n + 1, BETA)[n:]
    return window * ROLL_OFF * np.sinc(ROLL_OFF * np.arange(n + 1) / TABLE)


@lru_cache(maxsize=32)
def _weights(n: int, ratio: Fraction) -> scipy.sparse.csr_array:
    """Return what each of `n` samples gives to each resampled one, [resampled, sample]."""
    n_out = n * ratio.numerator // ratio.denominator
    scale = min(1.0, float(ratio))
    table = half_filter() * scale
    slope, step = np.diff(table, append=table[-1]), int(scale * TABLE)
    at = np.arange(n_out) * (1.0 / float(ratio))
    before = at.astype(np.int64)
    fraction = scale * (at - before)
    taps = np.arange(len(table) // step + 1)
    values, rows, columns = [], [], []
    for distance, sample in ((fraction, before[:, None] - taps), (scale - fraction, before[:, None] + 1 + taps)):
        offset = (distance * TABLE).astype(np.int64)
        inside = taps < ((len(table) - offset) // step)[:, None]
        inside &= (sample >= 0) & (sample < n)
        index = np.where(inside, offset[:, None] + taps * step, 0)
        values.append((table[index] + (distance * TABLE - offset)[:, None] * slope[index])[inside])
        rows.append(np.broadcast_to(np.arange(n_out)[:, None], inside.shape)[inside])
        columns.append(sample[inside])
    entries = np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))
    return scipy.sparse.csr_array(entries, shape=(n_out, n))
