"""The report's pictures, each as inline SVG.

Lives here: what is drawn. Not here: marks and axes (`svg`), the data behind the curves (`stages.scoring.curves`).
A series is (name, css class); the class carries colour and dash, so that a picture also reads without colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cache.records import Target
from stages.report.svg import Axes, Drawing
from stages.scoring.blocks import PredictionBlock
from stages.scoring.curves import (
    Curve,
    class_columns,
    confusion,
    macro_curve,
    precision_recall,
    reliability,
    roc,
    spread_rows,
)
from stages.scoring.metrics import METRICS
from stages.scoring.table import DASH, number

UNIT = (0.0, 1.0)
_UNIT_TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)
_PANEL = (320.0, 300.0)
_SCATTER_POINTS = 1500
_WIDE = 940.0
Series = dict[str, str]


def _unit_axes(title: str, labels: tuple[str, str], size: tuple[float, float] = _PANEL) -> Axes:
    return Axes(size, UNIT, UNIT, title=title, labels=labels, ticks=(_UNIT_TICKS, _UNIT_TICKS))


def _joined(curves: list[Curve]) -> Curve | None:
    return None if not curves else curves[0] if len(curves) == 1 else macro_curve(curves)


def roc_figure(target: Target, blocks: dict[str, PredictionBlock], series: Series) -> str:
    """Return the ROC curves of the shown methods; with several classes the mean of the classes' curves."""
    axes = _unit_axes(f"ROC of {target.name}", ("false positive rate", "sensitivity"))
    axes.line(UNIT, UNIT, "reference")
    for method, css in reversed(series.items()):
        found = _joined([c for _, y, p in class_columns(target, blocks[method]) if (c := roc(y, p))])
        if found:
            axes.line(found.x, found.y, f"curve {css}")
    return axes.svg()


def pr_figure(target: Target, blocks: dict[str, PredictionBlock], series: Series) -> str:
    """Return the precision-recall curves of the shown methods, and the share of positives as the reference."""
    axes = _unit_axes(f"Precision and sensitivity of {target.name}", ("sensitivity", "precision"))
    for method, css in reversed(series.items()):
        columns = class_columns(target, blocks[method])
        found = _joined([c for _, y, p in columns if (c := precision_recall(y, p))])
        share = float(np.mean([y.mean() for _, y, _ in columns if y.any()] or [0.0]))
        if method == next(iter(series)):
            axes.line(UNIT, (share, share), "reference")
        if found:
            axes.line(found.x, found.y, f"curve {css}")
    return axes.svg()


def reliability_figure(target: Target, blocks: dict[str, PredictionBlock], series: Series) -> str:
    """Return stated against observed probability; a dot's area grows with the records in its bin."""
    axes = _unit_axes(f"Calibration of {target.name}", ("stated probability", "observed share"))
    axes.line(UNIT, UNIT, "reference")
    for method, css in reversed(series.items()):
        found = reliability(target, blocks[method])
        radius = 2 + 5 * np.sqrt(found.n / found.n.max())
        axes.line(found.stated, found.observed, f"curve thin {css}")
        axes.dots(found.stated, found.observed, f"dot {css}", radius=radius)
    return axes.svg()


def class_roc_figures(target: Target, blocks: dict[str, PredictionBlock], series: Series) -> list[tuple[str, str]]:
    """Return a small ROC picture for each class, as (class, SVG)."""
    columns = {method: class_columns(target, blocks[method]) for method in series}
    found = []
    for k, name in enumerate(target.classes):
        axes = Axes(
            (150, 140), UNIT, UNIT, title=f"ROC of {name}", margins=(22, 6, 6, 18), ticks=((0.0, 1.0), (0.0, 1.0))
        )
        axes.line(UNIT, UNIT, "reference")
        for method, css in reversed(series.items()):
            curve = roc(*columns[method][k][1:])
            if curve:
                axes.line(curve.x, curve.y, f"curve {css}")
        found.append((name, axes.svg()))
    return found


def confusion_figure(target: Target, block: PredictionBlock) -> str:
    """Return the confusion matrix: rows are true classes, shades the share of the row, numbers the counts."""
    counts = confusion(target, block)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = len(target.classes)
    cell, left, top = (46.0 if size <= 8 else 34.0), 8 + 6.2 * max(map(len, target.classes)), 22.0
    left = min(left, 260)
    drawing = Drawing(left + size * cell + 10, top + size * cell + 26, f"Confusion matrix of {target.name}")
    drawing.text(left, 12, "predicted class (numbers as the rows)", "label start")
    for i, name in enumerate(target.classes):
        y = top + i * cell
        drawing.text(left - 8, y + cell / 2 + 4, _short(f"{i} {name}", 40), "label end")
        drawing.text(left + i * cell + cell / 2, top + size * cell + 16, str(i), "label middle")
        for j in range(size):
            x = left + j * cell
            drawing.box(x, y, (cell - 2, cell - 2), "cell", float(shares[i, j]))
            if counts[i, j]:
                css = "label middle on" if shares[i, j] > 0.55 else "label middle strong"
                drawing.text(x + cell / 2 - 1, y + cell / 2 + 3, str(counts[i, j]), css)
    return drawing.svg()


