"""What `ensemble evaluate` prints of decisions.json: thresholds and coverage on test records."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from stages.scoring.table import DASH, number

Json = dict[str, Any]
RATES = (("sensitivity", "sensitivity"), ("specificity", "specificity"), ("ppv", "PPV"), ("npv", "NPV"))
MOST_CLASSES = 12
"""Rows of a task; report.html and tables/ have all."""


def decision_tables(decisions: Json) -> Iterator[Table]:
    """Give a table of thresholds, and one of coverage, where the fit holds them."""
    tasks = decisions.get("tasks", {})
    thresholds = Table(title="Thresholds on test records, 95 % patient-bootstrap interval", title_justify="left")
    for head in ("task", "class", "threshold", *(title for _, title in RATES)):
        thresholds.add_column(head, justify="left" if head in ("task", "class") else "right")
    coverage = Table(title="Coverage of sets and intervals by patient, 95 % interval", title_justify="left")
    for head in ("task", "answer", "promised", "covered", "uncertain"):
        coverage.add_column(head, justify="left" if head in ("task", "answer") else "right")
    for task, found in tasks.items():
        for name, judged in list(found.get("operating_points", {"classes": {}})["classes"].items())[:MOST_CLASSES]:
            cells = [_cell(judged.get(rate)) for rate, _ in RATES]
            thresholds.add_row(task, name, _number(judged["threshold"]), *cells)
        promise = found.get("conformal", {"answers": {}, "coverage": None})
        for name, answer in list(promise["answers"].items())[:MOST_CLASSES]:
            whole = answer["all"]
            unsure = whole["several"] + whole["none"] if "several" in whole else None
            coverage.add_row(task, name, f"{promise['coverage']:g}", _cell(whole), _number(unsure))
    yield from (table for table in (thresholds, coverage) if table.row_count)


def _cell(found: Json | None) -> str:
    if not found:
        return DASH
    value, low, high = (_number(found[key]) for key in ("value", "low", "high"))
    return value if low == DASH else f"{value} ({low}{DASH}{high})"


def _number(value: float | None) -> str:
    known = value is not None and value == value  # noqa: PLR0124 - not a number is not itself
    return number(value, 3) if known else DASH
