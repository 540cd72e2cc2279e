"""What a fit is asked for, where it reads and writes, and what it did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from stages.heads.decisions.settings import ConformalSection, OperatingPointsSection
from stages.heads.options import FitOptions
from stages.heads.targets.parents import Parents
from stages.settings import Settings, allowed, number_or

if TYPE_CHECKING:
    from cache.storage.locations import Location

STANDARD_LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")


def _are_leads(value: Any) -> bool:
    listed = list(value) if isinstance(value, (list, tuple)) else []
    return bool(listed) and len(set(listed)) == len(listed) and set(listed) <= set(STANDARD_LEADS)


class StudyFitOptions(FitOptions):
    """`fit_heads.options` of params.yaml: how heads and gate learn, and which leads the gate sees of the signal."""

    gate_leads: Annotated[
        tuple[str, ...] | None,
        allowed(lambda v: v is None or _are_leads(v), "a list of different leads of I to V6, such as [II, V1]"),
    ] = None


class FitHeadsSection(Settings):
    """Section `fit_heads` of params.yaml.

    Attributes
    ----------
    preset
        "enecg": fit the published recipe as well, on the same folds.
    folds
        "split": the table's train, val and test; "all": every fold is tested once; a number: in so many groups;
        "source": each source is tested once, by a fit of the others.
    options
        Of heads and gate.
    parents
        Task -> class -> {another task: its class that this one is a kind of}, beside what the cohort says.
    operating_points
        How the threshold of each class is chosen.
    conformal
        Coverage of sets and intervals.
    """

    preset: Literal["default", "enecg"] = "default"
    folds: Annotated[
        int | Literal["split", "all", "source"], number_or("split", "all", "source", least=3, whole=True)
    ] = "split"
    options: StudyFitOptions = StudyFitOptions()
    parents: Parents = Field(default_factory=dict)
    operating_points: OperatingPointsSection = OperatingPointsSection()
    conformal: ConformalSection = ConformalSection()

    def folds_for(self, preset: str) -> str | int:
        """Return the folds asked for; the enecg preset has three, where params.yaml says nothing."""
        return 3 if preset == "enecg" and "folds" not in self.model_fields_set else self.folds


class FitHeadsSettings(FitHeadsSection):
    """What one fit is asked for.

    Attributes
    ----------
    tasks
        Target columns; None: all that records.parquet has, leaving out (with the reason) those that cannot be learnt.
    seed
        Everything random follows from it.

    Examples
    --------
    >>> FitHeadsSettings(tasks=("age",), folds=3, options={"rank": 4}).options.rank
    4
    """

    tasks: tuple[str, ...] | None = None
    seed: int = 0


@dataclass(frozen=True)
class FitHeadsPaths:
    """Where a fit reads and writes; `stores`: expert -> its store; `costs`: fit_costs.json, None: not written."""

    records: Location
    signals: Location
    stores: Mapping[str, Location]
    heads: Path
    costs: Path | None = None


@dataclass(frozen=True)
class FitHeadsSummary:
    """What a fit did."""

    tasks: tuple[str, ...]
    skipped: dict[str, str]
    """Task -> why it could not be learnt."""
    experts: tuple[str, ...]
    n_folds: int
    n_trainable: int
    seconds: float
    expert_seconds: dict[str, float]
    peak_memory_mb: float | None
    enecg: dict[str, Any] | None = None
    """Of the enecg preset: parameters, seconds, peak_memory_mb, skipped, metrics (mean and std over folds)."""
    notes: tuple[str, ...] = ()
    """On experts whose own training has seen the patients that the heads learn from."""
