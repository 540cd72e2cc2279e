"""Folds from a table of one's own or of ECGBench (folds.csv: record, patient, paths, fold, default_split).

They replace those of a collection. Records that the table does not have are left out: nobody says where they belong.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from cache.errors import InputError, MissingFileError
from stages.cohorts.contract import Entries, Published, check_not_empty
from stages.cohorts.labels.keys import KeyMatcher
from stages.readers.tables import numbers, read_table

FOLD, SPLIT = "fold", "default_split"
SPLITS = ("train", "val", "test")
MAX_FOLD = 1000


def with_folds(entries: Entries, folder: Path, table_path: str, column: str) -> Entries:
    """Return entries with the folds of a table.

    Parameters
    ----------
    table_path
        A CSV or Excel file, or a folder with ECGBench's folds.csv in it or in `clean/`.
    column
        Of the table: the number of the fold.

    Raises
    ------
    MissingFileError, InputError
        No such table or column, no row of it is a record, or a fold is no whole number from 0 up.
    """
    path = _place(folder, table_path)
    table, notes = read_table(path)
    check_not_empty(table, path)
    if column not in table:
        raise InputError(f"{path}: has no column '{column}' (option 'folds_column'); it has: {', '.join(table)[:200]}")
    all_notes = [*entries.notes, *notes]
    rows = _rows(entries.frame, table, path, all_notes)
    has_fold = np.array([len(one) == 1 for one in rows])
    if not has_fold.all():
        all_notes.append(f"{path.name}: {int((~has_fold).sum())} records have no fold in it and are left out")
    frame = entries.frame[has_fold].reset_index(drop=True)
    chosen = [one[0] for one in rows if len(one) == 1]
    folds = numbers(table[column])[chosen]
    if not (np.isfinite(folds) & (folds == np.floor(folds)) & (folds >= 0) & (folds < MAX_FOLD)).all():
        raise InputError(f"{path}: column '{column}' is not a whole number from 0 up for every record")
    splits = table[SPLIT].iloc[chosen].tolist() if SPLIT in table and column == FOLD else None
    numbered, published = _numbered(folds.astype(int), splits, path)
    all_notes.append(f"folds: those of {path.name}")
    return replace(entries, frame=frame.assign(fold=numbered), notes=all_notes, published=published)


def _place(folder: Path, given: str) -> Path:
    base = Path(given).expanduser()
    base = base if base.is_absolute() or base.exists() else folder / base
    candidates = [base / "folds.csv", base / "clean" / "folds.csv"] if base.is_dir() else [base]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        raise MissingFileError(f"{given} does not exist; option 'folds' must name a table of folds")
    return found


def _rows(frame: pd.DataFrame, table: pd.DataFrame, path: Path, notes: list[str]) -> list[list[int]]:
    """Find the row of each record, by the column and the way of naming that find most."""
    best: tuple[int, str, KeyMatcher] | None = None
    for names in (frame["record_id"].astype(str).tolist(), frame["path"].astype(str).tolist()):
        matcher = KeyMatcher(names, path)
        for column in table:
            n_found = matcher.count(table[column])
            if n_found and (best is None or n_found > best[0]):
                best = (n_found, str(column), matcher)
    if best is None:
        raise InputError(f"{path}: none of its columns names a record (such as '{frame['record_id'].iloc[0]}')")
    key_notes: list[str] = []
    rows = best[2].rows(table[best[1]], key_notes)
    notes += [note for note in key_notes if "have no row" not in note]
    return rows


def _numbered(folds: np.ndarray, splits: list[str | None] | None, path: Path) -> tuple[np.ndarray, Published | None]:
    """Return folds numbered from 0; those of validation and test, where the table says so, last and one of each."""
    if splits is None:
        return np.unique(folds, return_inverse=True)[1], None
    odd = next((str(name) for name in splits if name not in SPLITS), None)
    if odd is not None:
        raise InputError(f"{path}: column '{SPLIT}' says '{odd[:40]}'; expected train, val or test")
    is_train = np.array([name == "train" for name in splits])
    train = np.unique(folds[is_train])
    val, test = len(train), len(train) + 1
    numbered = np.where([name == "test" for name in splits], test, val)
    numbered[is_train] = np.searchsorted(train, folds[is_train])
    return numbered, Published(len(train) + 2, val=val, test=test)
