"""Where in the ten seconds the fit's attention looks: one picture an expert and task.

Not here: the numbers (`stages.evaluate.attention`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from markupsafe import Markup

from stages.report.svg import Axes

MAX_CLASSES = 4
"""Classes with a line of their own, the most frequent ones."""
Json = dict[str, Any]


def attention_pictures(task: str, attention: Json) -> list[Json]:
    """Return the pictures of one task; `attention` as evaluation.json holds it: expert -> task -> shares."""
    found = {expert: tasks[task] for expert, tasks in attention.items() if tasks.get(task, {}).get("n")}
    return [_picture(task, expert, one) for expert, one in found.items()]


def _picture(task: str, expert: str, found: Json) -> Json:
    frequent = sorted(found["classes"], key=lambda name: -found["classes"][name]["n"])[:MAX_CLASSES]
    lines = {name: (f"s{k}", found["classes"][name]) for k, name in enumerate(frequent)}
    return {
        "caption": f"{expert}, {found['n']:,} test records",
        "legend": [(f"{name} ({one['n']:,})", css) for name, (css, one) in lines.items()],
        "figure": Markup(attention_figure(f"Attention of {expert} for {task}", found["seconds"], lines)),
    }


def attention_figure(title: str, shares: list[float], lines: dict[str, tuple[str, Json]]) -> str:
    """Draw the mean share of each second in per cent: pale bars, and classes as lines through the seconds' middles.

    The dashed line is an equal share of all seconds, which is what a mean takes.
    """
    n, percent = len(shares), 100 * np.array(shares)
    of_classes = [(css, 100 * np.array(one["seconds"])) for css, one in lines.values()]
    highest = max(values.max() for values in (percent, *(values for _, values in of_classes)))
    axes = Axes(
        (420, 240), (0, n), (0, 1.08 * highest), title=title, labels=("second of the record", "mean attention, %"),
        margins=(54, 12, 10, 40),
    )  # fmt: skip
    axes.bars(np.arange(n + 1), percent, "bar c0 pale")
    axes.line((0, n), (100 / n, 100 / n), "reference")
    for css, values in of_classes:
        axes.line(np.arange(n) + 0.5, values, f"curve {css}")
    return axes.svg()
