"""A small ECG for a page with many: three rows of four leads, 2.5 s each, as one compact SVG path.

It needs no matplotlib, and the same signal gives the same bytes on every machine. One unit is 0.25 mm of paper.
"""

from __future__ import annotations

import html

import numpy as np

from cache.signals import LEADS
from stages.plots.layouts import LAYOUTS, MM_PER_MV, MM_PER_SECOND
from stages.plots.scale import MILLIVOLTS, SignalScale
from stages.plots.windows import sheet

GRID_ID = "ecg-grid"
UNITS_PER_MM = 4
DRAWN_HZ = 100
"""One unit to the right for each point drawn."""
ROW_UNITS, WIDTH = 100, 1000
HEIGHT = 3 * ROW_UNITS
_SIZE = f'viewBox="0 0 {WIDTH} {HEIGHT}"'


def grid_symbol() -> str:
    """Return the grid that all thumbnails of a page share, a line every 5 mm; put it once before them."""
    step = 5 * UNITS_PER_MM
    lines = "".join(f"M{x} 0v{HEIGHT}" for x in range(0, WIDTH + 1, step))
    lines += "".join(f"M0 {y}h{WIDTH}" for y in range(ROW_UNITS // 2 % step, HEIGHT + 1, step))
    start = '<svg width="0" height="0" aria-hidden="true">'
    return f'{start}<symbol id="{GRID_ID}" {_SIZE}><path d="{lines}"/></symbol></svg>'


def thumbnail(signals_mv: np.ndarray, rate_hz: float, label: str, scale: SignalScale = MILLIVOLTS) -> str:
    """Return a small ECG as SVG.

    Parameters
    ----------
    signals_mv
        float [12, time] in mV; missing = NaN. Ten seconds are drawn, of every 10 ms the sample that lies farthest from
        the lead's median, so that R and S keep their height.
    label
        What a screen reader says.
    scale
        Of signals in another unit, which is written into the picture.
    """
    window = sheet(scale.drawn(signals_mv), rate_hz)
    parts = []
    for strip in LAYOUTS["3x4"].strips:
        if strip.rhythm:
            continue
        x = round(strip.start_s * MM_PER_SECOND * UNITS_PER_MM)
        y = strip.row * ROW_UNITS + ROW_UNITS // 2
        first, n = round(strip.start_s * rate_hz), round(strip.seconds * rate_hz)
        wave = window[LEADS.index(strip.lead), first : first + n]
        parts.append(f'<text x="{x + 4}" y="{y - 34}">{strip.lead}</text>')
        if np.isnan(wave).all():
            parts.append(f'<text x="{x + 90}" y="{y}">no samples</text>')
        else:
            parts.append(f'<path d="{_path(farthest_points(wave, rate_hz, DRAWN_HZ), x, y)}"/>')
    if scale is not MILLIVOLTS:
        parts.append(f'<text x="{WIDTH - 4}" y="{HEIGHT - 6}" text-anchor="end">{scale.gain}</text>')
    title = html.escape(label)
    return f'<svg class="ecg" {_SIZE} role="img" aria-label="{title}"><use href="#{GRID_ID}"/>{"".join(parts)}</svg>'


def farthest_points(wave_mv: np.ndarray, rate_hz: float, points_hz: int) -> np.ndarray:
    """Return one value a point, float [n]: the sample farthest from the median; NaN where there is no sample."""
    n_points = max(int(len(wave_mv) / rate_hz * points_hz), 1)
    starts = np.minimum((np.arange(n_points) * rate_hz / points_hz).astype(np.int64), len(wave_mv) - 1)
    high, low, middle = np.fmax.reduceat(wave_mv, starts), np.fmin.reduceat(wave_mv, starts), np.nanmedian(wave_mv)
    return np.where(high - middle >= middle - low, high, low)


def _path(points_mv: np.ndarray, x: int, y: int) -> str:
    """Write points as relative steps of whole units; equal steps are joined, a gap begins anew."""
    heights = np.rint(np.nan_to_num(-points_mv) * MM_PER_MV * UNITS_PER_MM).astype(int).tolist()
    missing = np.isnan(points_mv).tolist()
    words: list[str] = []
    steps: list[list[int]] = []

    def close() -> None:
        words.extend(f"{'l' if k == 0 else ' '}{dx}{'' if dy < 0 else ' '}{dy}" for k, (dx, dy) in enumerate(steps))
        steps.clear()

    for k, height in enumerate(heights):
        if missing[k]:
            continue
        if k == 0 or missing[k - 1]:
            close()
            words.append(f"M{x + k} {y + height}")
            continue
        rise = height - heights[k - 1]
        if steps and rise == 0 and steps[-1][1] == 0:
            steps[-1][0] += 1
        else:
            steps.append([1, rise])
    close()
    return "".join(words)
