"""What the page shows of leaderboard/NAME: leaderboard.json and leaderboard_costs.json.

Lives here: the template's context and the pictures. Not here: HTML (`leaderboard.html`), numbers
(`stages.leaderboard`).
"""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup

from stages.report.svg import Axes, nice_ticks
from stages.scoring.metrics import METRICS
from stages.scoring.table import DASH, number

Json = dict[str, Any]
MODES = {"linear": "s0", "frozen": "s1", "finetuned": "s2"}
SIZE = (480, 340)
LEFT, RIGHT = 66.0, SIZE[0] - 12.0
ROWS_WIDTH = 48.0
"""Of an expert's rows side by side, in pixels: at most."""
NAME_WIDTH, NAME_HEIGHT, NAME_GAP, NAME_STEPS = 6.3, 12.0, 14.0, 24
"""Of an expert's name: pixels a letter, a line, from its cost; how many half lines it may be moved."""
Box = tuple[float, float, float, float]
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
    crops = "" if row["crop_s"] is None else f" of {row['crop_s']:g}\N{NO-BREAK SPACE}s"
    return {
        "names": [row["expert"], row["mode"], row["inputs"] + crops, row["pooling"]],
        "cells": [_cell(row, task, found["metric"]) for task, found in tasks.items()],
        "rank": interval_words(row["mean_rank"], "", 1),
        "rank_of_experts": interval_words(row["mean_rank_of_experts"], "", 1),
        "size": DASH if size is None else f"{size:,}",
        "trained": f"{max(row['trained_parameters'].values(), default=0):,}",
        "speed": DASH if speed is None else number(speed, 1),
    }


def _cell(row: Json, task: str, metric: str) -> tuple[str, str, bool]:
    """Return a score and its interval as words, and whether its difference to the task's best may be none."""
    apart = row.get("differences", {}).get(task)
    among_best = apart is not None and (apart["low"] is None or apart["low"] <= 0 <= apart["high"])
    return *interval_words(row["scores"].get(task), metric), among_best


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

    An expert's rows have one cost: they stand side by side around it, moved away from the rows of experts of nearly the
    same cost, and its name stands once. Better is higher.

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
    low, high = _padded([row[metric][key] for _, row in known for key in ("value", "low", "high")])
    first, last = min(x for x, _ in known) - 0.3, max(x for x, _ in known) + 0.5
    better_is_lower = metric == "mean_rank"
    axes = Axes(
        SIZE, (first, last), (high, low) if better_is_lower else (low, high), title=f"{labels[1]} over {labels[0]}",
        labels=("", labels[1]), margins=(LEFT, 12, 10, 40), ticks=((), nice_ticks(low, high)),
    )  # fmt: skip
    for tick in decimal_ticks(first, last):
        at = axes.px(math.log10(tick))
        axes.drawing.line([(at, 10), (at, SIZE[1] - 40)], "grid")
        axes.drawing.text(at, SIZE[1] - 26, short_number(tick), "label middle")
    axes.drawing.text(SIZE[0] / 2, SIZE[1] - 9, labels[0], "label middle")
    costs = {row["expert"]: axes.px(x) for x, row in known}
    width = min(ROWS_WIDTH, (RIGHT - LEFT) / 2 / len(costs))  # half of the picture is for names
    middles = dict(zip(costs, apart(list(costs.values()), width), strict=True))
    placed = [(middles[row["expert"]] + _beside(row, width), row) for _, row in known]
    for at, row in placed:
        _draw_row(axes, at, row, metric)
    _write_names(axes, placed, metric)
    return axes.svg()


