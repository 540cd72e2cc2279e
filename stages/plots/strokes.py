"""A small ECG as bytes, for a page that draws thousands of them itself: what `thumbnail` shows, at half its points."""

from __future__ import annotations

import numpy as np

from cache.signals import LEADS
from stages.plots.layouts import LAYOUTS
from stages.plots.thumbnail import farthest_points
from stages.plots.windows import sheet

POINTS_HZ = 50
UNITS_PER_MV = 40
GAP = -128
"""No sample."""
STRIP_SECONDS = 2.5
_STRIPS = [strip for strip in LAYOUTS["3x4"].strips if not strip.rhythm]


def packed_strokes(signals_mv: np.ndarray | None, rate_hz: float) -> np.ndarray:
    """Return 2.5 s of each lead, int8 [12, 125]: 1/40 mV a unit, from -3.175 to 3.175 mV; -128 = missing.

    Of every 20 ms the sample that lies farthest from the lead's median is kept. Leads stand in the order of
    `cache.signals.LEADS`, each at the seconds where the 3x4 layout shows it.

    Parameters
    ----------
    signals_mv
        float [12, time] in mV; missing = NaN. None: nothing is known of the record.

    Examples
    --------
    >>> packed_strokes(np.full((12, 5000), 0.5), 500.0)[0, :3].tolist()
    [20, 20, 20]
    """
    found = np.full((len(LEADS), round(STRIP_SECONDS * POINTS_HZ)), GAP, dtype=np.int8)
    if signals_mv is None:
        return found
    window = sheet(signals_mv, rate_hz)
    for strip in _STRIPS:
        first, n = round(strip.start_s * rate_hz), round(strip.seconds * rate_hz)
        wave = window[LEADS.index(strip.lead), first : first + n]
        if np.isnan(wave).all():
            continue
        points = farthest_points(wave, rate_hz, POINTS_HZ)[: found.shape[1]]
        units = np.clip(np.rint(np.nan_to_num(points) * UNITS_PER_MV), -127, 127)
        found[LEADS.index(strip.lead), : len(points)] = np.where(np.isnan(points), GAP, units)
    return found
