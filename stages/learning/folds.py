"""Which records train, validate and test in each fit."""

from __future__ import annotations

import numpy as np

from cache.errors import InputError
from cache.record_columns import Texts
from cache.records import SPLITS
from stages.learning.data import Data
from stages.learning.membership import Membership

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
        Fewer folds than asked for, or fewer than three; fewer than two sources; a patient in two parts of a fit;
        a record without a patient.
    """
    splits = _splits(data.membership, data.usable, folds)
    _check_patients(data.membership.patient, splits)
    return splits


def _splits(membership: Membership, usable: np.ndarray, folds: str | int) -> list[Split]:
    if folds == "split":
        parts = [np.flatnonzero(usable & membership.split.equal(name)) for name in SPLITS]
        return [(parts[0], parts[1], parts[2])]
    if folds == BY_SOURCE:
        return _leave_source_out(membership.source, membership.split, usable)
    known, rank = np.unique(membership.fold[usable], return_inverse=True)
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


def _leave_source_out(source: Texts, split: Texts, usable: np.ndarray) -> list[Split]:
    codes = np.unique(source.codes[usable])
    if len(codes) < 2:
        raise InputError(
            f"`folds: source` needs at least 2 sources with a vector; records.parquet has {len(codes)}: name several "
            "under `cohorts` in params.yaml"
        )
    found, judging = [], split.equal("val")
    for code in codes:
        others = usable & (source.codes != code)
        val = np.flatnonzero(others & judging)
        if not len(val):
            name = source.name(code)
            raise InputError(f"`folds: source`: without '{name}' no record is in the split val; give more patients")
        found.append((np.flatnonzero(others & ~judging), val, np.flatnonzero(usable & (source.codes == code))))
    return found


def _check_patients(patient: Texts, splits: list[Split]) -> None:
    """Refuse a patient in two parts of a fit, by name: heads know patients by numbers alone."""
    for fit, parts in enumerate(splits):
        inside = np.zeros((len(SPLITS), len(patient.names)), bool)
        for part, rows in zip(inside, parts, strict=True):
            codes = patient.codes[rows]
            if unknown := int((codes < 0).sum()):
                raise InputError(f"fit {fit}: {unknown} records have no patient_id; name each one's patient, or itself")
            part[codes] = True
        for a, b in ((0, 1), (0, 2), (1, 2)):
            shared = np.flatnonzero(inside[a] & inside[b])
            if len(shared):
                raise InputError(
                    f"fit {fit}: patient '{patient.name(shared[0])}' is in both {SPLITS[a]} and {SPLITS[b]} "
                    f"({len(shared)} such patients)"
                )
