"""Whose neighbours are asked for, where they are looked for, and who they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cache.storage.locations import Location


@dataclass(frozen=True)
class SimilarSettings:
    """What is asked for.

    Attributes
    ----------
    record
        A record id of the study; it is no neighbour of its own.
    count
        How many neighbours.
    same_patient
        Records of the same patient count, too.
    """

    record: str
    count: int = 10
    same_patient: bool = True


@dataclass(frozen=True)
class SimilarPaths:
    """records.parquet, and the expert's store."""

    records: Path
    embeddings: Location


@dataclass(frozen=True)
class Neighbour:
    """One record, its distance (1 - cosine, 0 to 2) and its labels."""

    record_id: str
    patient_id: str
    distance: float
    labels: dict[str, Any]


@dataclass(frozen=True)
class SimilarSummary:
    """The nearest first; `n_compared` records have a vector and were compared."""

    neighbours: tuple[Neighbour, ...]
    n_compared: int
