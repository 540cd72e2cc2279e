"""Pictures of the gate's weights and of label efficiency.

Lives here: what is drawn. Not here: how the gate comes to its weights (`stages.heads`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from cache.records import Target
from stages.report.survival.section import gate_groups
from stages.report.svg import Axes
from stages.scoring.blocks import PredictionBlock
from stages.scoring.metrics import METRICS

_COLOURS = 7
MAX_GROUPS = 15
"""Classes in the table of weights; of more, the most frequent ones."""


def weight_table(weights: pd.DataFrame, task: str) -> pd.DataFrame:
    """Return one task's gate weights on test records: index (record_id, fold), a column per expert."""
    rows = weights[(weights["task"] == task) & (weights["split"] == "test")]
    wide = rows.pivot(index=["record_id", "fold"], columns="expert", values="weight")
    return wide[[name for name in pd.unique(rows["expert"].astype(str)) if name in wide]].astype(float)


def weights_figure(task: str, table: pd.DataFrame) -> str:
    """Return each expert's weight: the mean as a dot, half of the records in the box, 90 % within the line."""
    names = list(table)
    left = 14 + 6.6 * max(map(len, names))
    axes = Axes(
        (560, 50 + 34 * len(names)), (0, 1), (len(names), 0), title=f"Gate weights of {task}",
        labels=("weight", ""), margins=(left, 64, 6, 40), ticks=((0, 0.25, 0.5, 0.75, 1), ()),
    )  # fmt: skip
    for i, name in enumerate(names):
        values = table[name].dropna().to_numpy()
        low, first, third, high = np.quantile(values, [0.05, 0.25, 0.75, 0.95])
        css, y = f"c{i % _COLOURS}", i + 0.5
        axes.line((low, high), (y, y), f"whisker {css}")
        axes.drawing.box(axes.px(first), axes.py(y) - 8, (axes.px(third) - axes.px(first), 16), f"bar soft {css}")
        axes.drawing.circle(axes.px(values.mean()), axes.py(y), 4.5, f"dot {css}")
        axes.drawing.text(left - 8, axes.py(y) + 4, name, "label end strong")
        axes.drawing.text(506, axes.py(y) + 4, f"{values.mean():.3f}", "label start strong")
    return axes.svg()


def weights_by_class(target: Target, block: PredictionBlock, table: pd.DataFrame) -> list[tuple[str, int, list[float]]]:
    """Return (group, records, mean weight per expert): groups are true classes, or quarters of the true value."""
    index = pd.MultiIndex.from_arrays([block.record_ids, block.fold])
    weights = table.reindex(index).to_numpy()
    present = ~np.isnan(weights).any(axis=1)
    groups = [(name, members & present) for name, members in _groups(target, block)]
    groups = sorted(groups, key=lambda group: -group[1].sum())[:MAX_GROUPS] if len(groups) > MAX_GROUPS else groups
    return [(name, int(m.sum()), weights[m].mean(axis=0).tolist()) for name, m in groups if m.any()]


def _groups(target: Target, block: PredictionBlock) -> list[tuple[str, np.ndarray]]:
    y = block.y_true
    if target.kind == "survival":
        return gate_groups(block)
    if target.kind == "regression":
        edges = np.quantile(y, [0, 0.25, 0.5, 0.75, 1])
        quarter = np.searchsorted(edges[1:-1], y, side="right")
        spans = enumerate(itertools.pairwise(edges))
        return [(f"{a:.4g} to {b:.4g} {target.unit}".strip(), quarter == k) for k, (a, b) in spans]
    if target.kind == "binary":
        names = target.classes if len(target.classes) == 2 else (f"not {target.name}", target.name)
        return [(name, y == k) for k, name in enumerate(names)]
    return [(name, y == k if y.ndim == 1 else y[:, k] == 1) for k, name in enumerate(target.classes)]


def learning_curve(task: str, metric: str, points: Sequence[dict[str, Any]], series: dict[str, str]) -> str:
    """Return a metric against the share of training patients, one line a method.

    Parameters
    ----------
    points
        {"fraction", "method", "value", "low", "high"}, in any order.
    """
    known = [p for p in points if p["method"] in series and p["value"] is not None]
    if not known:
        return ""
    bounds = [v for p in known for v in (p["value"], p.get("low"), p.get("high")) if v is not None]
    pad = 0.06 * (max(bounds) - min(bounds)) or 0.05
    labels = ("share of the training patients", METRICS[metric].title)
    axes = Axes(
        (560, 320), (0, 1.03), (min(bounds) - pad, max(bounds) + pad), title=f"Learning curve of {task}",
        labels=labels, margins=(56, 12, 10, 40),
    )  # fmt: skip
    for method, css in series.items():
        of_method = sorted((p for p in known if p["method"] == method), key=lambda p: p["fraction"])
        for p in of_method:
            if p.get("low") is not None and p.get("high") is not None:
                axes.line((p["fraction"], p["fraction"]), (p["low"], p["high"]), f"whisker {css}")
        shares, values = [p["fraction"] for p in of_method], [p["value"] for p in of_method]
        axes.line(shares, values, f"curve {css}")
        axes.dots(np.array(shares), np.array(values), f"dot {css}", 4)
    return axes.svg()
