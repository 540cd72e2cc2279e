"""What a synthetic cohort shall be, where it goes, and what was written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from stages.settings import Settings


class GenerateSettings(Settings):
    """Section `generate` of params.yaml: the embedded cohort. Equal settings give equal bytes.

    Attributes
    ----------
    records
        ECGs listed. A smaller cohort is the beginning of a larger one of the same seed.
    seed
        Of everything that is drawn.
    variety
        Spread of shapes, axes, gains and noise beyond the embedded cohort's: 0 none, 1 wide (`variety`).
    defect_rate
        Share of records with broken files: truncated samples, a malformed date, no file, in turn.

    Examples
    --------
    >>> GenerateSettings(records=30).seed
    0
    """

    records: int = Field(default=600, ge=1)
    seed: int = Field(default=0, ge=0)
    variety: float = Field(default=0.0, ge=0, le=2)
    defect_rate: float = Field(default=0.01, ge=0, le=1)


@dataclass(frozen=True)
class GeneratePaths:
    """Where a cohort goes: a new or empty folder, the hosp tables into `folder`/hosp."""

    folder: Path


@dataclass(frozen=True)
class GenerateSummary:
    """How many ECGs a cohort lists, broken ones included."""

    n_records: int
