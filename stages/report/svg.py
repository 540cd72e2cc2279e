"""Small inline SVG drawings that follow the page's colours, so that they read in light, in dark and on paper.

Lives here: axes and marks. Not here: what is drawn (`figures`), colours (style.css: classes c0 ... c7, grid, label).
"""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np

Range = tuple[float, float]


def coordinate(value: float) -> str:
    """Write a coordinate with one decimal, without trailing zeros: short and the same everywhere."""
    return f"{value:.1f}".removesuffix(".0")


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return round numbers inside a range, about so many."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((s * power for s in (1, 2, 2.5, 5, 10)), key=lambda s: abs(s - raw))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def tick_text(value: float, ticks: Sequence[float]) -> str:
    """Write a tick with as many decimals as its neighbours need."""
    step = min((abs(b - a) for a, b in itertools.pairwise(ticks)), default=1.0)
    places = max(0, -math.floor(math.log10(step) + 1e-9)) if step < 1 else 0
    while places < 6 and abs(round(step, places) - step) > 1e-9:
        places += 1
    return f"{value + 0.0:.{places}f}".replace("-", "\N{MINUS SIGN}")


class Drawing:
    """An SVG of a given size, in CSS pixels; marks are drawn in the order they are added."""

    def __init__(self, width: float, height: float, title: str) -> None:
        self.width, self.height = width, height
        self._parts = [
            f'<svg viewBox="0 0 {coordinate(width)} {coordinate(height)}" width="{coordinate(width)}" '
            f'height="{coordinate(height)}" role="img" aria-label="{html.escape(title)}">'
        ]

    def line(self, points: Iterable[tuple[float, float]], css: str) -> None:
        """Draw a line through pixel points."""
        path = " ".join(f"{coordinate(x)},{coordinate(y)}" for x, y in points)
        self._parts.append(f'<polyline class="{css}" points="{path}"/>')

    def circle(self, x: float, y: float, radius: float, css: str) -> None:
        """Draw a dot."""
        self._parts.append(
            f'<circle class="{css}" cx="{coordinate(x)}" cy="{coordinate(y)}" r="{coordinate(radius)}"/>'
        )

    def box(self, x: float, y: float, size: tuple[float, float], css: str, opacity: float | None = None) -> None:
        """Draw a filled rectangle of (width, height)."""
        shade = "" if opacity is None else f' fill-opacity="{opacity:.2f}"'
        width, height = (coordinate(max(s, 0)) for s in size)
        self._parts.append(
            f'<rect class="{css}" x="{coordinate(x)}" y="{coordinate(y)}" width="{width}" height="{height}"{shade}/>'
        )

    def text(self, x: float, y: float, words: str, css: str = "label", turned: bool = False) -> None:
        """Write words; `css` holds the anchor (start, middle, end)."""
        turn = f' transform="rotate(-90 {coordinate(x)} {coordinate(y)})"' if turned else ""
        self._parts.append(
            f'<text class="{css}" x="{coordinate(x)}" y="{coordinate(y)}"{turn}>{html.escape(words)}</text>'
        )

    def svg(self) -> str:
        """Return the markup."""
        return "".join([*self._parts, "</svg>"])


class Axes:
    """A drawing with a data frame: two linear axes with a light grid and labels.

    Parameters
    ----------
    margins
        Left, right, top, bottom, in pixels.
    """

    def __init__(
        self,
        size: tuple[float, float],
        x: Range,
        y: Range,
        *,
        title: str,
        labels: tuple[str, str] = ("", ""),
        margins: tuple[float, float, float, float] = (46, 12, 10, 40),
        ticks: tuple[Sequence[float] | None, Sequence[float] | None] = (None, None),
    ) -> None:
        self.drawing = Drawing(*size, title)
        left, right, top, bottom = margins
        self._frame = (left, size[0] - right, top, size[1] - bottom)
        self._x, self._y = x, y
        self.x_ticks = nice_ticks(*x) if ticks[0] is None else ticks[0]
        self.y_ticks = nice_ticks(*y) if ticks[1] is None else ticks[1]
        self._draw_frame(labels)

    def px(self, value: float) -> float:
        """Return the pixel of an x value."""
        left, right, _, _ = self._frame
        return left + (value - self._x[0]) / (self._x[1] - self._x[0]) * (right - left)

    def py(self, value: float) -> float:
        """Return the pixel of a y value."""
        _, _, top, bottom = self._frame
        return bottom - (value - self._y[0]) / (self._y[1] - self._y[0]) * (bottom - top)

    def _draw_frame(self, labels: tuple[str, str]) -> None:
        left, right, top, bottom = self._frame
        for tick in self.x_ticks:
            self.drawing.line([(self.px(tick), top), (self.px(tick), bottom)], "grid")
            self.drawing.text(self.px(tick), bottom + 14, tick_text(tick, self.x_ticks), "label middle")
        for tick in self.y_ticks:
            self.drawing.line([(left, self.py(tick)), (right, self.py(tick))], "grid")
            self.drawing.text(left - 6, self.py(tick) + 3.5, tick_text(tick, self.y_ticks), "label end")
        if labels[0]:
            self.drawing.text((left + right) / 2, bottom + 31, labels[0], "label middle")
        if labels[1]:
            self.drawing.text(12, (top + bottom) / 2, labels[1], "label middle", turned=True)

    def line(self, x: np.ndarray | Sequence[float], y: np.ndarray | Sequence[float], css: str) -> None:
        """Draw a line through data points."""
        self.drawing.line(((self.px(a), self.py(b)) for a, b in zip(x, y, strict=True)), css)

    def dots(self, x: np.ndarray, y: np.ndarray, css: str, radius: float | np.ndarray = 3) -> None:
        """Draw dots at data points; `radius` may be one for each."""
        for a, b, r in zip(x, y, np.broadcast_to(radius, len(x)), strict=True):
            self.drawing.circle(self.px(a), self.py(b), float(r), css)

    def bars(self, edges: np.ndarray, heights: np.ndarray, css: str) -> None:
        """Draw a histogram's bars from the x axis, with a pixel between them."""
        for k, height in enumerate(heights):
            x, y = self.px(edges[k]), self.py(height)
            self.drawing.box(x + 0.5, y, (self.px(edges[k + 1]) - x - 1, self.py(self._y[0]) - y), css)

    def svg(self) -> str:
        """Return the markup."""
        return self.drawing.svg()
