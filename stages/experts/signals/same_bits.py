"""What numpy and scipy compute, to the bit, in less time: filters forwards and backwards, medians, quantiles.

Lives here: shortcuts that are worth it for some thousand samples of one record at a time. Not here: any choice of a
filter or a quantile. Values are finite: where numpy's functions look for NaN, these do not.
"""

from __future__ import annotations

import numpy as np
import scipy.signal


class Sosfiltfilt:
    """`scipy.signal.sosfiltfilt` of one filter along the last axis; its start is solved for once, not for every record.

    Examples
    --------
    >>> band = Sosfiltfilt(scipy.signal.butter(2, 20, "lowpass", fs=500, output="sos"))
    >>> band(np.ones((2, 100))).shape
    (2, 100)
    """

    def __init__(self, sections: np.ndarray) -> None:
        self.sections = sections
        taps = 2 * len(sections) + 1 - min(int((sections[:, 2] == 0).sum()), int((sections[:, 5] == 0).sum()))
        self.edge = 3 * taps
        self.start = scipy.signal.sosfilt_zi(sections)[:, None]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Filter [row, time] forwards and backwards; time is longer than three times the filter's taps."""
        head, tail = 2 * x[:, :1] - x[:, self.edge : 0 : -1], 2 * x[:, -1:] - x[:, -2 : -(self.edge + 2) : -1]
        extended = np.concatenate((head, x, tail), axis=-1)
        forwards, _ = scipy.signal.sosfilt(self.sections, extended, zi=self.start * extended[:, :1])
        backwards, _ = scipy.signal.sosfilt(self.sections, forwards[:, ::-1], zi=self.start * forwards[:, -1:])
        return np.asarray(backwards[:, ::-1][:, self.edge : -self.edge])


def median_first_axis(x: np.ndarray) -> np.ndarray:
    """`numpy.median` of [n, ...] over n: sorting along an outer axis compares whole rows at a time."""
    ordered, half = np.sort(x, axis=0), len(x) // 2
    return np.asarray(ordered[half] if len(x) % 2 else (ordered[half - 1] + ordered[half]) / 2)


def median_of_all(x: np.ndarray) -> float:
    """`numpy.median` of all values."""
    flat, half = x.ravel(), x.size // 2
    ordered = np.partition(flat, half)
    return float(ordered[half] if x.size % 2 else (ordered[:half].max() + ordered[half]) / 2)


def quantile_and_median(x: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """`numpy.quantile(x, share)` and `numpy.median(x)` over the last axis, from one partial sort."""
    n = x.shape[-1]
    at = (n - 1) * share
    low, half = int(at), n // 2
    high = min(low + 1, n - 1)
    ordered = np.partition(x, sorted({half - 1, half, low, high} - {-1}), axis=-1)
    a, b, weight = ordered[..., low], ordered[..., high], at - low
    quantile = a + (b - a) * weight if weight < 0.5 else b - (b - a) * (1 - weight)
    median = ordered[..., half] if n % 2 else (ordered[..., half - 1] + ordered[..., half]) / 2
    return quantile, median
