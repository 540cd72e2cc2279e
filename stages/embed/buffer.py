"""One shard's vectors in memory, filled batch by batch in the store's own type: that leaves little to do at its end."""

from __future__ import annotations

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

    def put(self, offset: int, n_rows: int, vectors: Vectors | None, kept: np.ndarray, at: np.ndarray) -> None:
        """Fill `n_rows` rows from `offset` on; rows without a vector become NaN.

        Parameters
        ----------
        kept
            Which of the vectors to take, bool [vectors].
        at
            The row of each kept one, counted from `offset`.
        """
        rows = slice(offset, offset + n_rows)
        parts = [(self._layers, vectors.layers), (self._embedding, vectors.embedding)] if vectors else []
        if self._output is not None and vectors is not None and vectors.output is not None:
            parts.append((self._output, vectors.output))
        if len(at) < n_rows or len(parts) < 2 + (self._output is not None):
            for array in (self._layers, self._embedding, self._output):
                if array is not None:
                    array[rows] = np.nan
        with np.errstate(over="ignore"):  # the store refuses infinities, and says what to do
            for array, values in parts:
                if len(at) == n_rows:
                    array[rows] = values
                else:
                    array[rows][at] = values[kept]

    def content(self, n_rows: int) -> Shard:
        """Return the first `n_rows` rows, without copying."""
        output = None if self._output is None else self._output[:n_rows]
        return Shard(self._layers[:n_rows], self._embedding[:n_rows], output)


def _layer_first(array: zarr.Array, n_rows: int) -> np.ndarray:
    """Return room for [row, layer, dim] that lies layer by layer, as the store's files do."""
    _, layers, width = array.shape
    return np.empty((layers, n_rows, width), dtype=array.dtype).transpose(1, 0, 2)
