"""Whose neighbours are asked for, where they are looked for, and who they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cache.storage.locations import Location
    from stages.spaces.space import NewEcg, SpacePaths

INDEX_FROM = 100_000
"""Records from which an index answers."""


@dataclass(frozen=True)
class SimilarSettings:
    """What is asked for.

    Attributes
    ----------
    record
        A record id of the study, which is no neighbour of its own; or the name of `ecg`.
    count
        How many neighbours.
    same_patient
        Records of the same patient count, too; of an ECG that is not of the study no patient is known.
    ecg
        An ECG that is not of the study; None: `record` is.
    task
        Whose gate weighs the experts, in the gate's space; None: the mean of all tasks' weights.
    exact
        Compare with every record, however many there are.
    index_from
        Records from which an index answers where `exact` is not set.
    threads
        CPU threads that build an index.
    """

    record: str
    count: int = 10
    same_patient: bool = True
    ecg: NewEcg | None = None
    task: str | None = None
    exact: bool = False
    index_from: int = INDEX_FROM
    threads: int = 1


@dataclass(frozen=True)
class SimilarPaths:
    """records.parquet, what the space is made of, and where indexes are kept (None: nowhere)."""

    records: Location
    space: SpacePaths
    indexes: Path | None = None


@dataclass(frozen=True)
class Neighbour:
    """One record, its distance (1 - cosine, 0 to 2) and its labels."""

    record_id: str
    patient_id: str
    distance: float
    labels: dict[str, Any]


@dataclass(frozen=True)
class SimilarSummary:
    """The nearest first; `n_compared` records have a vector and were compared, or lie in the index.

    Attributes
    ----------
    indexed
        An index has answered; the distances are exact all the same.
    notes
        What to know of the answer, one line each.
    """

    neighbours: tuple[Neighbour, ...]
    n_compared: int
    indexed: bool = False
    notes: tuple[str, ...] = ()