def apart(wanted: list[float], width: float) -> list[float]:
    """Return places of that width, inside of the picture, as near to those wanted as they go without overlap.

    Wanted places that are too near to each other share one middle, and stand side by side around it.

    >>> apart([200.0, 400.0, 202.0, 198.0], 40.0)
    [200.0, 400.0, 240.0, 160.0]
    """
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    groups: list[list[float]] = []  # of wanted places, each less what stands to its left
    for before, index in enumerate(order):
        groups.append([wanted[index] - before * width])
        while len(groups) > 1 and _mean_of(groups[-2]) > _mean_of(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    first, last = LEFT + width / 2, RIGHT - width / 2 - (len(order) - 1) * width
    starts = [min(max(_mean_of(group), first), last) for group in groups for _ in group]
    places = {index: starts[before] + before * width for before, index in enumerate(order)}
    return [places[index] for index in range(len(wanted))]


def _mean_of(values: list[float]) -> float:
    return sum(values) / len(values)


def _padded(values: list[float | None]) -> tuple[float, float]:
    numbers = [value for value in values if value is not None]
    pad = 0.06 * (max(numbers) - min(numbers)) or 0.05 * abs(max(numbers)) or 1.0
    return min(numbers) - pad, max(numbers) + pad


def decimal_ticks(first: float, last: float) -> list[float]:
    """Return round numbers between two powers of ten: 1, 10, 100, or 1, 2, 5, 10 where there would be few.

    >>> decimal_ticks(0.5, 3.2), decimal_ticks(1.2, 2.1)
    ([10.0, 100.0, 1000.0], [20.0, 50.0, 100.0])
    """
    steps = (1,) if last - first > 2 else (1, 2, 5)
    powers = range(math.floor(first), math.floor(last) + 1)
    found = [step * 10.0**power for power in powers for step in steps]
    return [tick for tick in found if 10.0**first <= tick <= 10.0**last]


def short_number(value: float) -> str:
    """Write a round number: 0.5, 200, 50 k, 2 M.

    >>> [short_number(value) for value in (0.5, 200.0, 50_000.0, 2e6, 1e9)]
    ['0.5', '200', '50 k', '2 M', '1 G']
    """
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e3 if unit == 'k' else size):g} {unit}"
    return f"{value:g}"


def _beside(row: Json, width: float) -> float:
    """Return how far from the middle of its expert's rows a row stands, in pixels: by mode, and by inputs within."""
    number = 2 * list(MODES).index(row["mode"]) + (row["inputs"] == "native")
    return (number - 2.0) * width / 6.0  # five places, and one between experts: fine-tuned copies have no native input


def _draw_row(axes: Axes, at: float, row: Json, metric: str) -> None:
    css, found = MODES[row["mode"]], row[metric]
    if found["low"] is not None:
        axes.drawing.line([(at, axes.py(found["low"])), (at, axes.py(found["high"]))], f"whisker {css}")
    axes.drawing.circle(at, axes.py(found["value"]), 3.5 if row["inputs"] == "native" else 2.5, f"dot {css}")


def _write_names(axes: Axes, placed: list[tuple[float, Json]], metric: str) -> None:
    """Write every expert's name as near to its best row as neither a row nor another name stands."""
    best: dict[str, tuple[float, float]] = {}
    for x, row in placed:
        at = (x, axes.py(row[metric]["value"]))
        best[row["expert"]] = min(best.get(row["expert"], at), at, key=lambda point: point[1])
    taken = [_box_of_row(axes, x, row, metric) for x, row in placed]
    for expert, (x, y) in sorted(best.items(), key=lambda item: item[1][1]):
        box = _free_box(x, y, NAME_WIDTH * len(expert), taken)
        taken.append((box[0] - NAME_HEIGHT / 2, box[1], box[2] + NAME_HEIGHT / 2, box[3]))
        side = box[0] if box[0] > x else box[2]
        if abs(side - x) > NAME_GAP + 1 or abs(_middle(box) - y) > NAME_HEIGHT:
            axes.drawing.line([(x, y), (side, _middle(box))], "grid")
        axes.drawing.text(box[0], _middle(box) + 3.5, expert, "label")


def _box_of_row(axes: Axes, at: float, row: Json, metric: str) -> Box:
    found = row[metric]
    ends = [axes.py(found[key]) for key in ("value", "low", "high") if found[key] is not None]
    return at - 4, min(ends) - 3, at + 4, max(ends) + 3


def _free_box(x: float, y: float, width: float, taken: list[Box]) -> Box:
    """Return the place of a name that is nearest to its point; right of the point where there is none."""
    half = NAME_HEIGHT / 2
    moves = range(-NAME_STEPS, NAME_STEPS + 1)
    lefts = [x + NAME_GAP + 8 * k for k in range(10)] + [x - NAME_GAP - 8 * k - width for k in range(10)]
    boxes = [(left, y + half * k - half, left + width, y + half * k + half) for left in lefts for k in moves]
    free = [
        box
        for box in boxes
        if box[0] > 62 and box[2] < SIZE[0] and box[1] > 2 and box[3] < SIZE[1] - 38 and not _hits(box, taken)
    ]
    by_distance = min(
        free, key=lambda box: math.hypot(min(abs(box[0] - x), abs(box[2] - x)), 1.5 * (_middle(box) - y)), default=None
    )
    return by_distance or (x + NAME_GAP, y - half, x + NAME_GAP + width, y + half)


def _middle(box: Box) -> float:
    return (box[1] + box[3]) / 2


def _hits(box: Box, taken: list[Box]) -> bool:
    return any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken)
