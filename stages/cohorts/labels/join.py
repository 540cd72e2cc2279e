"""Joins a table of labels to a list of records: patients, folds, and one target a column."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from cache.errors import InputError, UsageError
from cache.records import BASE_COLUMNS, CellKind, Target
from stages.cohorts.contract import Entries
from stages.cohorts.labels.cell_lists import read_lists
from stages.cohorts.labels.follow_up import add_follow_up
from stages.cohorts.labels.keys import KeyMatcher, is_index, key_candidates
from stages.cohorts.labels.kinds import Column, as_numbers, infer
from stages.cohorts.labels.long_table import widened
from stages.cohorts.labels.options import LabelOptions
from stages.cohorts.labels.table import SEPARATOR, cells_of, check_column, read_labels
from stages.readers.tables import numbers

MAX_CLASSES = 1000
PATIENT_COLUMNS = ("patient_id", "subject_id")


def labelled_entries(paths: list[str], folder: Path, options: LabelOptions, notes: list[str]) -> Entries:
    """Join labels to a list of paths. A record is named by its file name, or by its path where names repeat."""
    names = [path.rsplit("/", 1)[-1] for path in paths]
    ids = names if len(set(names)) == len(names) else paths
    frame = pd.DataFrame({"record_id": ids, "patient_id": None, "path": paths}, dtype=object)  # names of any bytes
    if options.labels is None:
        return Entries(frame, [], [*notes, "no labels: name a CSV file by the option 'labels'"])
    matcher = KeyMatcher(paths, Path(options.labels))
    table, path, more = read_labels(folder, options, is_record=matcher.is_record)
    notes = [*notes, *more]
    key = key_column(table, path, matcher, options, notes)
    rows = matcher.rows(table[key], notes)
    return Entries(frame, add_labels(frame, table.drop(columns=key), rows, path, options, notes), notes)


def add_labels(
    frame: pd.DataFrame, table: pd.DataFrame, rows: list[list[int]], path: Path, options: LabelOptions, notes: list[str]
) -> list[Target]:
    """Add patients, folds and targets to `frame`, whose record k has the rows `rows[k]` of `table`."""
    records = frame["record_id"].astype(str).tolist()
    table = widened(table, rows, path, options, notes)
    patient = options.patient or _patient_column(table, options)
    if patient is not None:
        check_column(table, path, patient, "patient")
        frame["patient_id"] = _single(cells_of(table[patient], rows, records, path, []), records, path, patient)
    if frame["patient_id"].isna().all():
        notes.append("no patients: every record counts as one of its own; name a column by the option 'patient'")
    elif patient is not None and options.patient is None:
        notes.append(f"patients: those of column '{patient}' (option 'patient' names another one)")
    if options.fold is not None:
        check_column(table, path, options.fold, "fold")
        frame["fold"] = _folds(cells_of(table[options.fold], rows, records, path, []), path, options.fold)

    def label_cells(name: str) -> pd.Series:
        return cells_of(table[name], rows, records, path, notes, findings=options.kinds.get(name) == "multilabel")

    targets = add_follow_up(frame, table, label_cells, path, options, notes)
    for name in _target_columns(table, path, patient, options, notes):
        target = _add_target(frame, label_cells(name), name, path, options, notes)
        targets += [] if target is None else [target]
    return targets


def key_column(table: pd.DataFrame, path: Path, matcher: KeyMatcher, options: LabelOptions, notes: list[str]) -> str:
    """Return the column that names the record: one that says so, else the one that names most records."""
    if options.id is not None:
        check_column(table, path, options.id, "id")
        return options.id
    candidates = key_candidates(table)
    counts = {name: matcher.count(table[name]) for name in candidates}
    chosen = next((name for name in candidates[:1] if counts[name]), max(candidates, key=lambda name: counts[name]))
    if not counts[chosen]:
        return candidates[0]
    if chosen != candidates[0]:
        notes.append(f"{path.name}: column '{chosen}' names the records (option 'id' names another one)")
    return chosen


def _patient_column(table: pd.DataFrame, options: LabelOptions) -> str | None:
    """Return the column that says by its name that it holds patients, if it is not used as something else."""
    used = {options.id, options.fold, *(options.targets or ())}
    return next((name for name in PATIENT_COLUMNS if name in table and name not in used), None)


def _single(cells: pd.Series, records: list[str], path: Path, name: str) -> pd.Series:
    """Refuse a record that has several patients."""
    for record, cell in zip(records, cells, strict=True):
        if cell is not None and SEPARATOR in cell:
            raise InputError(f"{path}: column '{name}' has several patients for record '{record[:80]}': {cell[:80]}")
    return cells


def _folds(column: pd.Series, path: Path, name: str | None) -> np.ndarray:
    folds = numbers(column)
    if not (np.isfinite(folds) & (folds == np.floor(folds)) & (folds >= 0) & (folds < 1000)).all():
        raise InputError(f"{path}: column '{name}' (option 'fold') is not a whole number from 0 up for every record")
    return folds.astype(int)


def _target_columns(
    table: pd.DataFrame, path: Path, patient: str | None, options: LabelOptions, notes: list[str]
) -> list[str]:
    taken = {options.id, patient, options.fold, *(c for f in options.survival.values() for c in (f.time, f.event))}
    named = options.targets
    names = named if named is not None else [c for c in table if c not in taken and not is_index(str(c))]
    for name in [*names, *options.kinds, *options.separators]:
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
) -> Target | None:
    """Add one target; None, with a note, where the column is not taken for one."""
    if cells.isna().all():
        raise InputError(f"{path}: label column '{name}' is empty; fill it, or leave it out by the option 'targets'")
    column = _column(cells, name, options)
    notes += [f"{name}: {note}" for note in column.notes]
    if column.kind is None:
        says = f"column '{name}' is not taken for a label: {column.reason}"
        settles = f"{{kinds: {{{name}: regression, binary, multiclass or multilabel}}}} takes it"
        if name in (options.targets or ()):
            raise InputError(f"{path}: {says}; cohort.options: {settles}")
        notes.append(f"{path.name}: {says}; cohort.options: {settles}")
        return None
    return _as_target(frame, column.cells, name, column.kind, path, notes)


def _column(cells: pd.Series, name: str, options: LabelOptions) -> Column:
    given = options.kinds.get(name)
    if given in (None, "multilabel"):
        cells, are_findings, note = read_lists(cells, options.separators.get(name))
        notes = (note.replace("COLUMN", name),) if note else ()
        if are_findings:
            return Column(cells, "multilabel", notes)
    if given is None:
        column = infer(cells, name, decimal=options.decimal, asked=name in (options.targets or ()))
        suspected = notes if column.kind in ("binary", "multiclass") else ()
        return replace(column, notes=(*column.notes, *suspected))
    column = as_numbers(cells, options.decimal) if given == "regression" else Column(cells)
    return Column(column.cells, given, column.notes)


def _as_target(
    frame: pd.DataFrame, cells: pd.Series, name: str, kind: CellKind, path: Path, notes: list[str]
) -> Target:
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


def _parts(cell: str | None) -> list[str] | None:
    return None if cell is None else sorted({part.strip() for part in cell.split(SEPARATOR)} - {""})


def _classes(values: object, name: str, path: Path) -> tuple[str, ...]:
    classes = set(values)  # type: ignore[call-overload]
    if len(classes) > MAX_CLASSES:
        raise InputError(f"{path}: label column '{name}' has {len(classes)} different values; is it a label?")
    as_numbers = numbers(pd.Series(sorted(classes)))
    ordered = sorted(classes) if np.isnan(as_numbers).any() else sorted(classes, key=float)
    return tuple(ordered)
