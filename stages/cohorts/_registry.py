"""Which sources exist, and how one is opened: one file each here, or an entry point `ensemble.cohorts` of a package."""

from __future__ import annotations

import importlib
import logging
import pkgutil
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cache.errors import MissingFileError, UsageError
from stages.cohorts.contract import Cohort
from stages.settings import first_fault, nearest

ENTRY_POINT_GROUP = "ensemble.cohorts"
_PACKAGE = "stages.cohorts"
_REGISTRY: dict[str, type[Cohort]] = {}
_LOG = logging.getLogger(__name__)


def register(name: str) -> Callable[[type[Cohort]], type[Cohort]]:
    """Class decorator: make a source known under `name`.

    Raises
    ------
    UsageError
        The name is that of a source of this package, and the class is not of this package.
    """

    def wrap(cls: type[Cohort]) -> type[Cohort]:
        taken = _REGISTRY.get(name)
        if taken is not None and _is_built_in(taken) and not _is_built_in(cls):
            raise UsageError(f"source '{name}' comes with this package; register {cls.__qualname__} under another name")
        cls.name = name
        _REGISTRY[name] = cls
        return cls

    return wrap


def _is_built_in(cls: type[Cohort]) -> bool:
    return cls.__module__.startswith(f"{_PACKAGE}.")


@cache
def _load_built_in() -> None:
    for name in (_PACKAGE, f"{_PACKAGE}.collections"):
        for module in pkgutil.iter_modules(importlib.import_module(name).__path__):
            if module.name[0] != "_" and not module.ispkg:
                importlib.import_module(f"{name}.{module.name}")


def _load_third_party(point: EntryPoint) -> None:
    """Import another package's sources; what cannot be imported is left out, with one line of warning."""
    package = point.dist.name if point.dist else point.value
    before = dict(_REGISTRY)
    try:
        point.load()
        for name in _REGISTRY.keys() - before:
            if not issubclass(_REGISTRY[name], Cohort):
                raise TypeError(f"'{name}' is no subclass of stages.cohorts.Cohort")
    except (Exception, SystemExit) as error:  # noqa: BLE001 - somebody else's code: anything may happen
        _REGISTRY.clear()
        _REGISTRY.update(before)
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        _warn_once(
            f"source '{point.name}' of package '{package}' cannot be used ({reason}); update or uninstall that package"
        )


@cache
def _warn_once(message: str) -> None:
    _LOG.warning("%s", message)


def _known() -> dict[str, type[Cohort]]:
    # Those of this package first: their names are then taken.
    _load_built_in()
    for point in entry_points(group=ENTRY_POINT_GROUP):
        _load_third_party(point)
    return _REGISTRY


def list_cohorts() -> list[str]:
    """Names of every source. An installed package whose source cannot be imported is left out, with a warning."""
    return sorted(name for name, cls in _known().items() if not cls.of_others)


def cohort_class(source: str) -> type[Cohort]:
    """Return the class of a source; packages are imported only for what is not of this one.

    Raises
    ------
    UsageError
        No such source; the message lists those that exist.
    """
    _load_built_in()
    found = _REGISTRY.get(source) or _known().get(source)
    if found is None:
        near = nearest(source, list_cohorts())
        hint = f"did you mean '{near}'? " if near else ""
        raise UsageError(f"unknown source '{source}'; {hint}there are: {', '.join(list_cohorts())}")
    return found


def check_options(source: str, options: Mapping[str, Any], place: str = "") -> None:
    """Refuse options that a source does not have, or values that it does not allow, without looking at its folder.

    Parameters
    ----------
    place
        Where the options stand, for the message.

    Raises
    ------
    UsageError
        No such source; or an option it does not have, with the nearest name; or a value that is not allowed.
    """
    cls = cohort_class(source)
    try:
        cls.options_type.model_validate(dict(options))
    except ValidationError as error:
        line = _one_line(source, cls, error)
        raise UsageError(f"{place}: {line}" if place else line) from error


def open_cohort(source: str, path: str | Path, options: Mapping[str, Any] | None = None) -> Cohort:
    """Open a source at a folder.

    Raises
    ------
    UsageError
        No such source, or an option it does not have; the message lists those that exist.
    MissingFileError
        The folder does not exist.
    """
    cls = cohort_class(source)
    folder = Path(path)
    if not folder.is_dir():
        raise MissingFileError(f"{folder} is not a folder; --path must name the folder of {cls.title}")
    try:
        return cls(folder.resolve(), cls.options_type.model_validate(dict(options or {})))
    except ValidationError as error:
        raise UsageError(_one_line(source, cls, error)) from error


def _one_line(source: str, cls: type[Cohort], error: ValidationError) -> str:
    fault = first_fault(error)
    if fault.kind == "unknown":
        names = list(cls.options_type.model_fields)
        near = nearest(fault.name, names)
        hint = f"did you mean '{near}'? " if near else ""
        return f"source '{source}' has no option '{fault.name}'; {hint}its options: {', '.join(names)}"
    value = "" if fault.kind == "missing" else f", got {fault.value!r}"
    return f"source '{source}', option '{fault.name}': {fault.words}{value}"
