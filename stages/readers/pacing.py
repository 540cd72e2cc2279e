"""Pacemaker spikes in rows of signals.zarr: deflections of at most 6 ms that stand out in several leads at once.

A simple detector for the optional column `pace_spikes`. It sees what the recorder left of the pulses: at 500 Hz and
behind a low-pass of 150 Hz small (bipolar) spikes are gone, and a recording made at 100 Hz has none.
"""

from __future__ import annotations

import numpy as np

from cache.signals import MISSING

LEAST_UV = 150.0
"""A spike stands out of what is 4 to 6 ms around it by this much."""
LEAST_RATIO = 1.5
"""And by this many times the range of the 20 ms before or after it, whichever is calmer; an R wave has slopes there."""
LEAST_LEADS = 4
"""In so many leads, within 2 ms."""
SEVERAL = 3
"""Fewer spikes in ten seconds are as likely artefacts."""
NEAR, AROUND = (-3, -2, 2, 3), np.arange(2, 11, 2)
MARGIN = int(AROUND.max())
BLOCK_ROWS = 8


def count_pace_spikes(signals_uv: np.ndarray) -> list[int]:
    """Count the spikes of each row.

    Parameters
    ----------
    signals_uv
        int16 microvolts [row, 12, time] at 500 Hz; nothing is found within 20 ms of missing samples and of both ends.
    """
    counts: list[int] = []
    for start in range(0, len(signals_uv), BLOCK_ROWS):
        block = signals_uv[start : start + BLOCK_ROWS]
        waves = block.astype(np.float32)
        waves[block == MISSING] = np.nan
        counts += _counts(_stands_out(waves))
    return counts


def _stands_out(waves: np.ndarray) -> np.ndarray:
    """Say where a lead has something narrow and steep, bool [row, lead, time]."""
    n = waves.shape[2] - 2 * MARGIN
    middle, *near = (waves[:, :, MARGIN + shift : MARGIN + shift + n] for shift in (0, *NEAR))
    low, high = near[0], near[0]
    for wave in near[1:]:
        low, high = np.minimum(low, wave), np.maximum(high, wave)
    height = np.maximum(middle - high, low - middle)
    row, lead, time = np.nonzero(height > LEAST_UV)
    sides = (waves[row[:, None], lead[:, None], time[:, None] + MARGIN + sign * AROUND] for sign in (-1, 1))
    calm = np.minimum(*(np.ptp(side, axis=1) for side in sides))
    found = np.zeros(waves.shape, dtype=bool)
    found[row, lead, time + MARGIN] = height[row, lead, time] > LEAST_RATIO * calm
    return found


def _counts(found: np.ndarray) -> list[int]:
    """Count per row the runs of moments at which enough leads agree."""
    near = found.copy()
    near[:, :, 1:] |= found[:, :, :-1]
    near[:, :, :-1] |= found[:, :, 1:]
    agreed = near.sum(axis=1) >= LEAST_LEADS
    begins = agreed[:, 1:] & ~agreed[:, :-1]
    return (begins.sum(axis=1) + agreed[:, 0]).tolist()
