"""One shard's vectors in memory, filled batch by batch in the store's own type: that leaves little to do at its end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import zarr

from cache.embeddings import EmbeddingStore, Shard
from stages.experts.run import Vectors


class ShardBuffer:
    """Room for one shard of a store, used for one shard after the other."""

    def __init__(self, store: EmbeddingStore) -> None:
        n = min(store.shard_records, len(store))
        self._layers = _layer_first(store.layers, n)
        self._embedding = np.empty((n, *store.embedding.shape[1:]), dtype=store.embedding.dtype)
        self._output = None
        if store.output is not None:
            self._output = np.empty((n, *store.output.shape[1:]), dtype=store.output.dtype)

    def put(self, offset: int, n_rows: int, parts: Sequence[tuple[np.ndarray, np.ndarray, Vectors]]) -> None:
        """Fill `n_rows` rows from `offset` on; rows without a vector become NaN.

        Parameters
        ----------
        parts
            Each: the rows of some vectors, counted from `offset`; which of them to take, bool; the vectors.
        """
        rows = slice(offset, offset + n_rows)
        arrays = {"layers": self._layers, "embedding": self._embedding, "output": self._output}
        with np.errstate(over="ignore"):  # the store refuses infinities, and says what to do
            for name, array in arrays.items():
                if array is not None:
                    given = [(at, kept, getattr(vectors, name)) for at, kept, vectors in parts]
                    _fill(array[rows], [one for one in given if one[2] is not None])

    def content(self, n_rows: int) -> Shard:
        """Return the first `n_rows` rows, without copying."""
        output = None if self._output is None else self._output[:n_rows]
        return Shard(self._layers[:n_rows], self._embedding[:n_rows], output)


def _layer_first(array: zarr.Array, n_rows: int) -> np.ndarray:
    """Return room for [row, layer, dim] that lies layer by layer, as the store's files do."""
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
