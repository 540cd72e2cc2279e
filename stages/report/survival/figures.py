"""Pictures of a survival task, as inline SVG.

Lives here: what is drawn. Not here: curves (`stages.scoring.survival.curves`), marks and axes (`stages.report.svg`).
"""

from __future__ import annotations

import numpy as np

from cache.records import Target
from stages.report.svg import Axes
from stages.scoring.blocks import PredictionBlock
from stages.scoring.survival.curves import RiskGroup, horizon_calibration, risk_thirds

_SIZE, _MARGINS = (560.0, 380.0), (96.0, 16.0, 10.0, 116.0)
_MOST_STEPS = 200
_LEAST_GAP = 34.0
"""Pixels between two numbers at risk."""
_COLOURS = {"lowest third": "c2", "middle third": "c0", "highest third": "c1"}
_UNIT = (0.0, 1.0)


def kaplan_meier_figure(target: Target, block: PredictionBlock) -> str:
    """Return observed survival of the thirds by predicted risk, until the last horizon, with numbers at risk below."""
    groups, last = risk_thirds(target, block), target.horizons[-1]
    lowest = min(float(group.alive[group.time <= last][-1]) for group in groups)
    moments = _apart(target.horizons)
    bottom = max(0.0, np.floor(10 * (lowest - 0.05)) / 10)
    axes = Axes(
        _SIZE,
        (0.0, last),
        (bottom, 1.0),
        title=f"Kaplan-Meier curves of {target.name} by predicted risk",
        labels=(f"{target.unit} from the ECG", "free of the event"),
        margins=_MARGINS,
        ticks=(tuple(moments), None),
    )
    for group in groups:
        axes.line(*_steps(group, last), f"curve {_COLOURS[group.name]}")
    _write_at_risk(axes, groups, moments)
    return axes.svg()


def _steps(group: RiskGroup, last: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the corners of a step function until `last`, thinned to steps that a reader can see."""
    inside = group.time <= last
    time, alive = group.time[inside], group.alive[inside]
    falls = np.flatnonzero(np.diff(alive, prepend=np.inf) < 0)
    if len(falls) > _MOST_STEPS:
        falls = falls[np.unique(np.linspace(0, len(falls) - 1, _MOST_STEPS).astype(int))]
    time, alive = time[falls], alive[falls]
    x = np.append(np.repeat(time, 2)[1:], last)
    return x, np.repeat(alive, 2)


def _apart(horizons: tuple[float, ...]) -> dict[float, int]:
    """Return moment -> its number among 0 and the horizons, without those whose numbers would touch."""
    moments, room = (0.0, *horizons), horizons[-1] * _LEAST_GAP / (_SIZE[0] - _MARGINS[0] - _MARGINS[1])
    kept = {horizons[-1]: len(horizons)}
    for number in range(len(moments) - 1):
        if all(abs(moments[number] - other) >= room for other in kept):
            kept[moments[number]] = number
    return dict(sorted(kept.items()))


def _write_at_risk(axes: Axes, groups: list[RiskGroup], moments: dict[float, int]) -> None:
    top = _SIZE[1] - _MARGINS[3] + 52
    axes.drawing.text(8, top, "at risk", "label start")
    for row, group in enumerate(groups):
        y = top + 17 * (row + 1)
        axes.drawing.line([(8, y - 4), (22, y - 4)], f"curve {_COLOURS[group.name]}")
        axes.drawing.text(27, y, group.name.removesuffix(" third"), "label start strong")
        for moment, number in moments.items():
            axes.drawing.text(axes.px(moment), y, f"{group.at_risk[number]:,}", "label middle")


def calibration_figure(target: Target, blocks: dict[str, PredictionBlock], series: dict[str, str]) -> str:
    """Return predicted against observed risk at the last horizon, in fifths of predicted risk, of some methods."""
    found = {method: horizon_calibration(target, blocks[method], len(target.horizons) - 1) for method in series}
    highest = max(float(max(c.predicted.max(), c.observed.max())) for c in found.values())
    limits = (0.0, min(1.0, max(0.05, 1.1 * highest)))
    axes = Axes(
        (320.0, 300.0),
        limits,
        limits,
        title=f"Calibration of {target.name} at {target.horizons[-1]:g} {target.unit}",
        labels=("predicted risk", "observed risk"),
    )
    axes.line(limits, limits, "reference")
    for method, css in reversed(series.items()):
        axes.line(found[method].predicted, found[method].observed, f"curve thin {css}")
        axes.dots(found[method].predicted, found[method].observed, f"dot {css}", 4)
    return axes.svg()
