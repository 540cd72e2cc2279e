"""What a study of robustness is asked for, where it reads and writes, and what it found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, Field

from stages.settings import Count, Settings

if TYPE_CHECKING:
    from cache.storage.locations import Location

Kind = Literal["noise", "wander", "mains", "lead", "leads", "seconds", "rate", "exchange"]
KINDS: tuple[Kind, ...] = ("noise", "wander", "mains", "lead", "leads", "seconds", "rate", "exchange")


class RobustnessSection(Settings):
    """One entry of section `robustness` of params.yaml.

    Attributes
    ----------
    records
        Test records that are disturbed, drawn at random; all where there are fewer.
    kinds
        Which disturbances.
    mains_hz
        Frequency of the mains.
    """

    records: Count = 300
    kinds: tuple[Kind, ...] = KINDS
    mains_hz: float = Field(default=50.0, gt=0)


class RobustnessSettings(RobustnessSection):
    """What one study of robustness is asked for.

    Attributes
    ----------
    experts
        Name -> expert (`stages.experts.Expert`), loaded; one that is not given counts as absent.
    identities
        Name -> digest of what it is now; refused where the heads were fitted on another one.
    running
        Threads and batch size (`stages.experts.run.RunSettings`).
    bootstrap, seed
        Patient resamples behind every interval; everything random follows from `seed`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    experts: Mapping[str, Any] = Field(default_factory=dict)
    identities: Mapping[str, str] = Field(default_factory=dict)
    running: Any = None
    bootstrap: int = Field(default=1000, ge=10)
    seed: int = 0


@dataclass(frozen=True)
class RobustnessPaths:
    """Where it reads and writes.

    Attributes
    ----------
    evaluated
        predictions.parquet of the evaluation that the results stand beside.
    answers
        robustness/NAME.parquet: every answer, from which all figures follow.
    results
        robustness/NAME.json.
    """

    records: Location
    signals: Location
    heads: Path
    evaluated: Path
    answers: Path
    results: Path


@dataclass
class RobustnessSummary:
    """Content of robustness/NAME.json."""

    results: dict[str, Any] = field(default_factory=dict)
