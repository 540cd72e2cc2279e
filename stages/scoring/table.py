"""The table a person sees in the terminal after a run: headline metric of every task and method.

Lives here: its layout, and how a value with its interval is written. Not here: the numbers (`summary`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from stages.scoring.metrics import METRICS

DASH = "\N{EN DASH}"
GROUPS = ("ensemble", "single experts", "baseline")
_FIRST = ("gate", "enecg", "ppa", "pma", "attention", "full_rank", "probe_head", "concat", "stacking", "mean", "knn")
_ANY_WIDTH = 10_000
Pairs = list[tuple[str, str]]
"""(task, metric) of columns."""
_MARKS = {"better": "▲", "worse": "▼", "same": "≈"}


def method_group(method: str) -> str:
    """Return the group a method belongs to: one of `GROUPS`."""
    if method.startswith("expert:"):
        return "single experts"
    return "baseline" if method == "trivial" else "ensemble"


def ordered_methods(metrics: dict[str, Any]) -> list[str]:
    """Return the methods of all tasks: ensembles first (the gate leading), single experts, baselines."""
    names = list(dict.fromkeys(name for task in metrics["tasks"].values() for name in task["methods"]))
    rank = {name: k for k, name in enumerate(_FIRST)}
    return sorted(names, key=lambda name: (GROUPS.index(method_group(name)), rank.get(name, len(rank))))


def columns(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the (task, headline metric) pairs."""
    return [(name, metric) for name, task in metrics["tasks"].items() for metric in task["headline"]]


def decimals(metrics: dict[str, Any], task: str, metric: str) -> int:
    """Return how many decimals a column needs: three, or three figures of a value with a unit."""
    values = [found[metric]["value"] for found in metrics["tasks"][task]["methods"].values()]
    known = [abs(value) for value in values if value is not None]
    if not (METRICS[metric].has_unit or metric == "mse") or not known:
        return 3
    return 0 if min(known) >= 100 else 1 if min(known) >= 10 else 2


def number(value: float | None, places: int, sign: bool = False) -> str:
    """Write a value with so many decimals; an undefined one as a dash, a negative one with a real minus."""
    if value is None:
        return DASH
    rounded = round(value, places) + 0.0  # adding 0.0 turns -0.0 into 0.0
    return f"{rounded:{'+' if sign else ''}.{places}f}".replace("-", "\N{MINUS SIGN}")


def best_method(metrics: dict[str, Any], task: str, metric: str) -> str | None:
    """Return the method with the best value of a column; None where all are undefined."""
    sign = 1 if METRICS[metric].higher_is_better else -1
    values = {name: found[metric]["value"] for name, found in metrics["tasks"][task]["methods"].items()}
    known = {name: sign * value for name, value in values.items() if value is not None}
    return max(known, key=lambda name: known[name]) if known else None


def metrics_tables(metrics: dict[str, Any], width: int | None = None) -> list[Table]:
    """Return the headline metrics as tables that are at most so many characters wide; None: as one table.

    Columns that do not fit beside one another follow in a table of their own, with intervals below the values.
    """
    return _fitting(lambda pairs, stacked: metrics_table(metrics, pairs, stacked), columns(metrics), width)


def differences_tables(metrics: dict[str, Any], width: int | None = None) -> list[Table]:
    """Return the differences likewise; none where there is nothing to compare."""
    if differences_table(metrics) is None:
        return []
    return _fitting(lambda pairs, stacked: differences_table(metrics, pairs, stacked), columns(metrics), width)


def _fitting(draw: Callable[[Pairs, bool], Table | None], pairs: Pairs, width: int | None) -> list[Table]:
    """Return one table where it fits; else tables that take as many columns as do, at least one."""
    whole = draw(pairs, False)
    if whole is None or width is None or width_of(whole) <= width:
        return [whole] if whole else []
    parts: list[Pairs] = []
    for pair in pairs:
        longer = [*parts[-1], pair] if parts else [pair]
        table = draw(longer, True)
        if parts and table is not None and width_of(table) <= width:
            parts[-1] = longer
        else:
            parts.append([pair])
    tables = [draw(part, True) for part in parts]
    for table in tables[:-1]:
        if table is not None:
            table.caption = None
    for table in tables[1:]:
        if table is not None:
            table.title = None
    return [table for table in tables if table is not None]


def width_of(table: Table) -> int:
    """Return how many characters a table needs so that nothing is cut or wrapped."""
    console = Console(width=_ANY_WIDTH)
    bare = console.measure(table).maximum
    return max(bare, *(len(str(words)) for words in (table.title or "", table.caption or "")))


