"""One shard's vectors in memory, filled batch by batch in the store's own type: that leaves little to do at its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import zarr

from cache.embeddings import EmbeddingStore, Shard
from stages.experts.run import Vectors


class ShardBuffer:
    """Room for one shard of a store, used for one shard after the other."""

    def __init__(self, store: EmbeddingStore) -> None:
        n = min(store.shard_records, len(store))
        self._arrays = {array.basename: _room(array, n) for array in store.data_arrays()}

    def put(self, offset: int, n_rows: int, parts: Sequence[tuple[np.ndarray, np.ndarray, Vectors]]) -> None:
        """Fill `n_rows` rows from `offset` on; rows without a vector become NaN.

        Parameters
        ----------
        parts
            Each: the rows of some vectors, counted from `offset`; which of them to take, bool; the vectors.
        """
        rows = slice(offset, offset + n_rows)
        with np.errstate(over="ignore"):  # the store refuses infinities, and says what to do
            for name, array in self._arrays.items():
                given = [(at, kept, vectors.arrays().get(name)) for at, kept, vectors in parts]
                _fill(array[rows], [(at, kept, values) for at, kept, values in given if values is not None])

    def content(self, n_rows: int) -> Shard:
        """Return the first `n_rows` rows, without copying."""
        return Shard.of({name: array[:n_rows] for name, array in self._arrays.items()})


def _room(array: zarr.Array[Any], n_rows: int) -> np.ndarray:
    """Return room for rows of an array; [row, layer, dim] lies layer by layer, as the store's files do."""
    if array.ndim != 3:
        return np.empty((n_rows, *array.shape[1:]), dtype=array.dtype)
    _, layers, width = array.shape
    return np.empty((layers, n_rows, width), dtype=array.dtype).transpose(1, 0, 2)


def _fill(target: np.ndarray, given: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
    if sum(int(kept.sum()) for _, kept, _ in given) < len(target):
        target[...] = np.nan
    for at, kept, values in given:
        if len(at) == len(target) and kept.all():
            target[...] = values
        else:
            target[at[kept]] = values[kept]
