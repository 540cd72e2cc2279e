"""What every data source is: strict options, a table of entries with their targets, and a reader of single records.

Lives here: the contract, the registry that finds one file per source. Not here: file formats (stages/readers), what is
made of entries and recordings (stages/ingest).
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError

from cache.errors import InputError, MissingFileError, UsageError
from cache.records import Target
from stages.readers import Counts, Recording, read_wfdb
from stages.readers.recording import SECONDS_KEPT

ENTRY_POINT_GROUP = "ensemble.cohorts"
_REGISTRY: dict[str, type[Cohort]] = {}


class Options(BaseModel):
    """Options of one source; unknown ones are refused by name."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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
    """

    frame: pd.DataFrame
    targets: list[Target]
    notes: list[str] = field(default_factory=list)
    published: Published | None = None


class Cohort(ABC):
    """One data source at one place. A subclass is one file, decorated with `@register("name")`."""

    name: ClassVar[str]
    title: ClassVar[str]
    """What it is, what it needs on disk, in one line."""
    licence: ClassVar[str] = "that of the data"
    manifests: ClassVar[tuple[str, ...]] = ()
    """Lists and labels within the folder; a pipeline watches these, not every record."""
    options_type: ClassVar[type[Options]] = Options

    seconds: float | None = SECONDS_KEPT
    """What is kept of a record from its beginning, so that no more need be read; None: all."""

    def __init__(self, folder: Path, options: Options) -> None:
        self.folder, self.options = folder, options

    @abstractmethod
    def entries(self) -> Entries:
        """Read lists and labels; opens no signal.

        Raises
        ------
        MissingFileError, InputError
            A list is missing, or has not the columns it should have.
        """

    def read(self, path: str) -> Recording | Counts:
        """Read one record (WFDB, unless a source says otherwise).

        Raises
        ------
        InputError
            The record cannot be used; the message says why, without naming it.
        """
        return read_wfdb(self.folder, path, self.seconds)

    def require(self, name: str) -> Path:
        """Return the path of a file that this source cannot do without."""
        path = self.folder / name
        if not path.is_file():
            raise MissingFileError(f"{path} does not exist; --path must name the folder of {self.title}")
        return path


def register(name: str) -> Callable[[type[Cohort]], type[Cohort]]:
    """Class decorator: make a source known under `name`."""

    def wrap(cls: type[Cohort]) -> type[Cohort]:
        cls.name = name
        _REGISTRY[name] = cls
        return cls

    return wrap


def list_cohorts() -> list[str]:
    """Names of every source."""
    package = importlib.import_module("stages.cohorts")
    for module in pkgutil.iter_modules(package.__path__):
        if module.name[0] != "_":
            importlib.import_module(f"stages.cohorts.{module.name}")
    for point in entry_points(group=ENTRY_POINT_GROUP):
        point.load()
    return sorted(_REGISTRY)


def open_cohort(source: str, path: str | Path, options: Mapping[str, Any] | None = None) -> Cohort:
    """Open a source at a folder.

    Raises
    ------
    UsageError
        No such source, or an option it does not have; the message lists those that exist.
    MissingFileError
        The folder does not exist.
    """
    if source not in list_cohorts():
        raise UsageError(f"unknown source '{source}'; there are: {', '.join(list_cohorts())}")
    cls = _REGISTRY[source]
    folder = Path(path)
    if not folder.is_dir():
        raise MissingFileError(f"{folder} is not a folder; --path must name the folder of {cls.title}")
    try:
        return cls(folder.resolve(), cls.options_type.model_validate(dict(options or {})))
    except ValidationError as error:
        raise UsageError(_one_line(source, cls, error)) from error


def _one_line(source: str, cls: type[Cohort], error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        known = ", ".join(cls.options_type.model_fields) or "none"
        return f"source '{source}' has no option '{where}'; its options: {known}"
    value = "" if first["type"] == "missing" else f", got {first['input']!r}"
    return f"source '{source}', option '{where}': {first['msg'].lower()}{value}"


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
