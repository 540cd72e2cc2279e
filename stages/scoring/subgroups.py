"""Does it work for everybody? The metrics within age bands, sexes and sources.

Lives here: who belongs to which group, and the groups' metrics. Not here: choosing the methods shown (`comparison`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from stages.scoring.bootstrap import Bootstrap, estimate
from stages.scoring.comparison import Comparison, Resampling
from stages.scoring.predictions import PredictionBlock

AGE_BANDS = ((0, 40), (40, 60), (60, 75), (75, 200))
SEX_COLUMNS = ("gender", "sex")
SEX_NAMES = {"f": "female", "female": "female", "m": "male", "male": "male"}
"""Class name, in lower case -> how the group is called; another class keeps its own name."""


def subgroups(comparison: Comparison, records: pd.DataFrame) -> dict[str, Any]:
    """Return {"age_years" | "sex" | "source": {GROUP: {"n", "patients", "methods": {METHOD: {METRIC: interval}}}}}.

    Parameters
    ----------
    records
        records.parquet, as `cache.open_records` reads it; a grouping whose column it lacks is left out. What a code of
        the sex means is told by the target's classes: where they do not say it, the groups have the classes' names.
    """
    return {
        grouping: {group: _subgroup(comparison, members) for group, members in groups.items()}
        for grouping, groups in groupings(records).items()
    }


def groupings(records: pd.DataFrame) -> dict[str, dict[str, pd.Index]]:
    """Return grouping -> group -> the ids of its records; a grouping whose column the table lacks is left out."""
    found = {"age_years": _age_bands(records), "sex": _sexes(records), "source": _sources(records)}
    return {grouping: groups for grouping, groups in found.items() if groups}


def _numbers(records: pd.DataFrame, column: str) -> np.ndarray:
    return pd.to_numeric(records[column], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)


def _age_bands(records: pd.DataFrame) -> dict[str, pd.Index]:
    if "age" not in records:
        return {}
    age, names = _numbers(records, "age"), pd.Index(records["record_id"])
    return {_band_name(low, high): names[(age >= low) & (age < high)] for low, high in AGE_BANDS}


def _band_name(low: int, high: int) -> str:
    return f"under {high}" if low == 0 else f"{low} and over" if high == AGE_BANDS[-1][1] else f"{low} to {high - 1}"


def _sexes(records: pd.DataFrame) -> dict[str, pd.Index]:
    column = next((name for name in SEX_COLUMNS if name in records), None)
    if column is None:
        return {}
    target = records.attrs.get("targets", {}).get(column)
    if target is None or target.kind not in ("binary", "multiclass"):
        return {}
    sex, names = _numbers(records, column), pd.Index(records["record_id"])
    called = [SEX_NAMES.get(name.strip().lower(), name) for name in target.classes or ("0", "1")]
    if len(set(called)) < len(called):  # "F" and "female" in one column: whoever wrote it told them apart
        called = list(target.classes)
    return {name: names[sex == code] for code, name in sorted(enumerate(called), key=lambda item: item[1])}


def _sources(records: pd.DataFrame) -> dict[str, pd.Index]:
    """Return the records of each source; nothing where all are of one."""
    if "source" not in records:
        return {}
    source, names = records["source"].astype(str).to_numpy(), pd.Index(records["record_id"])
    known = sorted(set(source))
    return {name: names[source == name] for name in known} if len(known) > 1 else {}


def _subgroup(comparison: Comparison, members: pd.Index) -> dict[str, Any]:
    parts = {}
    for name in comparison.shown:
        block = comparison.blocks[name]
        parts[name] = block.take(pd.Index(block.record_ids).isin(members))
    main = parts[comparison.main]
    methods = _metrics(comparison, {name: part for name, part in parts.items() if len(part)})
    return {"n": len(main), "patients": len(np.unique(main.patient_ids.astype(str))), "methods": methods}


def _metrics(comparison: Comparison, parts: Mapping[str, PredictionBlock]) -> dict[str, Any]:
    """Return the task's metrics of each method within the group; its own patients are resampled."""
    asked = [
        Resampling(comparison.target, part, np.unique(part.patient_ids.astype(str)), comparison.draws)
        for part in parts.values()
    ]
    return dict(zip(parts, map(_intervals, comparison.resample(asked)), strict=True))


def _intervals(sample: Bootstrap) -> dict[str, Any]:
    found = {name: estimate(sample.values[name], sample.replicates[name]) for name in sample.values}
    return {name: {"value": one.value, "low": one.low, "high": one.high} for name, one in found.items()}
