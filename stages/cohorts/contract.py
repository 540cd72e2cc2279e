"""What every data source is: strict options, a table of entries with their targets, and a reader of single records.

Not here: which sources there are (_registry.py), file formats (stages/readers), what is made of entries and recordings
(stages/ingest).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, field_validator

from cache.errors import InputError, MissingFileError
from cache.records import Target
from stages.readers import Counts, DataFolder, Recording, read_wfdb
from stages.readers.amplitude import Amplitude
from stages.readers.lead_names import LeadNames, standard_lead
from stages.readers.recording import SECONDS_KEPT


class Options(BaseModel):
    """Options of one source; unknown ones are refused by name. Those below every source has.

    Attributes
    ----------
    lead_names
        The files' own name of a lead -> standard lead, e.g. `{CH1: I}`.
    scale
        What amplitudes are multiplied by, where files state a wrong unit or gain.
    follow_links
        Links in the cohort's folder may lead out of it (subsets made of links, DVC's cache, git-annex).
    folds
        A table of folds that replaces the cohort's own, or a folder with ECGBench's folds.csv.
    folds_column
        Its column with the fold's number; of ECGBench's tables `default_split` says which are validation and test.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    lead_names: dict[str, str] = Field(default_factory=dict)
    scale: float = Field(1.0, gt=0, allow_inf_nan=False)
    follow_links: bool = False
    folds: str | None = None
    folds_column: str = "fold"

    @field_validator("lead_names")
    @classmethod
    def _standard(cls, given: dict[str, str]) -> dict[str, str]:
        for name, lead in given.items():
            if standard_lead(lead) is None:
                raise ValueError(f"'{name}' is said to be '{lead}', which is none of the twelve standard leads")
        return {name: standard_lead(lead) or lead for name, lead in given.items()}


@dataclass(frozen=True)
class Published:
    """A split that the cohort's authors give: which of the folds are validation and test."""

    n_folds: int
    val: int
    test: int


@dataclass(frozen=True)
class Entries:
    """The table of a cohort.

    Attributes
    ----------
    frame
        One row a record: `record_id`, `patient_id` (None = not known: then the record counts as a patient of its own),
        `path` (within the cohort's folder; what `Cohort.read` takes), one column a target, optionally `fold`.
    targets
        Their kinds, units and classes.
    notes
        One line each: what was missing, how many labels were left out and why.
    published
        What the numbers in `fold` mean, where there are any.
    published_of
        Of several sources (column `source`): name -> `published` of each. Each is split by itself.
    """

    frame: pd.DataFrame
    targets: list[Target]
    notes: list[str] = field(default_factory=list)
    published: Published | None = None
    published_of: Mapping[str, Published | None] = field(default_factory=dict)


class Cohort(ABC):
    """One data source at one place. A subclass is one file, decorated with `@register("name")`."""

    name: ClassVar[str]
    title: ClassVar[str]
    """What it is, what it needs on disk, in one line."""
    licence: ClassVar[str] = "that of the data"
    manifests: ClassVar[tuple[str, ...]] = ()
    """Lists and labels within the folder; a pipeline watches these, not every record."""
    options_type: ClassVar[type[Options]] = Options
    holds: ClassVar[tuple[str, ...] | None] = None
    """Published collections whose records these are, or may be; None: one that has the source's own name."""

    of_others: ClassVar[bool] = False
    """Whether it only joins other sources; then no list of sources names it."""

    seconds: float | None = SECONDS_KEPT
    """What is kept of a record from its beginning, so that no more need be read; None: all."""

    def __init__(self, folder: Path, options: Options) -> None:
        self.folder, self.options = folder, options

    @property
    def data(self) -> DataFolder:
        """The folder as files are opened in it."""
        return DataFolder(str(self.folder), self.options.follow_links)

    @property
    def lead_names(self) -> LeadNames:
        """The study's own spellings of leads."""
        return tuple(self.options.lead_names.items())

    @property
    def amplitude(self) -> Amplitude:
        """The unit of the signals; experts that need millivolts are refused where it is another."""
        return "mV"

    @property
    def hint(self) -> str:
        """What to look at where no record can be read; empty where nothing is known."""
        return ""

    @abstractmethod
    def entries(self) -> Entries:
        """Read lists and labels; opens no signal.

        Raises
        ------
        MissingFileError, InputError
            A list is missing, or has not the columns it should have.
        """

    def listed(self) -> Entries:
        """Return the entries, with the folds of the table that the option `folds` names."""
        found = self.entries()
        if self.options.folds is None:
            return found
        from stages.cohorts.labels.fold_table import with_folds

        return with_folds(found, self.folder, self.options.folds, self.options.folds_column)

    def places(self, frame: pd.DataFrame) -> list[str]:
        """Return what `read` takes, for rows of a table: their paths."""
        return list(frame["path"])

    def read(self, path: str) -> Recording | Counts:
        """Read one record (WFDB, unless a source says otherwise).

        Raises
        ------
        InputError
            The record cannot be used; the message says why, without naming it.
        """
        return read_wfdb(self.data, path, self.seconds, self.lead_names)

    def require(self, name: str) -> Path:
        """Return the path of a file that this source cannot do without."""
        path = self.folder / name
        if not path.is_file():
            raise MissingFileError(f"{path} does not exist; --path must name the folder of {self.title}")
        return path


def is_file(path: Path) -> bool:
    """Whether a file is there; none has a name that is too long for one."""
    try:
        return path.is_file()
    except OSError:
        return False


def check_not_empty(frame: pd.DataFrame, path: Path) -> None:
    """Refuse a list without a row."""
    if not len(frame):
        raise InputError(f"{path}: lists no record")
