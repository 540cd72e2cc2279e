"""Section `cohorts` of params.yaml: several sources, which the stages see as one of the source `several`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cache.errors import UsageError
from stages.ingest.settings import SHARED_KEYS, CohortSection, NamedCohortSection
from stages.settings import first_fault, nearest

SEVERAL = "several"
"""The source that reads several."""


def as_one_cohort(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Return the content of params.yaml with one section `cohort` for the entries of `cohorts`, if it has any.

    Parameters
    ----------
    path
        Of params.yaml, for messages.

    Raises
    ------
    UsageError
        Both sections, an unknown key, two sources of one name, or sources that differ in what is one for all rows.
    """
    if "cohorts" not in content:
        return content
    if "cohort" in content:
        raise UsageError(f"{path}: names both cohort and cohorts; keep one of them")
    sections = [_section(path, *entry) for entry in _listed(path, content["cohorts"])]
    first = sections[0]
    for other in sections[1:]:
        if key := next((key for key in SHARED_KEYS if getattr(first, key) != getattr(other, key)), None):
            raise UsageError(
                f"{path}: cohorts: {key} is {getattr(first, key)} for '{first.name}' and {getattr(other, key)} for "
                f"'{other.name}'; it is one for all rows of a study"
            )
    options = {"cohorts": [_options(section) for section in sections]}
    shared = {key: getattr(first, key) for key in SHARED_KEYS}
    cohort = CohortSection(source=SEVERAL, path=".", options=options, **shared)
    rest = {key: value for key, value in content.items() if key != "cohorts"}
    return {**rest, "cohort": cohort.model_dump()}


def sources_of(cohort: CohortSection) -> dict[str, tuple[str, str]]:
    """Return what the column `source` may say -> kind of source and its folder, of a section `cohort`."""
    if cohort.source != SEVERAL:
        return {cohort.source: (cohort.source, cohort.path)}
    return {part["name"]: (part["source"], part["path"]) for part in cohort.options["cohorts"]}


def _listed(path: Path, given: Any) -> list[tuple[str | None, Any]]:
    """Return (name or None, section) of a list, or of names with sections."""
    if isinstance(given, Mapping) and given:
        return [(str(name), section) for name, section in given.items()]
    if isinstance(given, list) and given:
        return [(None, section) for section in given]
    raise UsageError(f"{path}: cohorts: expected a list of sections such as {{source: ptbxl, path: ptb-xl}}")


def _section(path: Path, name: str | None, given: Any) -> NamedCohortSection:
    if not isinstance(given, Mapping):
        raise UsageError(f"{path}: cohorts: expected a section with source and path, found {given!r}")
    try:
        section = NamedCohortSection.model_validate({**({"name": name} if name else {}), **given})
    except ValidationError as error:
        fault = first_fault(error)
        near = nearest(fault.name, NamedCohortSection.model_fields) if fault.kind == "unknown" else None
        hint = f"; did you mean '{near}'?" if near else ""
        label = name or given.get("name") or given.get("source") or "a section"
        raise UsageError(f"{path}: cohorts: {label}: '{fault.name}' {fault.words}{hint}") from error
    return section if section.name else section.model_copy(update={"name": section.source})


def _options(section: NamedCohortSection) -> dict[str, Any]:
    return {
        "name": section.name,
        "source": section.source,
        "path": section.path,
        "limit": section.limit,
        "options": section.options,
        "targets": section.targets,
    }
