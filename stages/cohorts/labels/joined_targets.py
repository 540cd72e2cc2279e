"""Targets of several sources as one table has them: by name, and by an explicit map where names or classes differ.

Nothing is guessed: a target of one name that differs in kind, unit or classes is refused until the map says what is
what. Not here: records and patients (`several`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from cache.errors import InputError
from cache.records import Target
from stages.cohorts.contract import Entries

_CODED = ("binary", "multiclass")
N_CLASSES_NAMED = 6


class TargetRule(BaseModel):
    """Where one target of the study comes from in one source.

    Attributes
    ----------
    source_name
        The source's own name of it (`from`); None: the same.
    classes
        The source's class -> the study's; None drops the class: of one class a record, the label is then missing.
    absent
        Classes of the study that no record of the source can have.
    factor, unit
        What values are multiplied by, and their unit then.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    source_name: str | None = Field(default=None, alias="from")
    classes: dict[str, str | None] = Field(default_factory=dict)
    absent: tuple[str, ...] = ()
    factor: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    unit: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, given: Any) -> Any:
        return {"from": given} if isinstance(given, str) else given

    @field_validator("classes", mode="before")
    @classmethod
    def _texts(cls, given: Any) -> Any:
        """Take classes that YAML reads as numbers."""
        if not isinstance(given, Mapping):
            return given
        return {str(old): None if new is None else str(new) for old, new in given.items()}


TargetRules = dict[str, TargetRule | None]
"""The study's name of a target -> where it comes from; None: nothing of this source."""


@dataclass(frozen=True)
class SourceEntries:
    """One source's table under its name in the study."""

    name: str
    entries: Entries


def mapped(source: SourceEntries, rules: TargetRules, *, only: bool = False) -> SourceEntries:
    """Return a source's entries with the study's names, classes and units.

    Parameters
    ----------
    only
        Keep the targets that the rules name, and no others.

    Raises
    ------
    InputError
        A rule names a target or class that the source does not have.
    """
    known = {target.name: target for target in source.entries.targets}
    taken = {name if rule is None else rule.source_name or name for name, rule in rules.items()}
    if unknown := sorted(taken - known.keys()):
        raise InputError(
            f"cohorts: source '{source.name}' has no target '{unknown[0]}'; it has: {', '.join(known) or 'none'}"
        )
    kept = {} if only else {name: TargetRule() for name in known if name not in taken}
    if clash := sorted(kept.keys() & rules.keys()):
        raise InputError(
            f"cohorts: source '{source.name}' has a target '{clash[0]}' of its own beside the one that `targets` names "
            f"so; give that one another name, such as targets: {{other_{clash[0]}: {clash[0]}}}"
        )
    frame = source.entries.frame.drop(columns=list(known))
    targets = []
    applied = {**{n: r for n, r in rules.items() if r is not None}, **kept}
    study_name = {rule.source_name or name: (name, rule) for name, rule in applied.items()}
    for name, rule in applied.items():
        column, found = _changed(source, known[rule.source_name or name], rule)
        frame[name] = column
        targets.append(replace(found, name=name, parents=_renamed_parents(found.parents, rule, study_name)))
    return SourceEntries(source.name, replace(source.entries, frame=frame, targets=targets))


def _changed(source: SourceEntries, target: Target, rule: TargetRule) -> tuple[pd.Series, Target]:
    column = source.entries.frame[target.name]
    if target.kind in ("regression", "survival"):
        if rule.classes or rule.absent:
            raise InputError(
                f"cohorts: target '{target.name}' of source '{source.name}' is {target.kind}: it has no classes"
            )
        unit = target.unit if rule.unit is None else rule.unit
        horizons = tuple(horizon * rule.factor for horizon in target.horizons)
        values = column if rule.factor == 1 else pd.to_numeric(column) * rule.factor
        return values, replace(target, unit=unit, horizons=horizons)
    old = class_names(target)
    if unknown := [name for name in rule.classes if name not in old]:
        raise InputError(
            f"cohorts: target '{target.name}' of source '{source.name}' has no class '{unknown[0]}'; it has: "
            f"{_listed(old)}"
        )
    new_of = {name: rule.classes.get(name, name) for name in old}
    classes = tuple(dict.fromkeys([*(new for new in new_of.values() if new is not None), *rule.absent]))
    return _with_classes(column, target, new_of, classes), replace(target, classes=classes)


def _renamed_parents(
    parents: tuple[tuple[str, str, str], ...], rule: TargetRule, study_name: Mapping[str, tuple[str, TargetRule]]
) -> tuple[tuple[str, str, str], ...]:
    """Name classes and their parents as the study does, without those that it drops."""
    found = set()
    for child, target, parent in parents:
        if target in study_name:
            theirs, their_rule = study_name[target]
            names = rule.classes.get(child, child), their_rule.classes.get(parent, parent)
            if names[0] is not None and names[1] is not None:
                found.add((names[0], theirs, names[1]))
    return tuple(sorted(found))


