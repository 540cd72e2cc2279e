"""What fits of other studies are worth on these patients, as lines the template lays out. Not here: the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from stages.report import figures
from stages.report.tables import interval_text
from stages.scoring.comparison import main_method
from stages.scoring.metrics import METRICS
from stages.scoring.summary import read_metrics
from stages.scoring.table import decimals, number

Json = dict[str, Any]
WAYS = {"before": "as it is", "intercept": "intercept", "intercept_and_slope": "intercept and slope"}
ERRORS = {"mae": "MAE", "brier": "Brier", "log_loss": "log loss"}
SLOPE_PLACES = 2


def read_external(folder: Path | None) -> list[Json]:
    """Read the metrics.json of every fit that was judged here, in the order of their names."""
    if folder is None or not folder.is_dir():
        return []
    return [read_metrics(path) for path in sorted(folder.glob("*/metrics.json"))]


def external_sections(found: Sequence[Json]) -> list[Json]:
    """Return what the page shows of each fit."""
    return [_section(metrics) for metrics in found]


def _section(metrics: Json) -> Json:
    return {
        "name": metrics["fit"],
        "notes": metrics.get("notes", []),
        "left_out": list(metrics["left_out"].items()),
        "rows": [row for task in metrics["tasks"] for row in _rows(metrics, task)],
        "calibration": [
            row for task, found in metrics["calibration"].items() for row in _calibration(metrics, task, found)
        ],
        "figure": Markup(_figure(metrics)),
        "recalibration": [
            row for task, sizes in metrics["recalibration"].items() for row in _recalibration(metrics, task, sizes)
        ],
    }


def _rows(metrics: Json, task: str) -> list[Json]:
    """Return each headline metric here, there and the drop; here alone where the other study has no figures."""
    found, moved = metrics["tasks"][task], metrics["transfer"].get(task, {})
    rows = []
    for metric in found["headline"]:
        places = decimals(metrics, task, metric)
        parts = moved.get(metric) or {"external": found["methods"][main_method(list(found["methods"]))][metric]}
        cells = [
            _cell(parts.get(name), places, sign=name == "difference") for name in ("external", "internal", "difference")
        ]
        unit = f", {found['unit']}" if METRICS[metric].has_unit and found["unit"] else ""
        rows.append({"task": task, "metric": METRICS[metric].title + unit, "n": found["n"]["test"], "cells": cells})
    return rows


def _cell(found: Json | None, places: int, sign: bool = False) -> tuple[str, str]:
    """Return a value and its interval in words; nothing where there is none."""
    if found is None or found["value"] is None:
        return "", ""
    return number(found["value"], places, sign), interval_text(found, places, sign)


def _calibration(metrics: Json, task: str, found: Json) -> list[Json]:
    several = found and "slope" not in found and "n_positive" not in found
    parts = found.items() if several else [("", found)]
    unit = metrics["tasks"][task]["kind"] == "regression"
    return [
        {
            "task": f"{task}: {name}" if name else task,
            "n_positive": one.get("n_positive"),
            "in_the_large": _cell(one["in_the_large"], decimals(metrics, task, "mae") if unit else SLOPE_PLACES, True),
            "slope": _cell(one["slope"], SLOPE_PLACES),
        }
        for name, one in parts
        if "slope" in one
    ]


def _figure(metrics: Json) -> str:
    """Draw the main method of this study and of the fit's own, for tasks judged by an AUROC."""
    rows = [
        (task, [("s0", one[metric]["external"]), ("s9", one[metric]["internal"])])
        for task, one in metrics["transfer"].items()
        for metric in one
        if metric.startswith("auroc") and one[metric]["external"]["value"] is not None
    ]
    return figures.interval_figure(f"Fit {metrics['fit']} here and in its own study", rows, "auroc", 3) if rows else ""


def _recalibration(metrics: Json, task: str, sizes: Sequence[Json]) -> list[Json]:
    rows = []
    for size in sizes:
        for metric in (name for name in ERRORS if name in size):
            places = decimals(metrics, task, metric) if metric == "mae" else 3
            cells = [_cell(size[metric][way], places) for way in WAYS]
            rows.append({"task": task, "metric": ERRORS[metric], "patients": size["patients"], "cells": cells})
    return rows
