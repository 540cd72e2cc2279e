"""Tables with one label a row: a column says which label a row is of, another one its value."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from cache.errors import InputError, UsageError
from stages.cohorts.labels.keys import is_index
from stages.cohorts.labels.options import LabelOptions
from stages.cohorts.labels.table import NULLS, check_column

MOST_NAMES = 200
N_SHOWN = 3
NAME_HEADS = frozenset(
    {
        *("name", "names", "variable", "var", "label", "labels", "labelname", "target", "task", "key", "parameter"),
        *("param", "measure", "measurement", "feature", "attribute", "field", "item", "test", "testname", "analyte"),
        *("finding", "code", "type", "property", "question", "merkmal", "parametro", "名称", "变量"),
    }
)
VALUE_HEADS = frozenset(
    {
        *("value", "values", "val", "valuenum", "numericvalue", "result", "results", "resultvalue", "wert", "valeur"),
        *("valor", "valore", "值", "数值"),
    }
)
YES = frozenset({"1", "1.0", "true", "yes", "y", "present", "positive", "x", "+"})


class _Pair(NamedTuple):
    names: str
    values: str


def widened(
    table: pd.DataFrame, rows: list[list[int]], path: Path, options: LabelOptions, notes: list[str]
) -> pd.DataFrame:
    """Give each label of a long table a column of its own, empty in the rows of other labels.

    Whether a table is long is what the study says (options `label_names`, `label_values`), or what the heads of two
    columns say where records have several rows. Other tables come back as they are; so does one whose values all say
    yes, without them: its names are findings.

    Parameters
    ----------
    rows
        Of each record, in `table`.

    Raises
    ------
    UsageError
        One of the two options alone.
    InputError
        A column that is not there, or too many different names.
    """
    pair = _named(table, path, options) or _recognised(table, rows, options)
    if pair is None:
        return table
    owners = _owners(table, rows)
    names, cells = (table[name].map(_known).astype(object) for name in pair)
    if {cell.casefold() for cell in cells if cell is not None} <= YES:
        notes.append(f"{path.name}: column '{pair.values}' says yes in every row; '{pair.names}' are the findings")
        return table.drop(columns=pair.values)
    found = list(dict.fromkeys(names[(owners >= 0) & names.notna() & cells.notna()]))
    wanted = [name for name in found if options.targets is None or name in options.targets]
    if len(wanted) > MOST_NAMES:
        raise InputError(
            f"{path}: column '{pair.names}' names {len(wanted)} different labels, more than {MOST_NAMES}; say which "
            "wanted by the option 'targets'"
        )
    kept = table.drop(columns=[*pair, *(name for name in wanted if name in table and name not in pair)])
    kept = kept.drop(columns=_varying(kept, owners, path, options, notes))
    shown = ", ".join(repr(name[:40]) for name in found[:N_SHOWN])
    notes.append(
        f"{path.name}: one label a row, column '{pair.names}' says which ({shown}; {len(found)} in all), column "
        f"'{pair.values}' its value; {{targets: [{pair.names}]}} takes the names as findings instead"
    )
    return pd.concat([kept, pd.DataFrame({name: cells.where(names == name, None) for name in wanted})], axis=1)


def _known(cell: str | None) -> str | None:
    return None if cell is None or cell in NULLS else cell.strip() or None


def _owners(table: pd.DataFrame, rows: list[list[int]]) -> np.ndarray:
    """Return which record each row is of; -1: none."""
    owners = np.full(len(table), -1)
    for record, of_record in enumerate(rows):
        owners[of_record] = record
    return owners


def _named(table: pd.DataFrame, path: Path, options: LabelOptions) -> _Pair | None:
    names, values = options.label_names, options.label_values
    if names is None and values is None:
        return None
    if names is None or values is None:
        raise UsageError("the options 'label_names' and 'label_values' go together: two columns of one long table")
    check_column(table, path, names, "label_names")
    check_column(table, path, values, "label_values")
    return _Pair(names, values)


def _recognised(table: pd.DataFrame, rows: list[list[int]], options: LabelOptions) -> _Pair | None:
    """Find the two columns by their heads, where records have several rows."""
    if not any(len(of_record) > 1 for of_record in rows):
        return None
    named = {*(options.targets or ()), *options.kinds, options.patient, options.fold}
    heads = {name: re.sub(r"[\W_]", "", str(name)).lower() for name in table if not is_index(str(name))}
    names = [name for name, head in heads.items() if head in NAME_HEADS]
    values = [name for name, head in heads.items() if head in VALUE_HEADS]
    if len(names) != 1 or len(values) != 1 or named.intersection((*names, *values)):
        return None
    return _Pair(names[0], values[0])


def _varying(table: pd.DataFrame, owners: np.ndarray, path: Path, options: LabelOptions, notes: list[str]) -> list[str]:
    """Name the columns beside name and value, such as units, that are no label of a record: they vary within one."""
    asked = {*(options.targets or ()), *options.kinds, options.patient, options.fold}
    others = [name for name in table if name not in asked]
    found = [name for name in others if table[name][owners >= 0].groupby(owners[owners >= 0]).nunique().max() > 1]
    shown = [str(name) for name in found if not is_index(str(name))]
    if shown:
        notes.append(f"{path.name}: left out, they differ between rows of one record: {', '.join(shown)[:200]}")
    return found