def class_names(target: Target) -> tuple[str, ...]:
    """Return a target's classes; those of a binary one without names are 0 and 1."""
    return target.classes or (("0", "1") if target.kind == "binary" else ())


def _with_classes(
    column: pd.Series, target: Target, new_of: Mapping[str, str | None], classes: tuple[str, ...]
) -> pd.Series:
    if target.kind == "multilabel":
        return column.map(lambda cell: _renamed(cell, new_of) if _is_list(cell) else None)
    code = {k: classes.index(new) for k, name in enumerate(class_names(target)) if (new := new_of[name]) is not None}
    return pd.to_numeric(column).map(code, na_action="ignore").astype("Int16")


def _renamed(cell: Sequence[str], new_of: Mapping[str, str | None]) -> list[str]:
    return sorted({new for name in cell if (new := new_of[name]) is not None})


def _is_list(cell: object) -> bool:
    return isinstance(cell, (list, tuple)) or hasattr(cell, "__len__")


def joined(sources: Sequence[SourceEntries]) -> tuple[pd.DataFrame, list[Target], list[str]]:
    """Put tables under each other; return the frame, its targets and what is to be said of them.

    Raises
    ------
    InputError
        A target differs between two sources; the message names both and what differs.
    """
    first_of: dict[str, tuple[str, Target]] = {}
    frames, having = [], dict[str, list[str]]()
    for source in sources:
        frame = source.entries.frame.assign(source=source.name)
        for target in source.entries.targets:
            name, first = first_of.setdefault(target.name, (source.name, target))
            _refuse_other(first, name, target, source.name)
            having.setdefault(target.name, []).append(source.name)
            frame[target.name] = _aligned(frame[target.name], target, first)
        frames.append(frame)
    targets = [replace(target, parents=_all_parents(target.name, sources)) for _, target in first_of.values()]
    notes = [
        f"target {target}: of {', '.join(names)} alone; missing elsewhere"
        for target, names in having.items()
        if len(names) < len(sources)
    ]
    return _under_each_other(frames, targets), targets, notes


def _all_parents(name: str, sources: Sequence[SourceEntries]) -> tuple[tuple[str, str, str], ...]:
    """Return the parents of a target's classes that any source gives."""
    return tuple(sorted({link for s in sources for t in s.entries.targets if t.name == name for link in t.parents}))


def _refuse_other(first: Target, first_source: str, target: Target, source: str) -> None:
    for what, one, other in (
        ("kind", first.kind, target.kind),
        ("unit", first.unit or "none", target.unit or "none"),
        ("horizons", first.horizons, target.horizons),
    ):
        if one != other:
            raise InputError(
                f"cohorts: target '{target.name}' has the {what} {one} in source '{first_source}' and {other} in "
                f"'{source}'; {_way_out(target, source)}"
            )
    theirs, ours = class_names(first), class_names(target)
    if set(theirs) != set(ours):
        odd = next(name for name in (*ours, *theirs) if (name in theirs) != (name in ours))
        raise InputError(
            f"cohorts: target '{target.name}' has the classes {_listed(theirs)} in source '{first_source}' and "
            f"{_listed(ours)} in '{source}' (only one has '{odd}'); {_way_out(target, source)}"
        )


def _way_out(target: Target, source: str) -> str:
    return (
        f"say what is what by `targets` of '{source}', such as {{{target.name}: {{classes: {{OLD: NEW}}}}}}, or leave "
        f"it out by {{{target.name}: null}}"
    )


def _listed(classes: Sequence[str]) -> str:
    more = f" and {len(classes) - N_CLASSES_NAMED} more" if len(classes) > N_CLASSES_NAMED else ""
    return (", ".join(name[:40] for name in classes[:N_CLASSES_NAMED]) or "none") + more


def _aligned(column: pd.Series, target: Target, first: Target) -> pd.Series:
    """Return codes as the first source numbers the classes."""
    if target.kind not in _CODED:
        return column
    names = class_names(first)
    code = {k: names.index(name) for k, name in enumerate(class_names(target))}
    return pd.to_numeric(column).map(code, na_action="ignore").astype("Int16")


def _under_each_other(frames: Sequence[pd.DataFrame], targets: Sequence[Target]) -> pd.DataFrame:
    """Concatenate; what a source lacks is missing, in the dtype that the target has."""
    columns = list(dict.fromkeys(name for frame in frames for name in frame))
    kinds = {target.name: target.kind for target in targets}
    filled = {
        name: pd.concat([_column(frame, name, kinds.get(name)) for frame in frames], ignore_index=True)
        for name in columns
    }
    return pd.DataFrame(filled)


def _column(frame: pd.DataFrame, name: str, kind: str | None) -> pd.Series:
    dtype = {"regression": "float64", "survival": "float64", "binary": "Int16", "multiclass": "Int16"}.get(kind or "")
    if name == "fold":
        dtype = "Int64"
    if name not in frame:
        return pd.Series([None] * len(frame), dtype=dtype or object)
    return frame[name].astype(dtype or object)
