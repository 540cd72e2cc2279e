"""What every space has in common, and how one is opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    from cache.storage.locations import Location


class NewEcg(NamedTuple):
    """An ECG that is in no store, as the experts see it.

    Attributes
    ----------
    features
        Expert -> {"embedding": [1, dim], ...} as `EnsembleHeads` takes them.
    gate_signal
        What the gate sees of the signal, [1, ...]; None where it sees nothing of it.
    """

    features: Mapping[str, Mapping[str, Any]]
    gate_signal: np.ndarray | None = None


class Space(Protocol):
    """Vectors of all records of a study, row for row with records.parquet."""

    @property
    def fingerprint(self) -> str:
        """Digest of everything that changes a vector."""
        ...

    def __len__(self) -> int: ...

    def read(self, rows: slice) -> np.ndarray:
        """Return vectors of contiguous rows, float32 [b, width]; a record without a vector is a row of NaN."""
        ...

    def place(self, ecg: NewEcg) -> np.ndarray:
        """Return the vector of an ECG that is in no store, float32 [width]."""
        ...


@dataclass(frozen=True)
class SpacePaths:
    """What a space is made of.

    Attributes
    ----------
    stores
        Expert -> its store: one for an expert's space, those of the fit for the gate's.
    heads
        Folder of the fit; None: the space is that of the one expert.
    signals
        signals.zarr, which only a gate that reads the signal needs.
    """

    stores: Mapping[str, Location] = field(default_factory=dict)
    heads: Path | None = None
    signals: Location | None = None


def open_space(paths: SpacePaths, digest: str, *, task: str | None = None, standardise: bool = False) -> Space:
    """Open an expert's space, or the gate's where a fit is named.

    Parameters
    ----------
    digest
        Of the record ids (`cache.records.records_digest`).
    task
        Whose gate weighs the experts; None: the mean of all tasks' weights.
    standardise
        Standardise an expert's values also where none is missing; the gate's space always is.

    Raises
    ------
    StoreError, FingerprintError
        A store that is incomplete, or made for other records, or not the one of the fit.
    UsageError
        The fit has no such task.
    """
    from stages.spaces.expert_space import ExpertSpace
    from stages.spaces.gate_space import GateSpace

    if paths.heads is None:
        ((name, store),) = paths.stores.items()
        return ExpertSpace(name, store, digest, standardise=standardise)
    return GateSpace(paths.stores, paths.heads, paths.signals, digest, task)
