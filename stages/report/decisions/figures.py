"""Pictures of decisions.

Lives here: the decision curve. Not here: marks and axes (`stages.report.svg`), the numbers (`stages.scoring`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from stages.report.svg import Axes, nice_ticks

_SIZE, _SMALL = (440.0, 300.0), (300.0, 220.0)


def decision_figure(name: str, curve: dict[str, Any], prevalence: float, *, small: bool = False) -> str:
    """Return the net benefit of acting on the probabilities, on everybody (dashed) and on nobody (the line at 0).

    Thresholds are shown as far as four times the prevalence: beyond, hardly anybody would be acted on.

    Parameters
    ----------
    curve
        Of decisions.json: `threshold`, `net_benefit`, `low`, `high`, `treat_all`.
    """
    last = min(1.0, max(0.1, math.ceil(40 * prevalence) / 10))
    threshold = np.array(curve["threshold"])
    shown = threshold <= last + 1e-9
    top = max(float(np.max(np.array(curve["high"])[shown])), prevalence) * 1.08
    y = (-0.25 * top, top)
    axes = Axes(
        _SMALL if small else _SIZE,
        (0.0, last),
        y,
        title=f"Decision curve of {name}",
        labels=("threshold probability", "net benefit"),
        margins=(58, 12, 10, 40),
        ticks=(None, nice_ticks(0, top, 4)),
    )
    axes.line((0, last), (0, 0), "reference")
    for key, css in (
        ("treat_all", "curve s1"),
        ("low", "curve thin s0"),
        ("high", "curve thin s0"),
        ("net_benefit", "curve s0"),
    ):
        x, values = _above(threshold[shown], np.array(curve[key])[shown], y[0])
        axes.line(x, values, css)
    return axes.svg()


def _above(x: np.ndarray, y: np.ndarray, lowest: float) -> tuple[np.ndarray, np.ndarray]:
    """Cut a curve where it leaves the picture, so that its last point lies on the edge."""
    below = np.flatnonzero(y < lowest)
    if not len(below):
        return x, y
    k = int(below[0])
    if k == 0:
        return x[:0], y[:0]
    share = (y[k - 1] - lowest) / (y[k - 1] - y[k])
    return np.append(x[:k], x[k - 1] + share * (x[k] - x[k - 1])), np.append(y[:k], lowest)
