"""What `ensemble evaluate --robustness` prints: the gate on disturbed records."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from stages.scoring.metrics import METRICS
from stages.scoring.table import DASH, number

GATE = "gate"


def robustness_tables(results: dict[str, Any]) -> Iterator[Table]:
    """Give one table a task: each disturbance with the gate's metric and its difference to undisturbed records."""
    for task, found in results["tasks"].items():
        method = GATE if GATE in found["methods"] else next(iter(found["methods"]))
        judged, title = found["methods"][method], METRICS[found["metric"]].title
        table = Table(title=f"{task}: {title} of {method} on {judged['undisturbed']['records']} test records")
        for head in ("records", title, "minus undisturbed", "95 %"):
            table.add_column(head, justify="left" if head == "records" else "right")
        table.add_row("undisturbed", number(judged["undisturbed"]["value"], 3), "", "")
        for each in judged["disturbed"]:
            change = each["difference"]
            interval = f"{_text(change['low'])} to {_text(change['high'])}" if _known(change["low"]) else DASH
            table.add_row(each["words"], _text(each["value"], sign=False), _text(change["value"]), interval)
        yield table


def _known(value: float | None) -> bool:
    return value is not None and value == value  # noqa: PLR0124 - not a number is not itself


def _text(value: float | None, *, sign: bool = True) -> str:
    return number(value, 3, sign) if _known(value) else DASH
