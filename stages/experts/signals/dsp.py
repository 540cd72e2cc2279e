"""Signal processing that several experts' `prepare` share: gaps, lead choice, resampling, z-scores.

Not here: what one expert alone does (its own file).
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import scipy.signal
from torch import Tensor

from cache.errors import InputError
from stages.experts.contract import STANDARD_LEADS

ROUNDING = 1e-12
"""Relative error that resampling may leave on a flat lead; far below one step of any recording."""


def as_signals(signals_mv: np.ndarray | Tensor, leads: int = 12) -> np.ndarray:
    """Return [batch, lead, time] as float64; refuses another shape."""
    array = np.asarray(signals_mv.detach().cpu() if isinstance(signals_mv, Tensor) else signals_mv, dtype=np.float64)
    if array.ndim != 3 or array.shape[1] != leads:
        raise InputError(f"signals are {list(array.shape)}; expected [batch, {leads}, time] in standard lead order")
    return array


def fill_gaps(signals: np.ndarray) -> np.ndarray:
    """Interpolate missing samples (NaN or infinite) along time; a wholly missing lead becomes zeros.

    Inner gaps are bridged linearly, gaps at either end hold the nearest sample. Returns a new array only if needed.
    """
    finite = np.isfinite(signals)
    if finite.all():
        return signals
    filled = np.where(finite, signals, 0.0)
    time = np.arange(signals.shape[-1])
    for index in zip(*np.nonzero(~finite.all(-1) & finite.any(-1)), strict=True):
        good = finite[index]
        filled[index] = np.interp(time, time[good], signals[index][good])
    return filled


def pick_leads(signals: np.ndarray, leads: tuple[str, ...]) -> np.ndarray:
    """Choose leads by name out of the standard twelve."""
    return signals[:, [STANDARD_LEADS.index(lead) for lead in leads]]


def resample_linear(signals: np.ndarray, n_samples: int) -> np.ndarray:
    """Interpolate linearly onto `n_samples` equally spaced points, both ends included."""
    n = signals.shape[-1]
    if n == n_samples:
        return signals
    at = np.linspace(0, n - 1, n_samples)
    left = np.minimum(at.astype(np.int64), n - 2)
    weight = at - left
    return signals[..., left] * (1 - weight) + signals[..., left + 1] * weight


def resample_fft(signals: np.ndarray, n_samples: int) -> np.ndarray:
    """Resample by Fourier transform (`scipy.signal.resample`)."""
    return signals if signals.shape[-1] == n_samples else scipy.signal.resample(signals, n_samples, axis=-1)


def is_flat(signals: np.ndarray, axis: int | tuple[int, ...] = -1) -> np.ndarray:
    """Return where signals never leave one value but by rounding (axes kept); a NaN is not flat."""
    low, high = signals.min(axis=axis, keepdims=True), signals.max(axis=axis, keepdims=True)
    return np.asarray(high - low <= ROUNDING * np.maximum(np.abs(low), np.abs(high)))


def zscore(signals: np.ndarray, axis: int | tuple[int, ...] = -1, eps: float = 0.0) -> np.ndarray:
    """Subtract the mean and divide by the population standard deviation + eps; what is flat becomes zeros.

    The deviation of a flat lead is the mean's rounding error, by which the lead must not be divided.
    """
    centred = signals - signals.mean(axis=axis, keepdims=True)
    scale = signals.std(axis=axis, keepdims=True) + eps
    return np.divide(centred, scale, out=np.zeros_like(centred), where=~is_flat(signals, axis) & (scale > 0))


def resample_rate(signals: np.ndarray, rate_hz: float, target_hz: float) -> np.ndarray:
    """Resample to another rate through an anti-aliasing polyphase filter; missing samples stay missing (NaN).

    Gaps are bridged (`fill_gaps`) before filtering and opened again afterwards; the ends are held beyond the record.
    """
    if rate_hz == target_hz:
        return signals
    ratio = Fraction(target_hz / rate_hz).limit_denominator(10_000)
    missing = ~np.isfinite(signals)
    filled = fill_gaps(signals)
    if filled.shape[-1] == 0:
        return filled
    resampled = scipy.signal.resample_poly(filled, ratio.numerator, ratio.denominator, axis=-1, padtype="edge")
    if missing.any():
        at = np.minimum(np.arange(resampled.shape[-1]) * rate_hz / target_hz + 0.5, signals.shape[-1] - 1)
        resampled[missing[..., at.astype(np.int64)]] = np.nan
    return resampled


def hold_ends(signals: np.ndarray, n_samples: int) -> np.ndarray:
    """Hold the last sample of [..., time] until there are `n_samples`; longer signals stay as they are."""
    lacking = max(0, n_samples - signals.shape[-1])
    return np.pad(signals, (*[(0, 0)] * (signals.ndim - 1), (0, lacking)), mode="edge") if lacking else signals


def even_windows(signals: np.ndarray, n_samples: int) -> np.ndarray:
    """Cut [..., time] into the fewest evenly placed windows that cover it: [batch, lead, time] -> [batch, window, ...].

    Up to 1 % of a window may stay uncovered, so that a resampled record's last sample costs no window. Records are at
    least one window long.
    """
    spare = signals.shape[-1] - n_samples
    n_windows = max(1, math.ceil(signals.shape[-1] / n_samples - 0.01))
    starts = np.linspace(0, spare, n_windows).round().astype(int) if n_windows > 1 else [0]
    return np.stack([signals[..., start : start + n_samples] for start in starts], axis=1)
