"""One expert's space: its embedding, standardised where values are missing or where that is asked for."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from cache.embeddings import EmbeddingStore, open_embeddings
from cache.errors import InputError
from cache.fingerprint import fingerprint
from cache.storage.locations import Location
from stages.heads.inputs.scaler import RobustScaler
from stages.spaces.sample import even_sample
from stages.spaces.space import NewEcg


def checked_store(location: Location, digest: str) -> EmbeddingStore:
    """Open a store that is complete and made for these records."""
    store = open_embeddings(location)
    store.require_records(digest)
    store.require_complete()
    return store


class ExpertSpace:
    """The authors' own embedding of each record.

    Values of an expert whose embedding has gaps (`morphology`) have units of their own; they are standardised as the
    heads do it (winsorised mean and standard deviation; a missing value becomes the median), on an even subset of all
    records. Other experts' values are taken as they are, unless `standardise` is set.
    """

    def __init__(self, name: str, location: Location, digest: str, *, standardise: bool = False) -> None:
        self.name, self._store, self._always = name, checked_store(location, digest), standardise

    def __len__(self) -> int:
        return len(self._store)

    @cached_property
    def scaler(self) -> RobustScaler | None:
        """How values are standardised; None: not at all."""
        sample = even_sample(self._store)
        if not len(sample):
            raise InputError(f"{self._store.path}: no record has a vector")
        return RobustScaler.fit(sample) if self._always or np.isnan(sample).any() else None

    @property
    def fingerprint(self) -> str:
        """Digest of everything that changes a vector."""
        return fingerprint({"store": self._store.fingerprint, "standardised": self._always, "space": 1})

    def read(self, rows: slice) -> np.ndarray:
        """Return vectors of contiguous rows, float32 [b, width]; a record without a vector is a row of NaN."""
        return self._vectors(self._store.read_embedding(rows))

    def place(self, ecg: NewEcg) -> np.ndarray:
        """Return the vector of an ECG that is in no store, float32 [width]."""
        return self._vectors(np.asarray(ecg.features[self.name]["embedding"]))[0]

    def _vectors(self, embedding: np.ndarray) -> np.ndarray:
        found = embedding.astype(np.float32)
        if self.scaler is None:
            return found
        seen = np.isfinite(found).any(axis=1, keepdims=True)
        return np.where(seen, self.scaler.transform(found), np.float32(np.nan))
