"""An even subset of a store's rows, on which a space is fitted: small enough for memory at any size of the study."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cache.embeddings import EmbeddingStore

BLOCK_ROWS = 8192
RUN_ROWS = 500
"""Contiguous rows of a subset: scattered single rows would read every shard."""
MAX_ROWS = 20_000
MAX_VALUES = 50_000_000
"""Of a subset: 200 MB in single precision."""


def blocks(n_rows: int) -> Iterator[slice]:
    """Give contiguous rows, `BLOCK_ROWS` at a time."""
    for start in range(0, n_rows, BLOCK_ROWS):
        yield slice(start, min(start + BLOCK_ROWS, n_rows))


def even_sample(store: EmbeddingStore) -> np.ndarray:
    """Return float32 [m, width] of runs that lie evenly in the store; rows without any value are left out."""
    n, width = len(store), max(int(store.embedding.shape[1]), 1)
    n_runs = max(min(MAX_ROWS, MAX_VALUES // width) // RUN_ROWS, 1)
    starts = range(0, n, RUN_ROWS) if n <= n_runs * RUN_ROWS else np.linspace(0, n - RUN_ROWS, n_runs).astype(int)
    parts = []
    for start in map(int, starts):
        part = store.read_embedding(slice(start, min(start + RUN_ROWS, n))).astype(np.float32)
        parts.append(part[np.isfinite(part).any(axis=1)])
    return np.concatenate(parts) if parts else np.empty((0, width), np.float32)
