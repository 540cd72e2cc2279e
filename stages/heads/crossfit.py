"""Out-of-sample bookkeeping: splits, inner folds, and the rule by which a stage may replace what it grew from.

Lives here: checks of the caller's splits, grouped inner folds, gathering of out-of-sample values, `Gain`. Not here:
any model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache.errors import InputError

Split = tuple[np.ndarray, np.ndarray, np.ndarray]


def as_rows(rows: Any, n_records: int, what: str) -> np.ndarray:
    """Return sorted-as-given row numbers from a mask or an index array."""
    array = np.asarray(rows)
    if array.dtype == bool:
        if array.shape != (n_records,):
            raise InputError(f"{what}: a mask of shape {array.shape} for {n_records} records")
        return np.flatnonzero(array)
    array = array.astype(np.int64).ravel()
    if len(array) and (array.min() < 0 or array.max() >= n_records):
        raise InputError(f"{what}: row {array[(array < 0) | (array >= n_records)][0]} is outside 0..{n_records - 1}")
    return array


def check_groups(groups: Any, n_records: int) -> np.ndarray | None:
    """Return the group ids as an array, one per record."""
    if groups is None:
        return None
    array = np.asarray(groups)
    if array.shape != (n_records,):
        raise InputError(f"groups have shape {array.shape}, expected ({n_records},)")
    return array


def check_splits(splits: Sequence[Sequence[Any]], n_records: int, groups: np.ndarray | None) -> list[Split]:
    """Check that train, validation and test rows of every fold are disjoint, by group where groups are given.

    Raises
    ------
    InputError
        Overlap, or a fold without training rows; the message names the fold and an offending group.
    """
    out: list[Split] = []
    for k, parts in enumerate(splits):
        names = ("train", "validation", "test")
        rows = [as_rows(p, n_records, f"fold {k}, {name} rows") for p, name in zip(parts, names, strict=False)]
        rows += [np.empty(0, np.int64)] * (3 - len(rows))
        if not len(rows[0]):
            raise InputError(f"fold {k}: no training rows")
        keys = rows if groups is None else [np.unique(groups[r]) for r in rows]
        what = "row" if groups is None else "group (patient)"
        for a, b in ((0, 1), (0, 2), (1, 2)):
            shared = np.intersect1d(keys[a], keys[b])
            if len(shared):
                raise InputError(
                    f"fold {k}: {what} {shared[0]!s} is in both {names[a]} and {names[b]} rows ({len(shared)} shared)"
                )
        out.append((rows[0], rows[1], rows[2]))
    return out


def inner_folds(rows: np.ndarray, groups: np.ndarray | None, n_folds: int, seed: int) -> np.ndarray:
    """Assign each of `rows` to one of `n_folds`, whole groups together, sizes balanced; [len(rows)] int."""
    rng = np.random.default_rng(seed)
    _, code = np.unique(rows if groups is None else groups[rows], return_inverse=True)
    sizes = np.bincount(code)
    order = rng.permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    fold_of, load = np.empty(len(sizes), np.int64), np.zeros(n_folds)
    if (sizes == 1).all():
        fold_of[order] = np.arange(len(sizes)) % n_folds
        return fold_of[code]
    for group in order:
        fold = int(np.argmin(load))
        fold_of[group], load[fold] = fold, load[fold] + sizes[group]
    return fold_of[code]


@dataclass(frozen=True)
class Masks:
    """Who trains and who judges whom.

    Model 0 of a fold is trained on all its training rows; models 1..J each leave one inner fold out. `judge[f, i]` is
    the number of the model that has not seen record i and may judge it (0 for validation rows, j for the training rows
    of inner fold j), or -1 for a record that no model of fold f may be chosen by (test rows; training rows when there
    are no inner folds).
    """

    train: Tensor
    """float [F, 1 + J, n]."""
    judge: Tensor
    """int64 [F, n]."""

    @property
    def judged(self) -> Tensor:
        """Mark with 1, [F, n] float, where an out-of-sample value exists."""
        return (self.judge >= 0).float()

    def fold(self, f: int) -> Masks:
        """Keep one fold, with a leading axis of length 1."""
        return Masks(self.train[f : f + 1], self.judge[f : f + 1])

    def take(self, rows: Tensor) -> Masks:
        """Select records."""
        return Masks(self.train[:, :, rows], self.judge[:, rows])

    def out_of_sample(self, values: Tensor) -> Tensor:
        """Pick each record's value from the model that has not seen it: [F, 1 + J, n, ...] -> [F, n, ...]."""
        index = self.judge.clamp_min(0)[:, None, :]
        index = index.reshape(index.shape + (1,) * (values.ndim - 3)).expand(-1, 1, -1, *values.shape[3:])
        return values.gather(1, index)[:, 0]


def make_masks(splits: list[Split], n_records: int, groups: np.ndarray | None, n_inner: int, seed: int) -> Masks:
    """Build the masks of `splits` with `n_inner` grouped inner folds (0: validation rows alone judge)."""
    n_folds = len(splits)
    train = np.zeros((n_folds, 1 + n_inner, n_records), np.float32)
    judge = np.full((n_folds, n_records), -1, np.int64)
    for f, (train_rows, val_rows, _) in enumerate(splits):
        train[f][:, train_rows] = 1
        judge[f, val_rows] = 0
        if n_inner:
            fold = inner_folds(train_rows, groups, n_inner, seed)
            train[f, fold + 1, train_rows] = 0
            judge[f, train_rows] = fold + 1
    return Masks(torch.from_numpy(train), torch.from_numpy(judge))


@dataclass(frozen=True)
class Gain:
    """Paired comparison of a candidate with the incumbent, per fold and task, [F, T]."""

    mean: Tensor
    standard_error: Tensor

    @property
    def accepted(self) -> Tensor:
        """Whether the improvement exceeds one standard error: fewer records must show more."""
        return self.mean > self.standard_error


def paired_gain(incumbent: Tensor, candidate: Tensor, weight: Tensor) -> Gain:
    """Mean and standard error of the records' loss differences.

    Parameters
    ----------
    incumbent, candidate, weight
        [F, n, T]; a weight of 0 leaves the record out.
    """
    total = weight.sum(1).clamp_min(1e-9)
    difference = incumbent - candidate
    mean = (difference * weight).sum(1) / total
    spread = (weight * (difference - mean[:, None])) ** 2
    return Gain(mean, spread.sum(1).sqrt() / total)
