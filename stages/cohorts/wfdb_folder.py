"""Any folder of WFDB records, with labels from a CSV file.

A label column's kind is what `kinds` says, or else follows from its cells: two numbers or two words binary, more
numbers regression, more words multiclass, words joined by ";" multilabel.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import Field

from cache.errors import InputError, MissingFileError, UsageError
from cache.records import BASE_COLUMNS, Kind, Target
from stages.cohorts._base import Cohort, Entries, Options, check_not_empty
from stages.cohorts._registry import register
from stages.readers.record_search import find_records, no_record
from stages.readers.tables import numbers, read_table

MAX_CLASSES = 1000
SEPARATOR = ";"
NULLS = frozenset({"NaN", "nan", "NAN", "NA", "N/A", "n/a", "<NA>", "null", "NULL", "Null", "None"})
"""Cells that say "not known" as spreadsheets and other programs write it."""
PATIENT_COLUMNS = ("patient_id", "subject_id")


class LabelOptions(Options):
    """A table of labels: where it lies, which column names the record, which columns are labels of which kind."""

    labels: str | None = None
    id: str | None = None
    patient: str | None = None
    fold: str | None = None
    targets: list[str] | None = None
    kinds: dict[str, Kind] = Field(default_factory=dict)


@register("wfdb")
class WfdbFolder(Cohort):
    """A folder of WFDB records, searched with everything below it; `labels` names a CSV keyed by record or path."""

    title = "WFDB records (.hea beside .dat or .mat)"
    options_type = LabelOptions
    options: LabelOptions
    holds = ()

    def entries(self) -> Entries:
        """List the headers in order of their paths and join the labels."""
        notes: list[str] = []
        paths = find_records(self.data, notes)
        if not paths:
            raise no_record(self.data)
        return labelled_entries(paths, self.folder, self.options, notes)


def labelled_entries(paths: list[str], folder: Path, options: LabelOptions, notes: list[str]) -> Entries:
    """Join labels to a list of paths. A record is named by its file name, or by its path where names repeat."""
    names = [path.rsplit("/", 1)[-1] for path in paths]
    ids = names if len(set(names)) == len(names) else paths
    frame = pd.DataFrame({"record_id": ids, "patient_id": None, "path": paths})
    if options.labels is None:
        return Entries(frame, [], [*notes, "no labels: name a CSV file by the option 'labels'"])
    table, path, more = read_labels(folder, options)
    notes = [*notes, *more]
    key = _key_column(table, path, options)
    rows = _rows_of(frame, table[key], path, notes)
    return Entries(frame, add_labels(frame, table.drop(columns=key), rows, path, options, notes), notes)


def add_labels(
    frame: pd.DataFrame, table: pd.DataFrame, rows: list[int], path: Path, options: LabelOptions, notes: list[str]
) -> list[Target]:
    """Add patients, folds and targets to `frame`, whose record k is row `rows[k]` of `table` (-1: none)."""
    patient = options.patient or _patient_column(table, options)
    if patient is not None:
        check_column(table, path, patient, "patient")
        frame["patient_id"] = _cells(table[patient], rows)
    if frame["patient_id"].isna().all():
        notes.append("no patients: every record counts as one of its own; name a column by the option 'patient'")
    elif options.patient is None:
        notes.append(f"patients: those of column '{patient}' (option 'patient' names another one)")
    if options.fold is not None:
        check_column(table, path, options.fold, "fold")
        frame["fold"] = _folds(_cells(table[options.fold], rows), path, options.fold)
    names = _target_columns(table, path, patient, options, notes)
    return [_add_target(frame, _cells(table[name], rows), name, path, options, notes) for name in names]


def _patient_column(table: pd.DataFrame, options: LabelOptions) -> str | None:
    """Return the column that says by its name that it holds patients, if it is not used as something else."""
    used = {options.id, options.fold, *(options.targets or ())}
    return next((name for name in PATIENT_COLUMNS if name in table and name not in used), None)


def _cells(column: pd.Series, rows: list[int]) -> pd.Series:
    """Return the cell of each record; None where it has no row, or the cell says that nothing is known."""
    cells = [column.iloc[r] if r >= 0 else None for r in rows]
    return pd.Series([None if cell in NULLS else cell for cell in cells], dtype=object)


def read_labels(
    folder: Path, options: LabelOptions, *, row_for_row: bool = False
) -> tuple[pd.DataFrame, Path, list[str]]:
    """Read the table that the option `labels` names; returns it, its path and notes.

    With `row_for_row` a malformed row is an error: passing it over would give every later record another one's labels.
    """
    path = Path(str(options.labels))
    path = path if path.is_absolute() or path.is_file() else folder / path
    if not path.is_file():
        raise MissingFileError(f"{options.labels} does not exist; option 'labels' must name a CSV file")
    table, notes = read_table(path, strict=row_for_row)
    check_not_empty(table, path)
    return table, path, notes


def check_column(table: pd.DataFrame, path: Path, name: str, option: str) -> None:
    """Refuse an option that names a column which is not there."""
    if name not in table:
        raise InputError(f"{path}: has no column '{name}' (option '{option}'); it has: {', '.join(table)[:200]}")


def _key_column(table: pd.DataFrame, path: Path, options: LabelOptions) -> str:
    if options.id is not None:
        check_column(table, path, options.id, "id")
        return options.id
    for name in ("record_id", "record", "path", "file_name", "filename", "id"):
        if name in table:
            return name
    return str(table.columns[0])


def _rows_of(frame: pd.DataFrame, keys: pd.Series, path: Path, notes: list[str]) -> list[int]:
    """Return the row of the table for each record, -1 where it has none."""
    where: dict[str, int] = {}
    for row, key in enumerate(keys):
        if key is None:
            continue
        plain = str(key).removeprefix("./").removesuffix(".hea").removesuffix(".dat").removesuffix(".mat")
        if plain in where:
            raise InputError(f"{path}: names the record {str(key)[:80]!r} more than once")
        where[plain] = row
    paths = frame["path"].tolist()
    names = _short_names(paths, where, path)
    twice = next((p for p, name in zip(paths, names, strict=True) if p != name and p in where and name in where), None)
    if twice is not None:
        raise InputError(f"{path}: names the record {twice[:80]!r} more than once, by its path and by its file name")
    rows = [where.get(p, where.get(name, -1)) for p, name in zip(paths, names, strict=True)]
    used = set(rows) - {-1}
    if not used:
        raise InputError(
            f"{path}: none of its {len(where)} keys (such as {next(iter(where), '')[:80]!r}) is a record (such as "
            f"'{frame['record_id'].iloc[0]}'); name the right column by the option 'id'"
        )
    if len(used) < len(where):
        unused = next(key for key, row in where.items() if row not in used)
        notes.append(f"{path.name}: {len(where) - len(used)} keys (such as {unused[:80]!r}) have no record")
    if -1 in rows:
        notes.append(f"{path.name}: {rows.count(-1)} records have no row; their labels are null")
    return rows


def _short_names(paths: list[str], where: dict[str, int], table: Path) -> list[str]:
    """Return the file name by which a key may name each record; its path where the file name is another one's path.

    Raises
    ------
    InputError
        A key is the file name of several records and the path of none.
    """
    names, whole = [p.rsplit("/", 1)[-1] for p in paths], set(paths)
    counts = Counter(names)
    for name, p in zip(names, paths, strict=True):
        if counts[name] > 1 and name in where and name not in whole:
            other = next(q for q, n in zip(paths, names, strict=True) if n == name and q != p)
            raise InputError(
                f"{table}: the key '{name[:80]}' names {counts[name]} records (such as '{p}' and '{other}'); "
                "give their paths instead"
            )
    return [p if name in whole else name for name, p in zip(names, paths, strict=True)]


def _folds(column: pd.Series, path: Path, name: str | None) -> np.ndarray:
    folds = numbers(column)
    if not (np.isfinite(folds) & (folds == np.floor(folds)) & (folds >= 0) & (folds < 1000)).all():
        raise InputError(f"{path}: column '{name}' (option 'fold') is not a whole number from 0 up for every record")
    return folds.astype(int)


def _target_columns(
    table: pd.DataFrame, path: Path, patient: str | None, options: LabelOptions, notes: list[str]
) -> list[str]:
    taken = {options.id, patient, options.fold}
    names = options.targets if options.targets is not None else [c for c in table if c not in taken and c]
    for name in [*names, *options.kinds]:
        check_column(table, path, name, "targets")
    for name in names:
        if name in BASE_COLUMNS and options.targets is not None:
            raise UsageError(f"a target cannot be named '{name}'; rename the column in {path}")
    others = {*BASE_COLUMNS, *(PATIENT_COLUMNS if options.targets is None else ())}
    taken_names = [name for name in names if name in others]
    if taken_names:
        notes.append(f"{path.name}: not taken for labels, for their names: {', '.join(taken_names)}")
    return [name for name in names if name not in others]


def _add_target(
    frame: pd.DataFrame, cells: pd.Series, name: str, path: Path, options: LabelOptions, notes: list[str]
) -> Target:
    if cells.isna().all():
        raise InputError(f"{path}: label column '{name}' is empty; fill it, or leave it out by the option 'targets'")
    kind = options.kinds.get(name) or infer_kind(cells)
    if kind == "regression":
        frame[name] = numbers(cells)
        if np.isnan(frame[name]).all():
            raise InputError(f"{path}: label column '{name}' holds no number; it cannot be regression")
        no_number = int((np.isnan(frame[name]) & cells.notna()).sum())
        if no_number:
            notes.append(f"{name}: {no_number} cells are no number and become null")
        return Target(name, "regression")
    if kind == "multilabel":
        lists = [_parts(cell) for cell in cells]
        classes = _classes((c for present in lists for c in present or ()), name, path)
        frame[name] = lists
        return Target(name, "multilabel", classes=classes)
    classes = _classes((c for c in cells if c is not None), name, path)
    if kind == "binary" and len(classes) > 2:
        raise InputError(f"{path}: label column '{name}' has {len(classes)} values; it cannot be binary")
    index = {value: k for k, value in enumerate(classes)}
    if kind == "binary" and set(classes) <= {"0", "1"}:
        index = {"0": 0, "1": 1}
    frame[name] = pd.array([index.get(cell) for cell in cells], dtype="Int16")
    return Target(name, kind, classes=classes if len(classes) == len(index) else ("0", "1"))


def infer_kind(cells: pd.Series) -> Kind:
    """Say of which kind a column of texts is."""
    known = [cell for cell in cells if cell is not None]
    if any(SEPARATOR in cell for cell in known):
        return "multilabel"
    if len(set(known)) <= 2:
        return "binary"
    return "regression" if np.isfinite(numbers(pd.Series(known))).all() else "multiclass"


def _parts(cell: str | None) -> list[str] | None:
    return None if cell is None else sorted({part.strip() for part in cell.split(SEPARATOR)} - {""})


def _classes(values: object, name: str, path: Path) -> tuple[str, ...]:
    classes = set(values)  # type: ignore[call-overload]
    if len(classes) > MAX_CLASSES:
        raise InputError(f"{path}: label column '{name}' has {len(classes)} different values; is it a label?")
    as_numbers = numbers(pd.Series(sorted(classes)))
    ordered = sorted(classes) if np.isnan(as_numbers).any() else sorted(classes, key=float)
    return tuple(ordered)
