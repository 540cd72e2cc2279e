"""Several sources in one study: records, patients and files under the name of their source, targets joined by name.

`cohorts:` of params.yaml becomes this source. Not here: what each source is, how targets are joined
(`labels/joined_targets`), folds (`stages/ingest`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from cache.errors import UsageError
from stages.cohorts._overlaps import parts_of_source
from stages.cohorts._registry import check_options, open_cohort, register
from stages.cohorts.contract import Cohort, Entries, Options
from stages.cohorts.labels.joined_targets import SourceEntries, TargetRule, TargetRules, joined, mapped
from stages.readers import Counts, Recording
from stages.readers.amplitude import Amplitude
from stages.readers.standard_leads import keep_standard, scaled

BETWEEN = "/"
"""Stands between the name of a source and an id or path of its own."""


class SourceOptions(BaseModel):
    """One source of several: as section `cohort`, with a name and a map of targets.

    Attributes
    ----------
    name
        What its records have in the column `source`, and ids and patients before a slash.
    targets
        The study's name of a target -> the source's own, a rule (`TargetRule`), or null to leave it out; or a list of
        those to keep.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    source: str
    path: str
    limit: int | None = Field(default=None, ge=1)
    options: dict[str, Any] = Field(default_factory=dict)
    targets: TargetRules | tuple[str, ...] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _without_nothing(cls, given: Any) -> Any:
        return {key: value for key, value in given.items() if value is not None} if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _checked(self) -> SourceOptions:
        if self.source == Several.name:
            raise ValueError(f"'{self.name}' is itself of the source '{self.source}'; name its sources in the list")
        check_options(self.source, self.options, f"cohorts: {self.name}: options")
        return self

    @property
    def rules(self) -> TargetRules:
        """The map; a list of names keeps them as they are."""
        return self.targets if isinstance(self.targets, dict) else {name: TargetRule() for name in self.targets}


class SeveralOptions(Options):
    """The sources, in the order of their rows."""

    cohorts: tuple[SourceOptions, ...] = Field(min_length=1)

    @field_validator("cohorts")
    @classmethod
    def _differently_named(cls, given: tuple[SourceOptions, ...]) -> tuple[SourceOptions, ...]:
        twice = [name for name, n in Counter(part.name for part in given).items() if n > 1]
        if twice:
            raise ValueError(f"two sources are named '{twice[0]}'; give each a `name` of its own")
        return given


@register("several")
class Several(Cohort):
    """Sources one after the other."""

    title = "several sources (cohorts in params.yaml)"
    licence = "those of the sources"
    options_type = SeveralOptions
    holds = ()
    of_others = True

    options: SeveralOptions

    @cached_property
    def parts(self) -> dict[str, Cohort]:
        """Name -> source, opened."""
        return {
            part.name: open_cohort(part.source, self.folder / Path(part.path).expanduser(), part.options)
            for part in self.options.cohorts
        }

    @property
    def amplitude(self) -> Amplitude:
        """The unit of the signals of all sources.

        Raises
        ------
        UsageError
            Two sources differ.
        """
        units = {name: part.amplitude for name, part in self.parts.items()}
        (first, unit), *others = units.items()
        for name, other in others:
            if other != unit:
                raise UsageError(f"cohorts: the signals of '{first}' are in {unit}, those of '{name}' are {other}s")
        return unit

    @property
    def hint(self) -> str:
        """What to look at where no record can be read."""
        return "; ".join(dict.fromkeys(part.hint for part in self.parts.values() if part.hint))

    def entries(self) -> Entries:
        """Read the lists of all sources."""
        asked = {part.name: part for part in self.options.cohorts}
        sources, notes, published = [], [], {}
        for name, part in self.parts.items():
            found = _without_empty_targets(_first(part.listed(), asked[name].limit))
            only = not isinstance(asked[name].targets, dict)
            sources.append(_named(mapped(SourceEntries(name, found), asked[name].rules, only=only)))
            notes += [f"{name}: {note}" for note in found.notes]
            published[name] = found.published
        frame, targets, joined_notes = joined(sources)
        return Entries(frame, targets, [*notes, *joined_notes, *self._overlapping()], published_of=published)

    def _overlapping(self) -> list[str]:
        """Say which sources may hold the same ECGs: a patient would then count as two."""
        return [
            f"{one.name} and {two.name} may hold the same ECGs ({', '.join(sorted(shared))}): their patients count as "
            "different ones; leave one out, or do not test one with what the other has taught"
            for one, two in combinations(self.options.cohorts, 2)
            if (shared := parts_of_source(one.source) & parts_of_source(two.source))
        ]

    def places(self, frame: pd.DataFrame) -> list[str]:
        """Return what `read` takes: the paths behind the names of their sources."""
        return [f"{name}{BETWEEN}{path}" for name, path in zip(frame["source"], frame["path"], strict=True)]

    def read(self, path: str) -> Recording | Counts:
        """Read one record as its source does, with that source's lead names and scale."""
        name, _, place = path.partition(BETWEEN)
        part = self.parts[name]
        part.seconds = self.seconds
        return scaled(keep_standard(part.read(place), part.lead_names), part.options.scale)


def _first(found: Entries, limit: int | None) -> Entries:
    return found if limit is None else replace(found, frame=found.frame.head(limit).reset_index(drop=True))


def _without_empty_targets(found: Entries) -> Entries:
    """Leave out targets that the labels name no class of."""
    empty = [t.name for t in found.targets if t.kind in ("multilabel", "multiclass") and not t.classes]
    if not empty:
        return found
    notes = [*found.notes, *(f"{name}: left out, the labels name no class of it" for name in empty)]
    targets = [target for target in found.targets if target.name not in empty]
    return replace(found, frame=found.frame.drop(columns=empty), targets=targets, notes=notes)


def _named(source: SourceEntries) -> SourceEntries:
    """Put the source's name before ids and patients; what is missing stays so."""
    frame = source.entries.frame.copy()
    for column in ("record_id", "patient_id"):
        known = frame[column].notna()
        named = source.name + BETWEEN + frame[column].astype(object).where(known, "").astype(str)
        frame[column] = named.astype(object).where(known, None)
    return SourceEntries(source.name, replace(source.entries, frame=frame))
