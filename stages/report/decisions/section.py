"""What the page says of a task's thresholds, decision curves and conformal sets.

Lives here: the template's context, from decisions.json alone. Not here: HTML (`decisions.html`), drawings (`figures`).
"""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from stages.report.decisions.figures import decision_figure
from stages.scoring.subgroups import SEX_NAMES
from stages.scoring.table import DASH, number

Json = dict[str, Any]
Cell = tuple[str, str]
"""A value and its interval, as text."""
MAX_CURVES = 12
RATES = (
    ("sensitivity", "Sensitivity"),
    ("specificity", "Specificity"),
    ("ppv", "PPV"),
    ("npv", "NPV"),
    ("likelihood_ratio_positive", "LR+"),
    ("likelihood_ratio_negative", "LR\N{MINUS SIGN}"),
    ("alarm_rate", "Alarms"),
)
_RULES = {
    "youden": "the largest sensitivity + specificity",
    "sensitivity": "a sensitivity of at least {value:g}",
    "specificity": "a specificity of at least {value:g}",
    "alarm_rate": "alarms for at most {value:g} of the records",
}


def decision_section(found: Json | None) -> Json | None:
    """Return what one task shows of its part of decisions.json; None where there is none."""
    if not found:
        return None
    points = found.get("operating_points")
    return {
        "rule": _rule(points) if points else "",
        "against_the_rest": found.get("kind") == "multiclass",
        "columns": [title for _, title in RATES],
        "given": any(judged.get("given") for judged in points["classes"].values()) if points else False,
        "rows": [_row(name, judged) for name, judged in points["classes"].items()] if points else [],
        "curves": _curves(found),
        "conformal": _conformal(found["conformal"]) if "conformal" in found else None,
    }


def cell(found: Json | None, places: int = 3) -> Cell:
    """Return a value and its interval as text; a dash where it is undefined."""
    if not found or found["value"] is None:
        return DASH, ""
    interval = "" if found["low"] is None else f"{number(found['low'], places)}{DASH}{number(found['high'], places)}"
    return number(found["value"], places), interval


def _rule(points: Json) -> str:
    return _RULES[points["rule"]].format(value=points["value"])


def _row(name: str, judged: Json) -> Json:
    given = judged.get("given")
    several = [value for value in judged["folds"] if value is not None]
    spread = f"{number(min(several), 3)}{DASH}{number(max(several), 3)}" if len(several) > 1 else ""
    return {
        "name": name,
        "threshold": (number(judged["threshold"], 3), spread),
        "counts": f"{judged['positives']:,} of {judged['n']:,}",
        "cells": [cell(judged.get(rate), 2 if rate.startswith("likelihood") else 3) for rate, _ in RATES],
        "given": [cell(given["ppv"]), cell(given["npv"])] if given else [],
        "prevalence": f"{given['prevalence']:g}" if given else "",
    }


def _curves(found: Json) -> list[tuple[str, Markup]]:
    curves, points = found.get("decision_curves", {}), found.get("operating_points", {"classes": {}})["classes"]
    drawn = [name for name, curve in curves.items() if curve and points[name]["positives"]][:MAX_CURVES]
    return [
        (name, Markup(decision_figure(name, curves[name], points[name]["prevalence"], small=len(drawn) > 1)))
        for name in drawn
    ]


def _conformal(found: Json) -> Json:
    answers = found["answers"]
    one = len(answers) == 1
    rows = [row for name, answer in answers.items() for row in _coverage_rows("" if one else name, answer)]
    values = any("mean_width" in answer["all"] for answer in answers.values())
    return {
        "coverage": f"{100 * found['coverage']:g} %",
        "by_class": found["by_class"] and not values,
        "of_values": values,
        "rows": rows,
    }


def _coverage_rows(answer: str, found: Json) -> list[Json]:
    """Return all records, each true class and each subgroup; of several answers their classes alone."""
    measures = [("all", found["all"]), *list(found["true_class"].items())]
    if not answer:
        groups = found["subgroups"].items()
        measures += [(_group(grouping, name), part) for grouping, parts in groups for name, part in parts.items()]
    return [_coverage_row(" ".join(filter(None, (answer, name))), part) for name, part in measures if part["records"]]


def _group(grouping: str, name: str) -> str:
    if grouping == "age_years":
        return f"age {name}"
    return name if name in SEX_NAMES.values() else f"{grouping} {name}"


def _coverage_row(name: str, part: Json) -> Json:
    row = {"name": name, "coverage": cell(part), "patients": f"{part['patients']:,}", "records": f"{part['records']:,}"}
    keys = ("mean_width",) if "mean_width" in part else ("several", "none", "right_where_certain")
    places = 1 if "mean_width" in part else 3
    return {**row, "left_open": [number(part[key], places) for key in keys]}
