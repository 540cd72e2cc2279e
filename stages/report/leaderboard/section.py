"""What the page shows of leaderboard/NAME: leaderboard.json and leaderboard_costs.json.

Lives here: the template's context and the pictures. Not here: HTML (`leaderboard.html`), numbers
(`stages.leaderboard`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from markupsafe import Markup

from stages.report.svg import Axes, nice_ticks
from stages.scoring.metrics import METRICS
from stages.scoring.table import DASH, number

Json = dict[str, Any]
MODES = {"linear": "s0", "frozen": "s1", "finetuned": "s2"}
SIZE = (480, 300)
_PLACES = 3


def leaderboard_section(name: str, board: Json, costs: Json) -> Json | None:
    """Return the template's context of one board; None where there is none."""
    rows = board.get("rows", [])
    if not rows:
        return None
    speeds = costs.get("records_per_s", {})
    tasks = board["tasks"]
    return {
        "name": name,
        "protocol": board["protocol"],
        "columns": [(name, METRICS[found["metric"]].title, found["unit"]) for name, found in tasks.items()],
        "rows": [_row(row, tasks, speeds) for row in rows],
        "without_tokens": sorted({row["expert"] for row in rows if row["pooling"].startswith("mean:")}),
        "left_out": list(board.get("left_out", {}).items()),
        "legend": [(mode, css) for mode, css in MODES.items() if any(row["mode"] == mode for row in rows)],
        "pictures": [(words, Markup(svg)) for words, svg in _pictures(rows, speeds) if svg],
    }


def _row(row: Json, tasks: Json, speeds: Json) -> Json:
    speed, size = speeds.get(row["expert"]), row["expert_parameters"]
    return {
        "names": [row["expert"], row["mode"], row["inputs"], row["pooling"]],
        "cells": [interval_words(row["scores"].get(task), found["metric"]) for task, found in tasks.items()],
        "rank": interval_words(row["mean_rank"], "", 1),
        "rank_of_experts": interval_words(row["mean_rank_of_experts"], "", 1),
        "size": DASH if size is None else f"{size:,}",
        "trained": f"{max(row['trained_parameters'].values(), default=0):,}",
        "speed": DASH if speed is None else number(speed, 1),
    }


def interval_words(score: Json | None, metric: str, places: int = _PLACES) -> tuple[str, str]:
    """Return a value and its 95 % interval as words; empty where undefined."""
    if score is None or score["value"] is None:
        return "", ""
    shown = 2 if metric in METRICS and METRICS[metric].has_unit else places
    low, high = score["low"], score["high"]
    within = "" if low is None else f"{number(low, shown)}{DASH}{number(high, shown)}"
    return number(score["value"], shown), within


def _pictures(rows: list[Json], speeds: Json) -> list[tuple[str, str]]:
    """Draw the mean AUROC (without one, the mean rank) against speed and against parameters."""
    metric = "mean_auroc" if any(row["mean_auroc"] for row in rows) else "mean_rank"
    words = {"mean_auroc": "mean AUROC over tasks", "mean_rank": "mean rank (1 is best)"}[metric]
    speed = [(speeds.get(row["expert"]), row) for row in rows]
    size = [(row["expert_parameters"], row) for row in rows]
    return [
        (f"{words} against records a second of embed", cost_figure(speed, metric, ("records/s", words))),
        (f"{words} against parameters of the expert", cost_figure(size, metric, ("parameters", words))),
    ]


def cost_figure(points: list[tuple[float | None, Json]], metric: str, labels: tuple[str, str]) -> str:
    """Draw accuracy with its 95 % interval over a cost on a logarithmic axis; nothing where no cost is known.

    Parameters
    ----------
    points
        Cost above 0, and the board's row that it belongs to.
    """
    known = [
        (math.log10(cost), row) for cost, row in points if cost and row[metric] and row[metric]["value"] is not None
    ]
    if not known:
        return ""
    values = [row[metric][key] for _, row in known for key in ("value", "low", "high")]
    numbers = [value for value in values if value is not None]
    pad = 0.06 * (max(numbers) - min(numbers)) or 0.05 * abs(max(numbers)) or 1.0
    low, high = min(numbers) - pad, max(numbers) + pad
    first, last = min(x for x, _ in known) - 0.3, max(x for x, _ in known) + 0.6
    axes = Axes(
        SIZE, (first, last), (low, high), title=labels[1], labels=("", labels[1]), margins=(66, 12, 10, 40),
        ticks=((), nice_ticks(low, high)),
    )  # fmt: skip
    for power in range(math.ceil(first), math.floor(last) + 1):
        axes.drawing.line([(axes.px(power), 10), (axes.px(power), SIZE[1] - 40)], "grid")
        axes.drawing.text(axes.px(power), SIZE[1] - 26, f"{10.0**power:,g}", "label middle")
    axes.drawing.text(SIZE[0] / 2, SIZE[1] - 9, labels[0], "label middle")
    for x, row in known:
        css, found = MODES.get(row["mode"], "s9"), row[metric]
        if found["low"] is not None:
            axes.line((x, x), (found["low"], found["high"]), f"whisker {css}")
        axes.dots(np.array([x]), np.array([found["value"]]), f"dot {css}", 4 if row["inputs"] == "native" else 2.5)
        axes.drawing.text(axes.px(x) + 6, axes.py(found["value"]) + 3.5, row["expert"], "label")
    return axes.svg()
