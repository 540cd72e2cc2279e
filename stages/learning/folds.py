"""Which records train, validate and test in each fit."""

from __future__ import annotations

import numpy as np

from cache.errors import InputError
from stages.learning.data import Data

BY_SOURCE = "source"

Split = tuple[np.ndarray, np.ndarray, np.ndarray]


def make_splits(data: Data, folds: str | int) -> list[Split]:
    """Return (train, validation, test) rows per fit; rows without any vector are in none.

    Parameters
    ----------
    folds
        "split": the table's own split, one fit. "all": as many fits as folds; fold k is tested by fit k, the next one
        validates, the others train. A number: the same with the folds grouped into so many. Folds count by rank, so
        that gaps in their numbers ({0, 2, 4, 6}) leave no group empty; a fold without a usable record is none.
        "source": as many fits as sources, in the order of their names. Fit k is tested by the k-th source alone; of the
        others, the records that the table's split names val validate, and all else trains.

    Raises
    ------
    InputError
        Fewer folds than asked for, or fewer than three; fewer than two sources.
    """
    usable = data.usable
    if folds == "split":
        split = data.records["split"].to_numpy()
        parts = [np.flatnonzero(usable & (split == name)) for name in ("train", "val", "test")]
        return [(parts[0], parts[1], parts[2])]
    if folds == BY_SOURCE:
        return _leave_source_out(data.records["source"].to_numpy(), data.records["split"].to_numpy(), usable)
    known, rank = np.unique(data.records["fold"].to_numpy()[usable], return_inverse=True)
    n_groups = len(known) if folds == "all" else int(folds)
    if not 3 <= n_groups <= len(known):
        raise InputError(
            f"`folds: {folds}` needs at least 3 folds and no more than there are; records.parquet has {len(known)}"
        )
    rows, group = np.flatnonzero(usable), rank % n_groups
    return [_fit_rows(rows, group, test, (test + 1) % n_groups) for test in range(n_groups)]


def _fit_rows(rows: np.ndarray, group: np.ndarray, test: int, val: int) -> Split:
    """Return the rows whose group trains, validates and tests."""
    return rows[(group != test) & (group != val)], rows[group == val], rows[group == test]


def _leave_source_out(source: np.ndarray, split: np.ndarray, usable: np.ndarray) -> list[Split]:
    names = sorted(set(source[usable]))
    if len(names) < 2:
        raise InputError(
            f"`folds: source` needs at least 2 sources with a vector; records.parquet has {len(names)}: name several "
            "under `cohorts` in params.yaml"
        )
    found = []
    for name in names:
        others = usable & (source != name)
        val = np.flatnonzero(others & (split == "val"))
        if not len(val):
            raise InputError(f"`folds: source`: without '{name}' no record is in the split val; give more patients")
        found.append((np.flatnonzero(others & (split != "val")), val, np.flatnonzero(usable & (source == name))))
    return found
