"""What an external validation is asked for, where it reads and writes, and what it found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from stages.settings import Count, Settings

if TYPE_CHECKING:
    from cache.storage.locations import Location


class ExternalFit(Settings):
    """One entry of `evaluate.fits` in params.yaml: a study whose fit is judged here.

    Attributes
    ----------
    study
        Its folder; relative to this study's.
    targets
        Task of the fit -> this study's target, where the names differ.
    classes
        Task of the fit -> this study's class -> the fit's class, where the names differ.
    recalibrated_on
        Numbers of labelled patients of this study that a recalibration is tried with.
    """

    study: str
    targets: dict[str, str] = Field(default_factory=dict)
    classes: dict[str, dict[str, str]] = Field(default_factory=dict)
    recalibrated_on: tuple[Count, ...] = (25, 50, 100, 200)


class ExternalSettings(Settings):
    """One external validation.

    Attributes
    ----------
    name
        Of the fit: that of its folder below `external/`.
    bootstrap
        Patient resamples behind every interval.
    draws
        Draws of patients for each size of a recalibration.

    Examples
    --------
    >>> ExternalSettings(name="study-a", fit=ExternalFit(study="../study-a")).draws
    20
    """

    name: str
    fit: ExternalFit
    bootstrap: int = Field(default=1000, ge=100)
    seed: int = 0
    draws: Count = 20


@dataclass(frozen=True)
class ExternalPaths:
    """Where an external validation reads and writes.

    Attributes
    ----------
    records, signals, stores
        This study's; `stores`: expert -> its store, of all experts of the fit.
    heads
        Folder of the other study's fit.
    their_predictions, their_records
        The other study's predictions.parquet, for its own figures, and records.parquet, for the patients that the fit
        has seen; left out where they are not there.
    folder
        Gets metrics.json and predictions.parquet.
    """

    records: Location
    signals: Location
    stores: Mapping[str, Location]
    heads: Path
    their_predictions: Path
    their_records: Location
    folder: Path

    @property
    def predictions(self) -> Path:
        """predictions.parquet."""
        return self.folder / "predictions.parquet"

    @property
    def metrics(self) -> Path:
        """metrics.json."""
        return self.folder / "metrics.json"


@dataclass
class ExternalSummary:
    """What an external validation found.

    Attributes
    ----------
    metrics
        The content of metrics.json (docs/outputs.md).
    left_out
        Task of the fit -> why it is not judged here.
    notes
        What a reader of the figures should know: rows that were made otherwise, patients with the same id.
    """

    metrics: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