def _short(words: str, at_most: int) -> str:
    return words if len(words) <= at_most else f"{words[: at_most - 1]}\N{HORIZONTAL ELLIPSIS}"


def predicted_figure(target: Target, block: PredictionBlock) -> str:
    """Return predicted against true values, at most `_SCATTER_POINTS` records evenly drawn."""
    rows = spread_rows(len(block), _SCATTER_POINTS)
    true, predicted = block.y_true[rows], block.y_pred[rows].astype(float)
    low, high = np.quantile(np.concatenate([true, predicted]), [0.002, 0.998])
    pad = 0.04 * (high - low) or 1.0
    limits = (float(low - pad), float(high + pad))
    unit = f" [{target.unit}]" if target.unit else ""
    labels = (f"true{unit}", f"predicted{unit}")
    axes = Axes(
        (380, 360), limits, limits, title=f"Predicted and true {target.name}", labels=labels, margins=(56, 12, 10, 40)
    )
    inside = (np.clip(true, *limits) == true) & (np.clip(predicted, *limits) == predicted)
    axes.dots(true[inside], predicted[inside], "scatter c0", radius=2)
    axes.line(limits, limits, "reference")
    return axes.svg()


def error_figure(target: Target, block: PredictionBlock) -> str:
    """Return the histogram of predicted minus true, its outermost percent folded into the last bars."""
    error = block.y_pred.astype(float) - block.y_true
    bound = float(np.quantile(abs(error), 0.99)) or 1.0
    counts, edges = np.histogram(np.clip(error, -bound, bound), bins=31, range=(-bound, bound))
    unit = f" [{target.unit}]" if target.unit else ""
    labels = (f"predicted minus true{unit}", "records")
    axes = Axes(
        (380, 360),
        (-bound, bound),
        (0, counts.max() * 1.08),
        title=f"Errors of {target.name}",
        labels=labels,
        margins=(56, 12, 10, 40),
    )
    axes.bars(edges, counts, "bar c0")
    axes.line((0, 0), (0, counts.max() * 1.08), "reference")
    return axes.svg()


def interval_figure(
    title: str,
    rows: Sequence[tuple[str, list[tuple[str, dict[str, Any]]]]],
    metric: str,
    places: int,
    reference: float | None = None,
) -> str:
    """Return values with intervals, one row a name: methods of a task, or classes, or subgroups.

    Parameters
    ----------
    rows
        (name, [(css class, {"value", "low", "high"}), ...]).
    reference
        Where a vertical line is drawn: the best single expert's value.
    """
    known = [v for _, marks in rows for _, m in marks for v in (m["value"], m["low"], m["high"]) if v is not None]
    if not known:
        return ""
    several = max(len(marks) for _, marks in rows)
    step, left, right = 24.0 + 14 * (several - 1), 10 + 6.4 * min(max(len(name) for name, _ in rows), 34), 150.0
    low, high = min(known), max(known)
    pad = 0.04 * (high - low) or 0.05 * abs(high) or 1.0
    height = step * len(rows) + 50
    axes = Axes(
        (_WIDE, height), (low - pad, high + pad), (len(rows), 0), title=title,
        labels=(METRICS[metric].title, ""), margins=(left, right, 6, 40), ticks=(None, ()),
    )  # fmt: skip
    if reference is not None:
        axes.line((reference, reference), (0, len(rows)), "reference")
    for i, (name, marks) in enumerate(rows):
        axes.drawing.text(left - 8, axes.py(i + 0.5) + 4, _short(name, 34), "label end strong")
        for k, (css, found) in enumerate(marks):
            _interval_mark(axes, i + (k + 1) / (len(marks) + 1), (_WIDE - right + 10), css, found, places)
    return axes.svg()


def _interval_mark(axes: Axes, y: float, text_x: float, css: str, found: dict[str, Any], places: int) -> None:
    value, low, high = (found[key] for key in ("value", "low", "high"))
    words = number(value, places)
    if value is not None:
        if low is not None:
            axes.line((low, high), (y, y), f"whisker {css}")
            words += f" ({number(low, places)}{DASH}{number(high, places)})"
        axes.drawing.circle(axes.px(value), axes.py(y), 4, f"dot {css}")
    axes.drawing.text(text_x, axes.py(y) + 4, words, "label start")