def metrics_table(metrics: dict[str, Any], pairs: Pairs | None = None, stacked: bool = False) -> Table:
    """Return the headline metrics as a rich table: methods down, tasks across.

    Parameters
    ----------
    pairs
        (task, metric) of each column; None: all.
    stacked
        Intervals stand below the values.

    The best value of a column is bold; ▲ ▼ ≈ say whether a method is better than, worse than or not to be told from
    the best single expert (95 % patient-bootstrap interval of the paired difference).
    """
    table = Table(title="Test records, 95 % patient-bootstrap interval", title_justify="left")
    table.add_column("method", no_wrap=True)
    pairs = columns(metrics) if pairs is None else pairs
    for task, metric in pairs:
        unit = metrics["tasks"][task]["unit"] if METRICS[metric].has_unit else ""
        arrow = "↑" if METRICS[metric].higher_is_better else "↓"
        words = f"{task}\n{METRICS[metric].title}{f', {unit}' if unit else ''} {arrow}"
        table.add_column(Text(words), justify="right")
    previous = None
    for method in ordered_methods(metrics):
        if previous and method_group(method) != previous:
            table.add_section()
        previous = method_group(method)
        table.add_row(method, *(_cell(metrics, task, metric, method, stacked) for task, metric in pairs))
    table.caption = "▲ better, ▼ worse, ≈ no clear difference to the best single expert (marked ●)"
    table.caption_justify = "left"
    return table


def differences_table(metrics: dict[str, Any], pairs: Pairs | None = None, stacked: bool = False) -> Table | None:
    """Return each method minus the best single expert as a rich table; None where there is nothing to compare."""
    pairs = columns(metrics) if pairs is None else pairs
    methods = [m for m in ordered_methods(metrics) if any(m in t["differences"] for t in metrics["tasks"].values())]
    if not methods:
        return None
    table = Table(title="Minus the best single expert, same patients redrawn, 95 % interval", title_justify="left")
    table.add_column("method", no_wrap=True)
    for task, metric in pairs:
        best = (metrics["tasks"][task]["best_single_expert"] or "").removeprefix("expert:")
        table.add_column(Text(f"{task}\n{METRICS[metric].title} minus {best or 'none'}"), justify="right")
    for method in methods:
        table.add_row(method, *(_difference_cell(metrics, task, metric, method, stacked) for task, metric in pairs))
    return table


def difference_text(metrics: dict[str, Any], task: str, metric: str, method: str) -> tuple[str, str]:
    """Return a method's difference to the best single expert and its interval; "" for what there is not."""
    found = metrics["tasks"][task]["differences"].get(method, {}).get(metric)
    if found is None:
        return "", ""
    places = decimals(metrics, task, metric)
    value, low, high = (number(found[key], places, sign=True) for key in ("value", "low", "high"))
    return value, "" if found["low"] is None else f"{low} to {high}"


def _difference_cell(metrics: dict[str, Any], task: str, metric: str, method: str, stacked: bool) -> Text:
    value, interval = difference_text(metrics, task, metric, method)
    text = Text(f"{value} {mark(metrics, task, metric, method)}" if value else "")
    return text.append(f"{_between(stacked)}({interval})" if interval else "", style="dim")


def _between(stacked: bool) -> str:
    return "\n" if stacked else " "


def _cell(metrics: dict[str, Any], task: str, metric: str, method: str, stacked: bool) -> Text:
    found = metrics["tasks"][task]["methods"].get(method)
    if found is None:
        return Text("", style="dim")
    places = decimals(metrics, task, metric)
    value, low, high = (number(found[metric][key], places) for key in ("value", "low", "high"))
    text = Text(value, style="bold" if method == best_method(metrics, task, metric) else "")
    text.append(f" {mark(metrics, task, metric, method)}", style="not bold")
    return text.append(
        f"{_between(stacked)}({low}{DASH}{high})" if found[metric]["low"] is not None else "", style="not bold dim"
    )


def mark(metrics: dict[str, Any], task: str, metric: str, method: str) -> str:
    """Return ● for the best single expert, else how the method compares with it; a space where that is unknown."""
    found = metrics["tasks"][task]
    if method == found["best_single_expert"]:
        return "●"
    difference = found["differences"].get(method, {}).get(metric, {})
    return _MARKS.get(difference.get("verdict"), " ")
