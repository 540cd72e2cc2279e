"""An ECG as it lies on paper: grid, calibration pulse, twelve leads, true to scale.

Lives here: drawing with matplotlib. Not here: where leads lie (`layouts`), small pictures of reports (`thumbnail`).
The axes' coordinates are millimetres of the paper, so that nothing needs to be scaled twice.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cache.signals import LEADS
from stages.plots import style
from stages.plots.files import require_matplotlib
from stages.plots.layouts import MM_PER_MV, MM_PER_SECOND, PAPER_SECONDS, SheetLayout, Strip, layout_named
from stages.plots.scale import MILLIVOLTS, SignalScale
from stages.plots.windows import gaps, sheet

EDGE_MM, PULSE_MM, FOOT_MM, LINE_MM = 5.0, 10.0, 8.0, 4.5
PULSE_SECONDS, PULSE_MV = 0.2, 1.0
LETTERS_A_LINE = 150
LEAST_GAP_MM = 0.6


class Shade(NamedTuple):
    """A stretch of the picture with a coloured ground.

    Attributes
    ----------
    lead
        None: all leads.
    start_s, stop_s
        Seconds of the record.
    strength
        -1 ... 1: blue below 0 (against), red above (for); the larger, the stronger.
    """

    lead: str | None
    start_s: float
    stop_s: float
    strength: float


def plot_ecg(
    signals_mv: np.ndarray,
    rate_hz: float = 500.0,
    *,
    layout: str = "3x4",
    rhythm: str = "II",
    start_s: float = 0.0,
    title: str = "",
    notes: Sequence[str] = (),
    shades: Sequence[Shade] = (),
    scale: SignalScale = MILLIVOLTS,
) -> Any:
    """Draw ten seconds of an ECG at 25 mm/s and 10 mm/mV.

    Parameters
    ----------
    signals_mv
        float [12, time] in mV, leads in the order of `cache.signals.LEADS`; missing samples = NaN.
    layout
        3x4 (with a rhythm strip), 6x2 or 12x1.
    rhythm
        Lead of the rhythm strip of 3x4.
    start_s
        First second drawn.
    notes
        Lines below the title: what a reader should know of the signal, such as an exchange of electrodes.
    shades
        Grounds drawn below the traces.
    scale
        Of signals in another unit; a line below the title says so.

    Returns
    -------
    matplotlib.figure.Figure
        As large as the paper; `save_picture` keeps the scale.

    Raises
    ------
    UsageError
        matplotlib is not installed, no such layout, or a start outside of the record.
    InputError
        Signals of another shape.

    Examples
    --------
    >>> figure = plot_ecg(np.zeros((12, 5000)), 500, layout="12x1", title="a flat line")
    >>> [round(25.4 * inches) for inches in figure.get_size_inches()]
    [270, 265]
    """
    require_matplotlib()
    import matplotlib as mpl

    chosen = layout_named(layout, rhythm)
    window = sheet(scale.drawn(signals_mv), rate_hz, start_s)
    notes = [*notes, scale.note] if scale.note else notes
    lines = [line for note in notes for line in textwrap.wrap(note, LETTERS_A_LINE)]
    with mpl.rc_context(style.RC):
        paper = _Paper(chosen, len(lines), start_s)
        paper.head(title, lines)
        for shade in shades:
            paper.shade(shade)
        for strip in chosen.strips:
            paper.strip(strip, window[LEADS.index(strip.lead)], rate_hz)
        paper.pulses()
        pulse = "" if scale is MILLIVOLTS else f"   pulse {PULSE_MV * MM_PER_MV / scale.mm_per_unit:g} {scale.unit}"
        paper.foot(f"25 mm/s   {scale.gain}{pulse}   {rate_hz:g} Hz   from {start_s:g} s")
    return paper.figure


class _Paper:
    """One sheet. The left edge of the grid, the pulses and the strips lie on lines of the 5 mm grid."""

    def __init__(self, layout: SheetLayout, n_lines: int, start_s: float) -> None:
        from matplotlib.figure import Figure

        self.layout, self.start_s = layout, start_s
        self.height_grid = layout.n_rows * layout.row_mm
        self.left, self.bottom = EDGE_MM + PULSE_MM, FOOT_MM
        self.width = self.left + PAPER_SECONDS * MM_PER_SECOND + EDGE_MM
        self.head_mm = 9.0 + LINE_MM * n_lines
        self.height = self.bottom + self.height_grid + self.head_mm
        self.figure = Figure(figsize=(self.width / style.MM_PER_INCH, self.height / style.MM_PER_INCH))
        self.axes = self.figure.add_axes((0.0, 0.0, 1.0, 1.0))
        self.axes.set(xlim=(0, self.width), ylim=(0, self.height))
        self.axes.set_axis_off()
        self._grid()

    def _grid(self) -> None:
        from matplotlib.collections import LineCollection

        right, top = self.left + PAPER_SECONDS * MM_PER_SECOND, self.bottom + self.height_grid
        for step, colour, points, name in ((1, style.FINE, 0.3, "grid-1mm"), (5, style.BOLD, 0.5, "grid-5mm")):
            across = np.arange(EDGE_MM, right + 0.5, step)
            upwards = np.arange(self.bottom, top + 0.5, step)
            lines = [((x, self.bottom), (x, top)) for x in across] + [((EDGE_MM, y), (right, y)) for y in upwards]
            self.axes.add_collection(LineCollection(lines, colors=colour, linewidths=points, zorder=0, gid=name))

    def baseline(self, row: int) -> float:
        """Return where 0 mV of a row lies, on a line of the 5 mm grid."""
        middle = self.bottom + self.height_grid - (row + 0.5) * self.layout.row_mm
        return self.bottom + 5.0 * round((middle - self.bottom) / 5.0 - 0.01)

    def words(self, x: float, y: float, text: str, size: float = 8.0, **more: Any) -> None:
        """Write words at a place of the paper; dollars are dollars."""
        more = {"color": style.WORDS, "parse_math": False, "zorder": 4, **more}
        self.axes.text(x, y, text, fontsize=size, **more)

    def head(self, title: str, lines: Sequence[str]) -> None:
        """Write the title and what is to be known of the signal."""
        self.words(EDGE_MM, self.height - 5.5, title, 10.0, weight="bold", gid="title")
        for k, line in enumerate(lines):
            y = self.height - 6.0 - LINE_MM * (k + 1)
            self.words(EDGE_MM, y, line, color=style.WARN, gid=f"note-{k}")

    def foot(self, text: str) -> None:
        """Write the scale."""
        self.words(EDGE_MM, 3.0, text, color=style.SOFT, gid="scale")

    def pulses(self) -> None:
        """Draw the calibration pulse of 1 mV and 200 ms at the beginning of every row."""
        for row in range(self.layout.n_rows):
            zero, first = self.baseline(row), EDGE_MM + 2.5
            last, high = first + PULSE_SECONDS * MM_PER_SECOND, zero + PULSE_MV * MM_PER_MV
            x, y = (EDGE_MM, first, first, last, last, self.left), (zero, zero, high, high, zero, zero)
            self._trace(np.array(x), np.array(y), f"calibration-{row}")

    def _trace(self, x: np.ndarray, y: np.ndarray, name: str) -> None:
        self.axes.plot(x, y, color=style.TRACE, linewidth=style.TRACE_POINTS, zorder=3, gid=name)

    def strip(self, strip: Strip, wave_mv: np.ndarray, rate_hz: float) -> None:
        """Draw a stretch of a lead; a lead or a stretch without samples is named or shaded."""
        name = f"rhythm-{strip.lead}" if strip.rhythm else f"lead-{strip.lead}"
        x0, zero = self.left + strip.start_s * MM_PER_SECOND, self.baseline(strip.row)
        width, low = (
            strip.seconds * MM_PER_SECOND,
            self.bottom + self.height_grid - (strip.row + 1) * self.layout.row_mm,
        )
        self.words(x0 + 1.0, zero + min(12.0, self.layout.row_mm / 2 - 1.0), strip.lead, 8.5, weight="bold")
        if strip.start_s:
            self.axes.plot((x0, x0), (zero - 3, zero + 3), color=style.SOFT, linewidth=0.8, zorder=2)
        if np.isnan(wave_mv).all():
            self.axes.plot((x0, x0 + width), (zero, zero), color=style.SOFT, linestyle=(0, (2, 3)), linewidth=0.8)
            text = f"{strip.lead}: no samples"
            self.words(x0 + width / 2, zero + 2, text, color=style.WARN, ha="center", gid=f"missing-{name}")
            return
        first = round(strip.start_s * rate_hz)
        wave = wave_mv[first : first + round(strip.seconds * rate_hz) + 1]
        for k, (start, stop) in enumerate(gaps(wave)):
            at, wide = x0 + start / rate_hz * MM_PER_SECOND, max((stop - start) / rate_hz * MM_PER_SECOND, LEAST_GAP_MM)
            self._ground(
                (at, low + 1.0),
                (min(wide, x0 + width - at), self.layout.row_mm - 2.0),
                style.GAP,
                0.55,
                f"gap-{name}-{k}",
            )
        x, y = x0 + np.arange(len(wave)) / rate_hz * MM_PER_SECOND, zero + wave * MM_PER_MV
        self._trace(x, self._within(x, y, name), name)

    def _within(self, x: np.ndarray, y: np.ndarray, name: str) -> np.ndarray:
        """Hold a trace within the grid, and mark where it goes on beyond it."""
        top = self.bottom + self.height_grid
        for outside, edge, marker in ((y > top, top, "^"), (y < self.bottom, self.bottom, "v")):
            for k, (start, stop) in enumerate(gaps(np.where(outside, np.nan, 0.0))):
                middle = float(x[start:stop].mean())
                side = "above" if marker == "^" else "below"
                look: dict[str, Any] = {
                    "color": style.WARN,
                    "marker": marker,
                    "markersize": 5,
                    "clip_on": False,
                    "zorder": 4,
                }
                self.axes.plot([middle], [edge], gid=f"beyond-{side}-{name}-{k}", **look)
        return np.clip(y, self.bottom, top)

    def _ground(self, at: tuple[float, float], size: tuple[float, float], colour: str, alpha: float, name: str) -> None:
        from matplotlib.patches import Rectangle

        patch = Rectangle(at, *size, facecolor=colour, edgecolor="none", alpha=alpha, zorder=1, gid=name)
        self.axes.add_patch(patch)

    def shade(self, shade: Shade) -> None:
        """Colour the ground of a stretch, in every strip that shows it."""
        colour = style.FOR if shade.strength > 0 else style.AGAINST
        for strip in self.layout.strips:
            if shade.lead not in (None, strip.lead):
                continue
            start = max(shade.start_s - self.start_s, strip.start_s)
            stop = min(shade.stop_s - self.start_s, strip.start_s + strip.seconds)
            if stop <= start:
                continue
            low = self.bottom + self.height_grid - (strip.row + 1) * self.layout.row_mm
            at, size = (
                (self.left + start * MM_PER_SECOND, low + 0.5),
                ((stop - start) * MM_PER_SECOND, self.layout.row_mm - 1.0),
            )
            self._ground(at, size, colour, 0.55 * min(abs(shade.strength), 1.0), f"shade-{strip.lead}")
