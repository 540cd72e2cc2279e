"""Does it work for everybody? The metrics within age bands, sexes and sources.

Lives here: who belongs to which group, and the groups' metrics. Not here: choosing the methods shown (`comparison`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cache.record_columns import Texts, names_of
from cache.records import Target
from stages.scoring.blocks import PredictionBlock
from stages.scoring.bootstrap import Bootstrap, estimate
from stages.scoring.comparison import Comparison, Resampling
from stages.scoring.record_parts import Records, places, record_parts, targets_in

AGE_BANDS = ((0, 40), (40, 60), (60, 75), (75, 200))
SEX_COLUMNS = ("gender", "sex")
SEX_NAMES = {"f": "female", "female": "female", "m": "male", "male": "male"}
"""Class name, in lower case -> how the group is called; another class keeps its own name."""


Members = Mapping[str, Mapping[str, np.ndarray]]
"""Grouping ("age_years", "sex", "source") -> group -> mask [n] of its records."""


def subgroups(comparison: Comparison, groups: RecordGroups) -> dict[str, Any]:
    """Return {"age_years" | "sex" | "source": {GROUP: {"n", "patients", "methods": {METHOD: {METRIC: interval}}}}}.

    What a code of the sex means is told by the target's classes: where they do not say it, the groups have the classes'
    names.
    """
    members = {name: groups.of(comparison.blocks[name].records) for name in comparison.shown}
    return {
        grouping: {
            group: _subgroup(comparison, {name: of[grouping][group] for name, of in members.items()}) for group in found
        }
        for grouping, found in members[comparison.main].items()
    }


@dataclass(frozen=True)
class Grouping:
    """Which group each of some records is in.

    Attributes
    ----------
    codes
        int16 [n]: a place in `names`, or -1.
    """

    names: tuple[str, ...]
    codes: np.ndarray


class RecordGroups:
    """Groups of any records, from passes over the table that keep the ids asked for, and two bytes each a grouping.

    Parameters
    ----------
    records
        A grouping whose column the table lacks is left out.
    """

    def __init__(self, records: Records) -> None:
        self._records = records
        self._ids: pa.Array | None = None
        self._found: dict[str, Grouping] = {}

    def of(self, ids: Texts) -> Members:
        """Return the groups of records with these ids, masks [n]; an id that the table lacks is in none."""
        if self._ids is None or (ids.within(self._ids) < 0).any():
            known = [] if self._ids is None else [Texts(np.arange(len(self._ids), dtype=np.int32), self._ids)]
            self._ids = names_of([ids, *known])
            self._found = groupings(self._records, self._ids)
        place = ids.within(self._ids)
        return {
            grouping: {name: found.codes[place] == code for code, name in enumerate(found.names)}
            for grouping, found in self._found.items()
        }


def groupings(records: Records, ids: pa.Array) -> dict[str, Grouping]:
    """Return the groups of the records with these ids."""
    targets, columns = targets_in(records), ["record_id", "age", "source", *SEX_COLUMNS]
    age, sex, source = (np.full(len(ids), -1, np.int16) for _ in range(3))
    sources: dict[str, int] = {}
    names: list[str] = []
    for part in record_parts(records, columns):
        names = part.column_names
        rows, place = places(part, ids)
        sexes = _sexes(targets, names)
        if "age" in names:
            age[place] = _age_codes(_numbers(part, "age")[rows])
        if sexes is not None:
            sex[place] = sexes.codes_of(_numbers(part, sexes.column)[rows])
        if "source" in names:
            encoded = pc.fill_null(part.column("source"), "None").dictionary_encode().combine_chunks()
            known = [sources.setdefault(name, len(sources)) for name in encoded.dictionary.to_pylist()]
            source[place] = np.array(known, np.int16)[encoded.indices.to_numpy()[rows]]
    found = {}
    if "age" in names:
        found["age_years"] = Grouping(tuple(_band_name(low, high) for low, high in AGE_BANDS), age)
    if (sexes := _sexes(targets, names)) is not None:
        found["sex"] = Grouping(tuple(sorted(sexes.called)), sex)
    if len(sources) > 1:  # nothing where all are of one
        ordered = sorted(sources)
        rank = np.array([*(ordered.index(name) for name in sources), -1], np.int16)
        found["source"] = Grouping(tuple(ordered), rank[source])
    return found


def _numbers(part: pa.Table, column: str) -> np.ndarray:
    values = pd.to_numeric(part.column(column).to_pandas(), errors="coerce")
    return values.to_numpy(dtype=np.float64, na_value=np.nan)


def _age_codes(age: np.ndarray) -> np.ndarray:
    codes = np.full(len(age), -1, np.int16)
    for code, (low, high) in enumerate(AGE_BANDS):
        codes[(age >= low) & (age < high)] = code
    return codes


def _band_name(low: int, high: int) -> str:
    return f"under {high}" if low == 0 else f"{low} and over" if high == AGE_BANDS[-1][1] else f"{low} to {high - 1}"


@dataclass(frozen=True)
class _Sexes:
    """The table's column of sexes, and what its codes are called."""

    column: str
    called: list[str]

    def codes_of(self, sex: np.ndarray) -> np.ndarray:
        """Return places among the names in order, -1 of another value."""
        codes, ordered = np.full(len(sex), -1, np.int16), sorted(self.called)
        for value, name in enumerate(self.called):
            codes[sex == value] = ordered.index(name)
        return codes


def _sexes(targets: Mapping[str, Target], columns: Sequence[str]) -> _Sexes | None:
    column = next((name for name in SEX_COLUMNS if name in columns), None)
    target = targets.get(column) if column is not None else None
    if column is None or target is None or target.kind not in ("binary", "multiclass"):
        return None
    called = [SEX_NAMES.get(name.strip().lower(), name) for name in target.classes or ("0", "1")]
    if len(set(called)) < len(called):  # "F" and "female" in one column: whoever wrote it told them apart
        called = list(target.classes)
    return _Sexes(column, called)


def _subgroup(comparison: Comparison, members: Mapping[str, np.ndarray]) -> dict[str, Any]:
    parts = {name: comparison.blocks[name].take(rows) for name, rows in members.items()}
    main = parts[comparison.main]
    methods = _metrics(comparison, {name: part for name, part in parts.items() if len(part)})
    return {"n": len(main), "patients": main.patients.n_used, "methods": methods}


def _metrics(comparison: Comparison, parts: Mapping[str, PredictionBlock]) -> dict[str, Any]:
    """Return the task's metrics of each method within the group; its own patients are resampled."""
    asked = [Resampling.of(comparison.target, part, None, comparison.draws) for part in parts.values()]
    return dict(zip(parts, map(_intervals, comparison.resample(asked)), strict=True))


def _intervals(sample: Bootstrap) -> dict[str, Any]:
    found = {name: estimate(sample.values[name], sample.replicates[name]) for name in sample.values}
    return {name: {"value": one.value, "low": one.low, "high": one.high} for name, one in found.items()}
