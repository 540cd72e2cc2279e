"""How the weights made in this study were trained: a loss curve and a few words per version.

Not here: how they are made (`stages.pretrain`, `stages.posttrain`), the figures of the heads (`figures`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from stages.report.svg import Axes, nice_ticks

MAX_POINTS = 200
"""Of a line: more epochs than this are thinned out, the last one kept."""
LINES = {"loss": ("training", "s0"), "validation_loss": ("validation", "s1")}


def training(version: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the page shows of one version; `version` is an entry of the facts' "trainings"."""
    curve = version["curve"]
    return {
        "name": version["name"],
        "how": _how(version),
        "seen": version["n_seen"],
        "judged": version["n_judged"],
        "legend": [words for key, words in LINES.items() if any(key in point for point in curve)],
        "figure": Markup(loss_curve(version["name"], curve, version.get("kept_epoch"))),
    }


def _how(version: Mapping[str, Any]) -> str:
    """Say what made a version, in one sentence."""
    task = f" to {version['task']}" if version.get("task") else ""
    parent = f" from {version['parent']}" if version.get("parent") else ""
    epochs = int(version["curve"][-1]["epoch"]) if version["curve"] else 0
    kept = version.get("kept_epoch")
    chosen = f", epoch {kept:.0f} kept" if kept is not None and kept != epochs else ""
    records = (
        f"{version['n_records']:,} records of {version['n_patients']:,} patients ({', '.join(version['sources'])})"
    )
    return f"{version['made_by'].capitalize()}ed{task}{parent} on {records}, {epochs} epochs{chosen}."


def loss_curve(name: str, curve: Sequence[Mapping[str, float]], kept_epoch: float | None = None) -> str:
    """Return training and validation loss per epoch; a dot marks the epoch whose weights were kept."""
    values = [point[key] for point in curve for key in LINES if key in point]
    if not values:
        return ""
    first, last = curve[0]["epoch"], max(curve[-1]["epoch"], curve[0]["epoch"] + 1)
    whole_epochs = [tick for tick in nice_ticks(first, last) if tick == round(tick)]
    pad = 0.06 * (max(values) - min(values)) or 0.05
    axes = Axes(
        (500, 270), (first, last), (min(values) - pad, max(values) + pad), title=f"Loss of {name}",
        labels=("epoch", "loss"), margins=(66, 12, 10, 40), ticks=(whole_epochs, None),
    )  # fmt: skip
    for key, (_, css) in LINES.items():
        points = _thinned([point for point in curve if key in point])
        if not points:
            continue
        epochs, losses = ([point[part] for point in points] for part in ("epoch", key))
        axes.line(epochs, losses, f"curve {css}")
        if len(points) == 1:
            axes.dots(np.array(epochs), np.array(losses), f"dot {css}", 3)
    kept = [p for p in curve if p["epoch"] == kept_epoch and "validation_loss" in p]
    axes.dots(np.array([p["epoch"] for p in kept]), np.array([p["validation_loss"] for p in kept]), "dot s1", 4)
    return axes.svg()


def _thinned(points: Sequence[Mapping[str, float]]) -> list[Mapping[str, float]]:
    step = -(-len(points) // MAX_POINTS)
    return [*points[: len(points) - 1 : step], points[-1]] if points else []
