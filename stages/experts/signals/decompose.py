"""Splitting a series into trend and season: the moving average of DLinear and TEMPO, and STL.

Not here: what a network does with the parts (`dlinear`, `tempo`).
"""

from __future__ import annotations

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CPU_ROWS = 12
"""Series that are averaged at once on a CPU, where more of them no longer fit the cache (half the speed)."""


def moving_average(x: Tensor, kernel_size: int) -> Tensor:
    """Average over `kernel_size` (odd) samples along the last axis, the ends replicated; same shape, float32.

    Summed sample by sample in float32, as the official AvgPool1d does: with EnECG's kernel of 1001 a better sum
    (running totals in float64, ten times as fast) differs from the official numbers by up to 5e-6.
    """
    half = (kernel_size - 1) // 2
    padded = F.pad(x.float().flatten(0, -2)[None], (half, half), mode="replicate")
    rows_at_once = CPU_ROWS if x.device.type == "cpu" else padded.shape[1]
    parts = [F.avg_pool1d(part, kernel_size, stride=1)[0] for part in padded.split(max(1, rows_at_once), dim=1)]
    return torch.cat(parts).view(x.shape)


def stl(x: np.ndarray, period: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decompose series [..., time] by STL (Cleveland et al. 1990, as `statsmodels.tsa.seasonal.STL(period).fit()`).

    Returns trend, season and residual. Without robustness weights STL is linear in its input, so that the two smoothers
    are found once for a length and period, and any number of series is two matrix products.
    """
    trend_operator, season_operator = _stl_operators(x.shape[-1], period)
    trend, season = x @ trend_operator, x @ season_operator
    return trend, season, x - trend - season


@functools.lru_cache(maxsize=8)
def _stl_operators(n_samples: int, period: int) -> tuple[np.ndarray, np.ndarray]:
    """Matrices [time, time] that take a series (a row) to its trend and its season."""
    from statsmodels.tsa.seasonal import STL

    fits = [STL(impulse, period=period).fit() for impulse in np.eye(n_samples)]
    return np.stack([fit.trend for fit in fits]), np.stack([fit.seasonal for fit in fits])
