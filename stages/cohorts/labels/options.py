"""What a study says of its table of labels."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cache.records import Kind
from stages.cohorts.contract import Options


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
    kinds: dict[str, Kind] = Field(default_factory=dict)
    separators: dict[str, Annotated[str, Field(min_length=1)]] = Field(default_factory=dict)
    label_names: str | None = None
    label_values: str | None = None
    columns: list[str] | None = None
    encoding: str | None = None
    decimal: Literal[".", ","] | None = None
