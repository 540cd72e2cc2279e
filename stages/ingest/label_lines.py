"""One line a label: its kind, its classes or range, and how many records lack it."""

from __future__ import annotations

import numpy as np
import pandas as pd

from cache.follow_up import times_and_events
from cache.records import Target
from stages.ingest.record_table import Rows

N_CLASSES_SHOWN = 8
LONGEST_CLASS = 40


def label_lines(rows: Rows) -> list[str]:
    """Describe every label of a table."""
    return [_line(rows.frame[target.name], target) for target in rows.targets]


def _line(column: pd.Series, target: Target) -> str:
    n_missing = int(column.isna().sum())
    return (
        f"label {target.name}: {target.kind}, {_content(column.dropna(), target)}; {n_missing} of {len(column)} missing"
    )


def _content(known: pd.Series, target: Target) -> str:
    if not len(known):
        return "no value"
    if target.kind == "regression":
        unit = f" {target.unit}" if target.unit else ""
        return f"{known.min():.6g} to {known.max():.6g}{unit}, median {known.median():.6g}"
    if target.kind == "survival":
        times, events = times_and_events(known.to_numpy())
        return f"{int(events.sum())} events, median follow-up {np.median(times):.4g} {target.unit}".rstrip()
    if target.kind == "multilabel":
        counts = known.explode().value_counts()
    else:
        counts = known.astype(int).map(dict(enumerate(target.classes))).value_counts()
    ordered = sorted(counts.items(), key=lambda item: (-int(item[1]), str(item[0])))
    shown = ", ".join(f"{str(name)[:LONGEST_CLASS]} {n}" for name, n in ordered[:N_CLASSES_SHOWN])
    more = f" and {len(ordered) - N_CLASSES_SHOWN} more" if len(ordered) > N_CLASSES_SHOWN else ""
    return f"{len(target.classes)} classes ({shown}{more})"
