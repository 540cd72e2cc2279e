"""Table 1: who the patients of each split are, and what their ECGs show.

Lives here: counts and quantiles from records.parquet. Not here: files (`files`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd

from cache.records import SPLITS, Target, target_array
from stages.scoring.blocks import has_label
from stages.scoring.table import number

Rows = list[list[str]]


def characteristics(records: pd.DataFrame, tasks: Iterable[str], *, rotated: bool) -> tuple[list[str], Rows]:
    """Return heads and rows; one column for all readable records and one for each split.

    Parameters
    ----------
    rotated
        Each fold is tested once: no columns for splits.
    """
    good = records[records["status"] != "bad"]
    good.attrs = records.attrs
    parts = {"all": np.ones(len(good), dtype=bool)}
    if not rotated:
        parts |= {name: (good["split"] == name).to_numpy() for name in SPLITS if (good["split"] == name).any()}
    targets: dict[str, Target] = records.attrs.get("targets", {})
    known = dict.fromkeys(["age", "gender", "sex", *tasks])
    rows: Rows = [["records", *(f"{int(rows.sum()):,}" for rows in parts.values())]]
    rows.append(["patients", *(f"{good['patient_id'][rows].nunique():,}" for rows in parts.values())])
    for name in known:
        if name in targets and name in good:
            rows += list(_target_rows(good, targets[name], parts))
    return ["characteristic", *parts], rows


def _target_rows(good: pd.DataFrame, target: Target, parts: dict[str, np.ndarray]) -> Iterator[list[str]]:
    values = target_array(good, target)
    labelled = has_label(values)
    unit = f", {target.unit}" if target.unit else ""
    if target.kind in ("regression", "survival"):
        title = f"{target.name}{unit}, median (quartiles)"
        measured = np.abs(values.astype(np.float64))
        yield [title, *(_quartiles(measured[rows & labelled]) for rows in parts.values())]
        if target.kind == "survival":
            yield [f"{target.name}, events", *(_share(values > 0, rows & labelled) for rows in parts.values())]
    elif target.kind == "binary":
        name = target.classes[1] if target.classes else "1"
        yield [f"{target.name}: {name}", *(_share(values == 1, rows & labelled) for rows in parts.values())]
    else:
        for k, name in enumerate(target.classes):
            hot = values == k if target.kind == "multiclass" else values[:, k] == 1
            yield [f"{target.name}: {name}", *(_share(hot, rows & labelled) for rows in parts.values())]
    yield [f"{target.name}, no label", *(f"{int((rows & ~labelled).sum()):,}" for rows in parts.values())]


def _share(hot: np.ndarray, rows: np.ndarray) -> str:
    n = int(rows.sum())
    found = int((hot & rows).sum())
    return f"{found:,} ({100 * found / n:.1f} %)" if n else "0"


def _quartiles(values: np.ndarray) -> str:
    if not len(values):
        return ""
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    places = 0 if abs(middle) >= 100 else 1
    return f"{number(middle, places)} ({number(low, places)} to {number(high, places)})"
