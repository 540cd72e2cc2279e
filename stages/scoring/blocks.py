"""What one method says of one task, as arrays that are small: what metrics, bootstrap and report compute from.

Lives here: `PredictionBlock`. Not here: the file it is read from (`predictions`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np

from cache.record_columns import Texts, names_of


@dataclass(frozen=True)
class PredictionBlock:
    """Predictions of one method for one task, as arrays; texts are numbers, some 30 bytes a record beside the answers.

    Attributes
    ----------
    records, patients, splits
        Ids and names of splits, `Texts` of n rows.
    fold
        int [n].
    y_true
        float64 [n] for regression and binary (missing = NaN), int64 [n] for multiclass (missing = -1), float64
        [n, classes] for multilabel (missing = NaN), float64 [n] signed times for survival: the conventions of
        `cache.target_array`.
    y_pred
        float32 [n]; [n, classes] for multiclass and multilabel; [n, 1 + horizons] for survival: log-hazard first.
    """

    records: Texts
    patients: Texts
    splits: Texts
    fold: np.ndarray
    y_true: np.ndarray
    y_pred: np.ndarray

    @classmethod
    def of(
        cls,
        record_ids: np.ndarray,
        patient_ids: np.ndarray,
        split: np.ndarray,
        fold: np.ndarray,
        y_true: np.ndarray,
        y_pred: np.ndarray,
    ) -> Self:
        """Make a block of texts given as arrays of strings [n]."""
        records, patients, splits = (Texts.of(texts) for texts in (record_ids, patient_ids, split))
        return cls(records, patients, splits, fold, y_true, y_pred)

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.records)

    def take(self, rows: np.ndarray) -> Self:
        """Return the rows given by an index or a mask."""
        texts = self.records.take(rows), self.patients.take(rows), self.splits.take(rows)
        return type(self)(*texts, self.fold[rows], self.y_true[rows], self.y_pred[rows])

    @property
    def record_ids(self) -> np.ndarray:
        """The records' ids spelt, strings [n]: for a subset of many."""
        return np.asarray(self.records.spelt(self.records.codes), dtype=object)

    @cached_property
    def labelled(self) -> np.ndarray:
        """Mask [n] of the records with at least one known label."""
        return has_label(self.y_true)


def rows_in_common(first: PredictionBlock, second: PredictionBlock) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of the first block whose record and fold the second has too, and their rows there."""
    names = names_of([first.records, second.records])
    n_folds = 1 + int(max(block.fold.max(initial=0) for block in (first, second)))
    keys = [block.records.within(names).astype(np.int64) * n_folds + block.fold for block in (first, second)]
    _, rows, places = np.intersect1d(keys[0], keys[1], assume_unique=True, return_indices=True)
    order = np.argsort(rows)
    return rows[order], places[order]


def has_label(y_true: np.ndarray) -> np.ndarray:
    """Return the mask [n] of the records with at least one known label; `y_true` as in `PredictionBlock`."""
    if y_true.dtype.kind == "i":
        return y_true >= 0
    known = ~np.isnan(y_true)
    return known.any(axis=1) if known.ndim == 2 else known
