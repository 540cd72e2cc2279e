"""An even subset of a store's rows, on which a space is fitted: small enough for memory at any size of the study."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cache.embeddings import EmbeddingStore

BLOCK_ROWS = 8192
MAX_ROWS = 20_000
MAX_VALUES = 50_000_000
"""Of a subset: 200 MB in single precision."""


def blocks(n_rows: int) -> Iterator[slice]:
    """Give contiguous rows, `BLOCK_ROWS` at a time."""
    for start in range(0, n_rows, BLOCK_ROWS):
        yield slice(start, min(start + BLOCK_ROWS, n_rows))


def even_sample(store: EmbeddingStore) -> np.ndarray:
    """Return float32 [m, width] of rows that lie evenly in the store; rows without any value are left out."""
    most = max(min(MAX_ROWS, MAX_VALUES // max(int(store.embedding.shape[1]), 1)), 1)
    step = -(-len(store) // most)
    parts = []
    for rows in blocks(len(store)):
        first = -rows.start % step
        part = store.read_embedding(rows)[first::step].astype(np.float32)
        parts.append(part[np.isfinite(part).any(axis=1)])
    return np.concatenate(parts) if parts else np.empty((0, int(store.embedding.shape[1])), np.float32)
