"""The report's tables and sentences, as plain lists the template lays out.

Lives here: which cells there are and how numbers are worded. Not here: HTML (`report.html`), numbers (metrics.json).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from cache.records import SPLITS
from stages.readers.pacing import SEVERAL
from stages.report.glossary import method_title
from stages.scoring.metrics import METRICS, METRICS_OF
from stages.scoring.table import (
    DASH,
    GROUPS,
    best_method,
    columns,
    decimals,
    difference_text,
    mark,
    method_group,
    number,
    ordered_methods,
)

Json = dict[str, Any]
MOST_BAD = 50
_VERDICTS = {
    "▲": "better than the best single expert",
    "▼": "worse",
    "≈": "no clear difference",
    "●": "best single expert",
}
LENGTHS_S = (10.0, 5.0, 2.5)
"""Records below these are counted: experts take them by policies of their own, which the table of experts names."""
COSTS = {"parameters": "trainable parameters", "seconds": "seconds", "peak_memory_mb": "peak memory, MB"}


def interval_text(found: Json, places: int, sign: bool = False) -> str:
    """Return the two ends of an interval, or nothing where there is no interval."""
    if found["low"] is None:
        return ""
    middle = " to " if sign else DASH
    return f"{number(found['low'], places, sign)}{middle}{number(found['high'], places, sign)}"


def headline_table(metrics: Json, facts: Json) -> Json:
    """Return the table of the first page: methods down, headline metrics across, costs where facts have them."""
    described = facts.get("methods", {})
    costs = [key for key in COSTS if any(key in found for found in described.values())]
    pairs = columns(metrics)
    names = ordered_methods(metrics)
    return {
        "columns": [_column(metrics, task, metric) for task, metric in pairs],
        "counted": any(described.get(method, {}).get("counts_heads") for method in names),
        "left_out": [(_left_out(name, described), why.rstrip(".")) for name, why in facts.get("left_out", {}).items()],
        "costs": [COSTS[key] for key in costs],
        "groups": [
            {
                "name": group,
                "rows": [
                    {
                        "name": method,
                        "title": method_title(method, described.get(method)),
                        "cells": [headline_cell(metrics, task, metric, method) for task, metric in pairs],
                        "costs": [_cost(described.get(method, {}).get(key)) for key in costs],
                    }
                    for method in names
                    if method_group(method) == group
                ],
            }
            for group in GROUPS
            if any(method_group(method) == group for method in names)
        ],
    }


def _left_out(name: str, described: Json) -> str:
    """Return the title of a METHOD, or of "METHOD on TASK"."""
    method, on, task = name.partition(" on ")
    return f"{method_title(method, described.get(method))}{on}{task}"


def _cost(value: float | None) -> str:
    if value is None:
        return ""
    if 0 < value < 0.01:
        return "< 0.01"
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _column(metrics: Json, task: str, metric: str) -> Json:
    found = METRICS[metric]
    unit = metrics["tasks"][task]["unit"] if found.has_unit else ""
    return {"task": task, "metric": found.title, "unit": unit, "up": found.higher_is_better}


def headline_cell(metrics: Json, task: str, metric: str, method: str) -> Json | None:
    """Return one value with its interval and its comparison; None where the method does not predict the task."""
    found = metrics["tasks"][task]["methods"].get(method)
    if found is None:
        return None
    places, sign = decimals(metrics, task, metric), mark(metrics, task, metric, method).strip()
    return {
        "value": number(found[metric]["value"], places),
        "interval": interval_text(found[metric], places),
        "difference": difference_text(metrics, task, metric, method),
        "best": method == best_method(metrics, task, metric),
        "mark": sign,
        "verdict": _VERDICTS.get(sign, ""),
        "n_classes": found[metric].get("n_classes"),
    }


def metrics_rows(metrics: Json, task: str, facts: Json) -> Json:
    """Return all metrics of all methods of one task."""
    found = metrics["tasks"][task]
    names = [name for name in METRICS_OF[found["kind"]] if any(name in m for m in found["methods"].values())]
    methods = [name for name in ordered_methods(metrics) if name in found["methods"]]
    return {
        "columns": [_column(metrics, task, name) for name in names],
        "rows": [
            {
                "title": method_title(method, facts.get("methods", {}).get(method)),
                "cells": [headline_cell(metrics, task, name, method) for name in names],
            }
            for method in methods
        ],
    }


def fold_rows(metrics: Json, task: str, facts: Json) -> Json | None:
    """Return mean and standard deviation over folds; None for a single fit."""
    found = metrics["tasks"][task]
    if "folds" not in found:
        return None
    names = METRICS_OF[found["kind"]]
    methods = [name for name in ordered_methods(metrics) if name in found["folds"]]
    return {
        "n": len(next(iter(found["folds"].values()))[names[0]]["values"]),
        "columns": [_column(metrics, task, name) for name in names],
        "rows": [
            {
                "title": method_title(method, facts.get("methods", {}).get(method)),
                "cells": [_mean_std(found["folds"][method][name], decimals(metrics, task, name)) for name in names],
            }
            for method in methods
        ],
    }


def _mean_std(found: Json, places: int) -> str:
    if found["mean"] is None:
        return DASH
    return f"{number(found['mean'], places)} ± {number(found['std'], places)}"


def verdict(metrics: Json, task: str, main: str, facts: Json) -> str:
    """Return a sentence or two that say how the main method did on a task."""
    found = metrics["tasks"][task]
    metric = found["headline"][0]
    places, name = decimals(metrics, task, metric), METRICS[metric].title
    unit = f" {found['unit']}" if METRICS[metric].has_unit and found["unit"] else ""
    titles = {m: method_title(m, facts.get("methods", {}).get(m)) for m in found["methods"]}
    estimate = found["methods"][main][metric]
    if estimate["value"] is None:
        return f"{name} is not defined on these test records."
    within = f" (95 % interval {interval_text(estimate, places)})" if estimate["low"] is not None else ""
    words = f"The {titles[main]} reaches {name} {number(estimate['value'], places)}{unit}{within}."
    best = found["best_single_expert"]
    if best is None or best == main:
        return words
    theirs = number(found["methods"][best][metric]["value"], places)
    return (
        f"{words} The best single expert, {titles[best]}, reaches {theirs}; {_difference(found, main, metric, places)}"
    )


def _difference(found: Json, main: str, metric: str, places: int) -> str:
    difference = found["differences"][main][metric]
    if difference["verdict"] is None:
        return "too few patients to tell them apart."
    size = f"{number(difference['value'], places, True)} ({interval_text(difference, places, True)})"
    if difference["verdict"] == "same":
        return f"the difference of {size} is within what other patients could explain."
    return f"the difference of {size} is more than other patients could explain: {difference['verdict']}."


def cohort_tables(records: pd.DataFrame) -> Json:
    """Return what the records table says about itself: splits, bad records by reason, quality."""
    good = records[records["status"] != "bad"]
    splits = [
        {"name": name, "records": len(part), "patients": part["patient_id"].nunique()}
        for name in SPLITS
        if len(part := good[good["split"] == name])
    ]
    reasons = Counter(records.loc[records["status"] == "bad", "reason"].fillna("no reason recorded").astype(str))
    return {
        "sources": ", ".join(sorted(records["source"].dropna().astype(str).unique())),
        "records": len(records),
        "patients": records["patient_id"].nunique(),
        "repeated": int((good.groupby("patient_id").size() > 1).sum()),
        "splits": splits,
        "bad": sorted(reasons.items(), key=lambda item: (-item[1], item[0]))[:12],
        "n_bad": sum(reasons.values()),
        "quality": _quality(good),
    }


def bad_records(records: pd.DataFrame) -> list[tuple[str, str]]:
    """Return (record id, reason) of the records that could not be read, at most `MOST_BAD` of them."""
    bad = records[records["status"] == "bad"].sort_values("record_id").head(MOST_BAD)
    reasons = bad["reason"].fillna("no reason recorded").astype(str)
    return list(zip(bad["record_id"].astype(str), reasons, strict=True))


def _quality(good: pd.DataFrame) -> list[tuple[str, int]]:
    """Return (finding, records that show it); what a table does not hold, or ingest did not look for, is left out."""
    rows = [
        ("a missing lead", good["missing_leads"].map(len) > 0),
        ("a flat lead", good["flat_leads"].map(len) > 0),
        ("more than 1 % missing samples", good["nan_fraction"] > 0.01),
        ("more than 1 % clipped samples", good["clipped_fraction"] > 0.01),
        *_optional_quality(good),
    ]
    return [(name, int(np.asarray(found, dtype=bool).sum())) for name, found in rows]


def _optional_quality(good: pd.DataFrame) -> Iterator[tuple[str, pd.Series]]:
    seconds = good["n_samples"].astype(float) / good["sampling_rate_hz"].astype(float)
    for limit_s in LENGTHS_S:
        if (shorter := seconds < limit_s - 0.01).any():
            yield f"shorter than {limit_s:g} s", shorter
    if "derived_leads" in good and (derived := good["derived_leads"].map(_length) > 0).any():
        yield "limb leads computed from I and II", derived
    if "limb_swap" in good:
        yield "limb leads that look exchanged", good["limb_swap"].notna()
        for kind in sorted(good["limb_swap"].dropna().unique()):
            yield f"\N{EM DASH} {kind}", good["limb_swap"] == kind
    if "pace_spikes" in good and good["pace_spikes"].notna().any():
        yield f"{SEVERAL} pacemaker spikes or more", good["pace_spikes"].fillna(0) >= SEVERAL


def _length(leads: Sequence[str] | None) -> int:
    return 0 if leads is None else len(leads)
