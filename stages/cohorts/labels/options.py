"""What a study says of its table of labels."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from cache.records import CellKind
from stages.cohorts.contract import Options


class FollowUp(BaseModel):
    """Columns of one survival target.

    Attributes
    ----------
    time
        Column with the time of the event or of the end of the observation, above 0.
    event
        Column that says 1 where the event came, 0 where the observation ended without it.
    unit
        Of the times.
    horizons
        Times until which probabilities are predicted; None: the quartiles of the times at which the event came.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    time: str
    event: str
    unit: str = "days"
    horizons: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] | None = Field(None, min_length=1)

    @field_validator("horizons")
    @classmethod
    def _ascending(cls, given: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if given is not None and list(given) != sorted(set(given)):
            raise ValueError(f"horizons {given} must ascend")
        return given


class LabelOptions(Options):
    """A table of labels: where it lies, which column names the record, which columns are labels of which kind.

    Attributes
    ----------
    id, patient, fold
        Columns that name the record, its patient and its fold.
    targets
        Columns that are labels; None: all others.
    kinds
        Column -> kind, whatever its cells look like.
    survival
        Name of a target -> its columns of time and event, which are then no labels of their own.
    separators
        Column -> what parts several findings in one of its cells, beside `;`.
    label_names, label_values
        Columns of a table with one label a row: which label it is of, and its value; None: what heads can only mean.
    columns
        Names of the columns of a table without a head.
    encoding
        Of the text; None: UTF-8 or UTF-16, else Windows-1252.
    decimal
        What parts whole numbers from fractions in it; None: what can only be meant.
    """

    labels: str | None = None
    id: str | None = None
    patient: str | None = None
    fold: str | None = None
    targets: list[str] | None = None
    kinds: dict[str, CellKind] = Field(default_factory=dict)
    survival: dict[str, FollowUp] = Field(default_factory=dict)
    separators: dict[str, Annotated[str, Field(min_length=1)]] = Field(default_factory=dict)
    label_names: str | None = None
    label_values: str | None = None
    columns: list[str] | None = None
    encoding: str | None = None
    decimal: Literal[".", ","] | None = None
