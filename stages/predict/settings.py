"""What a prediction is asked for, where it reads, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stages.experts import Expert
    from stages.experts.run import RunSettings


@dataclass(frozen=True)
class PredictSettings:
    """What new ECGs are embedded with.

    Attributes
    ----------
    experts
        Those of the fit; one that is not given counts as absent, and its weight goes to the others.
    identities
        Expert -> digest of what it is now (`stages.learning.data.expert_identity`).
    running
        Threads and batch size of the experts' stores; numbers are rounded as those stores are.
    records_at_once
        Whose predictions are made together: a folder of thousands needs no more memory.
    follow_links
        The files of a WFDB record may be links that lead out of its folder.
    """

    experts: Mapping[str, Expert]
    identities: Mapping[str, str]
    running: RunSettings | None = None
    records_at_once: int = 64
    follow_links: bool = False


@dataclass(frozen=True)
class PredictPaths:
    """The fit, and the ECGs: files of any format, WFDB records with or without suffix."""

    heads: Path
    records: tuple[Path, ...]


@dataclass
class Prediction:
    """What the ensemble says of one ECG; `tasks` and `gate` are ready for JSON."""

    record: str
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    gate: dict[str, dict[str, float]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


@dataclass
class PredictSummary:
    """How many records were predicted, and one line for each that could not be read."""

    n_predicted: int = 0
    unreadable: list[str] = field(default_factory=list)
