"""What a prediction is asked for, where it reads and writes, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cache.storage.locations import Location
    from stages.experts import Expert
    from stages.experts.run import RunSettings

RECORDS_AT_ONCE = 32
"""As fast as 64 or faster on a CPU, whose caches hold less than 64 signals, in half the memory (docs/decisions.md)."""
RECORDS_PER_PART = 512


@dataclass(frozen=True)
class PredictSettings:
    """What new ECGs are embedded with.

    Attributes
    ----------
    experts
        Those of the fit; one that is not given counts as absent, and its weight goes to the others. A mapping that
        loads an expert when it is first asked for will do.
    identities
        Expert -> digest of what it is now (`stages.learning.data.expert_identity`).
    running
        Threads and batch size of the experts' stores; numbers are rounded as those stores are.
    records_at_once
        Records that are read, embedded and answered together; what memory is bounded by.
    records_per_part
        Records of a part of a file: what one worker claims, and what a kill costs at most. Of more than 5 million
        records parts are larger, so that there are no more than 10,000.
    follow_links
        The files of a WFDB record may be links that lead out of its folder.
    """

    experts: Mapping[str, Expert]
    identities: Mapping[str, str]
    running: RunSettings | None = None
    records_at_once: int = RECORDS_AT_ONCE
    records_per_part: int = RECORDS_PER_PART
    follow_links: bool = False


@dataclass(frozen=True)
class StudyStores:
    """The stores of an ingested study whose records are predicted.

    Attributes
    ----------
    embeddings
        Expert -> its store, whether there is one or not. Cached vectors are taken where they are those of the fit's
        experts for these very records; else the expert runs on the signals.
    """

    records: Location
    signals: Location
    embeddings: Mapping[str, Location]


@dataclass(frozen=True)
class PredictPaths:
    """The fit, the ECGs, and where answers go.

    Attributes
    ----------
    records
        Files of any format, WFDB records with or without suffix, folders of them, globs, and manifests: tables (.csv,
        .tsv, .parquet) with a column `path`, and `record_id` and `patient_id` if there are any.
    study
        An ingested study, instead of `records`.
    out
        A Parquet file; its gate weights and warnings stand beside it.
    """

    heads: Path
    records: tuple[str | Path, ...] = ()
    study: StudyStores | None = None
    out: Path | None = None


@dataclass
class Prediction:
    """What the ensemble says of one ECG; `tasks` and `gate` are ready for JSON."""

    record: str
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    gate: dict[str, dict[str, float]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


@dataclass
class PredictSummary:
    """What a run did.

    Attributes
    ----------
    n_records
        Records asked for.
    n_predicted
        Records that could be read, in all.
    n_computed
        Records that this run has read; the others were finished before.
    n_unreadable, unreadable
        How many could not be read, and one line for each of the first ones.
    """

    n_records: int = 0
    n_predicted: int = 0
    n_computed: int = 0
    n_unreadable: int = 0
    unreadable: list[str] = field(default_factory=list)
    seconds: float = 0.0
