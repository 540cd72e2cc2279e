"""What heads read: vectors and tokens of crops, or of whole records as they are cached.

Not here: embedding crops (`crops`), training (`protocol`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cache.embeddings import EmbeddingStore
from stages.leaderboard.crops import CropVectors

ReadTokens = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class VectorInputs:
    """One vector a crop: float32 [record, crop, dim]; NaN where there is none."""

    vectors: np.ndarray
    present: np.ndarray

    @classmethod
    def of(cls, vectors: np.ndarray) -> VectorInputs:
        """Note which crops have a vector."""
        return cls(vectors, np.isfinite(vectors).any(-1))

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return int(self.vectors.shape[-1])

    def filled(self, train: np.ndarray) -> VectorInputs:
        """Replace features that a record does not have by their mean over the training rows (0 without any)."""
        holes = ~np.isfinite(self.vectors) & self.present[..., None]
        if not holes.any():
            return self
        seen = self.vectors[train].reshape(-1, self.dim)
        known = np.isfinite(seen)
        mean = np.where(known, seen, 0).sum(0) / np.maximum(known.sum(0), 1)
        return replace(self, vectors=np.where(holes, mean.astype(np.float32), self.vectors))

    def read(self, rows: np.ndarray, crops: np.ndarray) -> Tensor:
        """Return [k, dim]."""
        return torch.from_numpy(self.vectors[rows, crops])


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


def native_inputs(store: EmbeddingStore) -> ExpertInputs:
    """Return what heads read of a store: its vectors, and its seconds as tokens where it has the view `segments`."""
    vectors = VectorInputs.of(store.read_embedding().astype(np.float32)[:, None])
    if "segments" not in store.views:
        return ExpertInputs(vectors, None, "the store has no segments (experts.NAME.views)")
    segments = store.read_view("segments")
    present = vectors.present & np.isfinite(segments).all(-1).any(-1)[:, None]

    def read(rows: np.ndarray, crops: np.ndarray) -> np.ndarray:
        del crops  # a whole record is one
        return segments[rows].astype(np.float32)

    return ExpertInputs(vectors, TokenInputs(present, int(segments.shape[-1]), read))
