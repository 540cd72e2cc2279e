"""Rows of features that need not be in memory: what a store has to offer to be read block by block.

Lives here: `LazyRows`, and tests of rows for what is missing. Not here: any store (`stages.learning.data` wraps them).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

READ_ROWS = 8192
"""Rows that are read at a time where all of them pass by."""


class LazyRows(ABC):
    """An array [n, ...] on disk, of which contiguous rows can be read; `np.asarray` of it reads all."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @abstractmethod
    def read(self, rows: slice) -> np.ndarray:
        """Return contiguous rows (step 1), in `dtype`."""

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of values."""
        return int(np.prod(self.shape))

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.read(slice(0, len(self))).astype(dtype or self.dtype, copy=False)

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Return rows: a slice, a mask or row numbers. Scattered ones are collected block by block."""
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            return self.read(slice(start, max(start, stop)))[::step] if step > 0 else np.asarray(self)[rows]
        index = np.asarray(rows)
        index = np.flatnonzero(index) if index.dtype == bool else index.astype(np.int64)
        out = np.empty((len(index), *self.shape[1:]), self.dtype)
        order = np.argsort(index, kind="stable")
        for start in range(0, len(self), READ_ROWS):
            low, high = np.searchsorted(index, (start, start + READ_ROWS), sorter=order)
            wanted = order[low:high]
            if len(wanted):
                first, last = int(index[wanted[0]]), int(index[wanted[-1]])
                out[wanted] = self.read(slice(first, last + 1))[index[wanted] - first]
        return out


class ChosenRows(LazyRows):
    """Some rows of others, in any order; read when they are asked for."""

    def __init__(self, base: LazyRows, rows: Any) -> None:
        self._base, self._index = base, np.arange(len(base))[rows]
        self.shape, self.dtype = (len(self._index), *base.shape[1:]), base.dtype

    def read(self, rows: slice) -> np.ndarray:
        """Return contiguous rows of the choice."""
        return self._base[self._index[rows]]


def has_infinity(x: np.ndarray) -> bool:
    """Whether a float array holds an infinite value; of halves by their bits, ten times faster than numpy's test."""
    if x.dtype != np.float16:
        return bool(np.isinf(x).any())
    return bool(((x.view(np.uint16) & 0x7FFF) == 0x7C00).any())


def all_missing(x: np.ndarray) -> np.ndarray:
    """Mark, bool [b], the rows of [b, ...] that are NaN throughout."""
    flat = x.reshape(len(x), -1)
    missing = np.isnan(flat[:, 0]) if flat.shape[1] else np.ones(len(x), bool)
    candidates = np.flatnonzero(missing)
    missing[candidates] = np.isnan(flat[candidates]).all(1)
    return missing
