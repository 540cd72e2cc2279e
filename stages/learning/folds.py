"""Which records train, validate and test in each fit."""

from __future__ import annotations

import numpy as np

from cache.errors import InputError
from stages.learning.data import Data

Split = tuple[np.ndarray, np.ndarray, np.ndarray]


def make_splits(data: Data, folds: str | int) -> list[Split]:
    """Return (train, validation, test) rows per fit; rows without any vector are in none.

    Parameters
    ----------
    folds
        "split": the table's own split, one fit. "all": as many fits as folds; fold k is tested by fit k, the next one
        validates, the others train. A number: the same with the folds grouped into so many.

    Raises
    ------
    InputError
        Fewer folds than asked for, or fewer than three.
    """
    usable = data.usable
    if folds == "split":
        split = data.records["split"].to_numpy()
        parts = [np.flatnonzero(usable & (split == name)) for name in ("train", "val", "test")]
        return [(parts[0], parts[1], parts[2])]
    fold = data.records["fold"].to_numpy()
    n_folds = len(set(fold.tolist()))
    n_groups = n_folds if folds == "all" else int(folds)
    if not 3 <= n_groups <= n_folds:
        raise InputError(f"`folds: {folds}` needs 3 to {n_folds} folds: records.parquet has {n_folds}")
    fold = fold % n_groups
    numbers = sorted(set(fold.tolist()))
    fits = []
    for position, test in enumerate(numbers):
        val = numbers[(position + 1) % len(numbers)]
        train = ~np.isin(fold, [test, val])
        fits.append(tuple(np.flatnonzero(usable & mask) for mask in (train, fold == val, fold == test)))
    return fits  # type: ignore[return-value]
