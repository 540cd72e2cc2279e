"""What the report says of a survival task in words and tables.

Lives here: pictures with their captions, the table of the horizons, notes. Not here: drawings (`survival.figures`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cache.follow_up import times_and_events
from cache.records import Target
from stages.report.survival.figures import calibration_figure, kaplan_meier_figure
from stages.scoring.blocks import PredictionBlock
from stages.scoring.survival.scorer import AT_HORIZONS
from stages.scoring.table import DASH, number

Json = dict[str, Any]
TITLES = {"auc": "AUC", "brier": "Brier", "calibration_error": "calibration error"}
NOTE = (
    "Thirds are those of the predicted risk at the last horizon; below the curves stands who is still under "
    "observation. Calibration is that of the first two methods, in fifths; observed risk is Kaplan-Meier's. No cases "
    "are shown: of a censored record nobody knows whether the answer was right."
)


def about(found: Json) -> str:
    """Return how many events there are."""
    return f" In {found['events']:,} of them the event was seen; the others were censored before it."


def pictures(target: Target, blocks: dict[str, PredictionBlock], series: dict[str, str]) -> list[tuple[str, str]]:
    """Return (caption, SVG) of the main method, and of the first two."""
    first_two = {method: series[method] for method in list(series)[:2]}
    return [
        (
            "Observed survival by predicted thirds (Kaplan-Meier)",
            kaplan_meier_figure(target, blocks[next(iter(series))]),
        ),
        (f"Calibration at {target.horizons[-1]:g} {target.unit}", calibration_figure(target, blocks, first_two)),
    ]


def horizon_table(found: Json, titles: dict[str, str]) -> Json | None:
    """Return the table of the horizons, one row a horizon and method; None for another kind of task."""
    if "horizons" not in found:
        return None
    return {
        "columns": [TITLES[name] for name in AT_HORIZONS],
        "rows": [
            {
                "horizon": f"{part['horizon']:g} {found['unit']}",
                "counts": f"{part['events']:,} / {part['beyond']:,} / {part['censored_before']:,}",
                "method": titles.get(method, method),
                "cells": [_cell(values[name]) for name in AT_HORIZONS],
            }
            for part in found["horizons"]
            for method, values in part["methods"].items()
        ],
    }


def _cell(found: Json) -> str:
    if found["value"] is None:
        return DASH
    if found["low"] is None:
        return number(found["value"], 3)
    return f"{number(found['value'], 3)} ({number(found['low'], 3)}{DASH}{number(found['high'], 3)})"


def gate_groups(block: PredictionBlock) -> list[tuple[str, np.ndarray]]:
    """Return (name, mask) of the groups over which gate weights are averaged."""
    _, events = times_and_events(block.y_true)
    return [("event seen", events), ("censored", ~events)]
