"""What a conversion is asked for, what it reads and writes, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from stages.settings import Settings, number_or


class ConvertSettings(Settings):
    """What is made of each file.

    Attributes
    ----------
    seconds
        What is kept of a record from its beginning, or "all".
    derive_leads
        Compute III, aVR, aVL and aVF from I and II where a file lacks them, whatever its format.
    hash_patients
        Replace patient ids by keyed hashes, and names of records by hashes of their paths.
    options
        Of the source `files`: `lead_names`, `scale`, `measurements`, `labels` ...

    Examples
    --------
    >>> ConvertSettings(hash_patients=True).seconds
    'all'
    """

    seconds: Annotated[float | Literal["all"], number_or("all", least=1, most=3600)] = "all"
    derive_leads: bool = False
    hash_patients: bool = False
    options: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class ConvertPaths:
    """One ECG file or a folder of them, and the folder that gets records and manifest.csv."""

    source: Path
    folder: Path


@dataclass
class ConvertSummary:
    """How many records were written, the reasons of those that could not be read, and notes on all."""

    n_written: int = 0
    bad: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
