"""Reads the table of labels, and merges several rows of one record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from cache.errors import InputError, MissingFileError
from stages.cohorts.contract import check_not_empty
from stages.cohorts.labels.options import LabelOptions
from stages.readers.tables import numbers, read_table

SEPARATOR = ";"
NULLS = frozenset({"NaN", "nan", "NAN", "NA", "N/A", "n/a", "<NA>", "null", "NULL", "Null", "None"})
"""Cells that say "not known" as spreadsheets and other programs write it."""


def read_labels(
    folder: Path,
    options: LabelOptions,
    *,
    row_for_row: bool = False,
    is_record: Callable[[str], bool] | None = None,
) -> tuple[pd.DataFrame, Path, list[str]]:
    """Read the table that the option `labels` names; returns it, its path and notes.

    With `row_for_row` a malformed row is an error: passing it over would give every later record another one's labels.

    Parameters
    ----------
    is_record
        Whether a text is the name of a record; a head with one is no head.

    Raises
    ------
    MissingFileError, InputError
        No such table, one that cannot be read, that lists nothing, or has no head.
    """
    path = Path(str(options.labels))
    path = path if path.is_absolute() or path.is_file() else folder / path
    if not path.is_file():
        raise MissingFileError(f"{options.labels} does not exist; option 'labels' must name a CSV or Excel file")
    table, notes = read_table(path, strict=row_for_row, encoding=options.encoding, names=options.columns)
    check_not_empty(table, path)
    if options.columns is None:
        _check_head(table, path, is_record)
    return table, path, notes


def _check_head(table: pd.DataFrame, path: Path, is_record: Callable[[str], bool] | None) -> None:
    """Refuse a table whose first row is a record: it would lose its label and give its value as a label's name."""
    names = [str(name) for name in table]
    cell = next((name for name in names if name and is_record is not None and is_record(name)), None)
    values = numbers(pd.Series(names, dtype=object))
    counted = np.array_equal(values, np.arange(len(names)))  # pandas names columns so
    if cell is None and len(names) > 1 and np.isfinite(values).all() and not counted:
        cell = names[0]
    if cell is not None:
        raise InputError(
            f"{path}: has no head, its first row is a record's ('{cell[:80]}'); add one, or name its columns by the "
            "option 'columns'"
        )


def check_column(table: pd.DataFrame, path: Path, name: str, option: str) -> None:
    """Refuse an option that names a column which is not there."""
    if name not in table:
        raise InputError(f"{path}: has no column '{name}' (option '{option}'); it has: {', '.join(table)[:200]}")


def cells_of(
    column: pd.Series,
    rows: list[list[int]],
    records: list[str],
    path: Path,
    notes: list[str],
    *,
    findings: bool = False,
) -> pd.Series:
    """Return the cell of each record; None where it has no row, or the cell says that nothing is known.

    Words in several rows of one record are joined: a long table lists one finding a row.

    Parameters
    ----------
    findings
        The study says that the cells are findings: numbers are joined, too (codes).

    Raises
    ------
    InputError
        A record has different numbers.
    """
    values: list[str | None] = [None if cell in NULLS else cell for cell in column]
    cells, n_joined = [], 0
    for record, record_rows in zip(records, rows, strict=True):
        different = list(dict.fromkeys(cell for row in record_rows if (cell := values[row]) is not None))
        if len(different) > 1:
            if not findings and np.isfinite(numbers(pd.Series(different, dtype=object))).all():
                raise InputError(
                    f"{path}: names the record '{record[:80]}' more than once, with different numbers in column "
                    f"'{column.name}' ({', '.join(different)[:80]}); keep one row a record, or leave the column out by "
                    f"the option 'targets'; {{kinds: {{{column.name}: multilabel}}}} takes them as findings, and "
                    f"{{label_names: COLUMN, label_values: {column.name}}} as values of the labels that COLUMN names"
                )
            n_joined += 1
        cells.append(SEPARATOR.join(different) if different else None)
    if n_joined:
        notes.append(f"{path.name}: {n_joined} records have several rows; their cells of '{column.name}' are joined")
    return pd.Series(cells, dtype=object)
