"""What heads read: vectors and tokens of crops, or of whole records as they are cached.

Features stay in files: what is in memory grows with the cohort by some bytes a record, not by its vectors. Not here:
embedding crops (`crops`), training (`protocol`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cache.embeddings import EmbeddingStore
from stages.leaderboard.crops import CropVectors
from stages.leaderboard.row_files import NumberedRows, write_rows

ReadTokens = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class VectorInputs:
    """One vector a crop, [record, crop, dim], in a file or in memory; NaN where there is none.

    Attributes
    ----------
    present
        Which crops have a vector, bool [record, crop].
    fill
        What stands for features that a record does not have, float32 [dim]; None: every vector is whole.
    """

    vectors: NumberedRows | np.ndarray
    present: np.ndarray
    fill: np.ndarray | None = None

    @classmethod
    def of(cls, vectors: NumberedRows | np.ndarray) -> VectorInputs:
        """Note which crops have a vector."""
        present = [np.isfinite(part).any(-1) for _, part in _blocks(vectors)]
        return cls(vectors, np.concatenate(present))

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return int(self.vectors.shape[-1])

    def filled(self, train: np.ndarray) -> VectorInputs:
        """Replace features that a record does not have by their mean over the training rows (0 without any)."""
        holes, is_train = False, np.isin(np.arange(len(self.present)), train)
        sums, counts = np.zeros(self.dim), np.zeros(self.dim, np.int64)
        for rows, part in _blocks(self.vectors):
            known = np.isfinite(part)
            holes |= bool((~known & self.present[rows][..., None]).any())
            seen, known = part[is_train[rows]], known[is_train[rows]]
            sums += np.where(known, seen, 0).sum((0, 1), dtype=np.float64)
            counts += known.sum((0, 1))
        return replace(self, fill=(sums / np.maximum(counts, 1)).astype(np.float32)) if holes else self

    def read(self, rows: np.ndarray, crops: np.ndarray) -> Tensor:
        """Return [k, dim]."""
        of_rows = self.vectors.read(rows) if isinstance(self.vectors, NumberedRows) else self.vectors[rows]
        x = of_rows[np.arange(len(rows)), crops].astype(np.float32, copy=False)
        return torch.from_numpy(x if self.fill is None else np.where(np.isfinite(x), x, self.fill))


def _blocks(vectors: NumberedRows | np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    if isinstance(vectors, NumberedRows):
        yield from vectors.blocks()
    else:
        yield slice(0, len(vectors)), vectors


@dataclass(frozen=True)
class TokenInputs:
    """Tokens of each crop, read when a batch needs them; missing ones are NaN, and get no attention."""

    present: np.ndarray
    dim: int
    read_tokens: ReadTokens

    def read(self, rows: np.ndarray, crops: np.ndarray) -> Tensor:
        """Return [k, token, dim]."""
        return torch.from_numpy(self.read_tokens(rows, crops))


@dataclass(frozen=True)
class ExpertInputs:
    """What one expert offers of one kind of input.

    Attributes
    ----------
    tokens
        None where there is no token axis; `without_tokens` then says why.
    crop_s
        Length of a crop in seconds; None: the whole record.
    """

    vectors: VectorInputs
    tokens: TokenInputs | None
    without_tokens: str = ""
    crop_s: float | None = None


def crop_inputs(found: CropVectors) -> ExpertInputs:
    """Return what heads read of embedded crops."""
    vectors = VectorInputs.of(found.vectors)
    if not found.token_files:
        return ExpertInputs(vectors, None, "the expert gives no tokens", found.crop_s)
    dim = np.load(found.token_files[0], mmap_mode="r", allow_pickle=False).shape[-1]
    return ExpertInputs(vectors, TokenInputs(vectors.present, int(dim), found.tokens), crop_s=found.crop_s)


def native_inputs(store: EmbeddingStore, folder: Path) -> ExpertInputs:
    """Return what heads read of a store: its vectors, and its seconds as tokens where it has the view `segments`.

    Parameters
    ----------
    folder
        Where they are laid out as rows, uncompressed, unless that was done.
    """
    embedding = _laid_out(store, "embedding", folder)
    vectors = VectorInputs.of(replace(embedding, shape=(len(embedding), 1, *embedding.shape[1:])))
    if "segments" not in store.views:
        return ExpertInputs(vectors, None, "the store has no segments (experts.NAME.views)")
    segments = _laid_out(store, "segments", folder)
    has_some = np.concatenate([np.isfinite(part).all(-1).any(-1) for _, part in segments.blocks()])

    def read(rows: np.ndarray, crops: np.ndarray) -> np.ndarray:
        del crops  # a whole record is one
        return segments.read(rows).astype(np.float32)

    return ExpertInputs(vectors, TokenInputs(vectors.present & has_some[:, None], int(segments.shape[-1]), read))


def _laid_out(store: EmbeddingStore, name: str, folder: Path) -> NumberedRows:
    path = folder / f"{name}.npy"
    if path.is_file():
        return NumberedRows.open(path)
    shards = (store.rows_of(shard) for shard in range(store.n_shards))
    first = store.read(name, slice(0, 1))
    return write_rows(path, (len(store), *first.shape[1:]), first.dtype, (store.read(name, rows) for rows in shards))
