"""Potassium near an ECG, from MIMIC-IV's labevents: streamed, keeping only the cohort's potassium results.

The label: of the usable results in the window around the ECG the nearest in time; 1 where the laboratory flagged it or
its number lies outside its own reference range, else 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cache.errors import InputError
from stages.readers.tables import Table, numbers

SERUM, WHOLE_BLOOD, ABNORMAL = "50971", "50822", "abnormal"
COLUMNS = ["subject_id", "itemid", "charttime", "valuenum", "ref_range_lower", "ref_range_upper", "flag"]
HOUR_S = 3600
MAX_RESULTS = 50_000_000
"""MIMIC-IV has four million."""


@dataclass(frozen=True)
class Results:
    """Usable potassium results, sorted by subject and time, one per subject and time (serum before whole blood).

    Attributes
    ----------
    subject, time_s, abnormal
        int64 subject, int64 seconds since 1970, bool.
    left_out
        Why potassium rows of the cohort were not usable, and how many.
    """

    subject: np.ndarray
    time_s: np.ndarray
    abnormal: np.ndarray
    left_out: dict[str, int]


def read_results(path: Path, subjects: np.ndarray) -> Results:
    """Stream labevents once, in bounded memory.

    Parameters
    ----------
    subjects
        int64, those of the cohort; sorted, unique.

    Raises
    ------
    InputError
        Not a readable table, or more potassium results than any hospital has.
    """
    left_out = {"no time": 0, "neither a number nor a flag": 0}
    # A cell of bytes that are no text is no number, time or flag; of so many rows one must not stop the run.
    table, kept, n_kept = Table(path, lenient=True), [], 0
    wanted = pa.array([SERUM, WHOLE_BLOOD])
    for batch in table.batches(COLUMNS):
        chosen = batch.filter(pc.is_in(pc.utf8_trim_whitespace(batch["itemid"]), value_set=wanted))
        if chosen.num_rows:
            flagged = pc.equal(pc.utf8_lower(pc.utf8_trim_whitespace(chosen["flag"])), ABNORMAL).fill_null(False)
            n_kept += chosen.num_rows
            if n_kept > MAX_RESULTS:
                raise InputError(f"{path}: more than {MAX_RESULTS} potassium results; it is not MIMIC-IV's labevents")
            kept.append(_usable(chosen.to_pandas(), np.asarray(flagged), subjects, left_out))
    if table.malformed:
        left_out["rows with a wrong number of cells"] = table.malformed
    subject, time_s, item, abnormal = (np.concatenate(c) for c in zip(*kept, strict=True)) if kept else _none()
    order = np.lexsort((item, time_s, subject))
    subject, time_s, abnormal = subject[order], time_s[order], abnormal[order]
    first = np.ones(len(subject), dtype=bool)
    first[1:] = (subject[1:] != subject[:-1]) | (time_s[1:] != time_s[:-1])
    return Results(subject[first], time_s[first], abnormal[first], {k: n for k, n in left_out.items() if n})


def _none() -> tuple[np.ndarray, ...]:
    whole = np.zeros(0, dtype=np.int64)
    return whole, whole, whole, np.zeros(0, dtype=bool)


def _usable(
    rows: pd.DataFrame, flagged: np.ndarray, subjects: np.ndarray, left_out: dict[str, int]
) -> tuple[np.ndarray, ...]:
    subject = numbers(rows["subject_id"])
    ours = np.isin(subject, subjects)
    rows, flagged, subject = rows[ours], flagged[ours], subject[ours]
    time_s, timed = seconds(rows["charttime"])
    value, low, high = (numbers(rows[c]) for c in ("valuenum", "ref_range_lower", "ref_range_upper"))
    known = flagged | np.isfinite(value)
    left_out["no time"] += int((~timed).sum())
    left_out["neither a number nor a flag"] += int((timed & ~known).sum())
    # A comparison with a missing limit is false: no limit, not outside of it.
    abnormal = flagged | (value < low) | (value > high)
    item = np.where(rows["itemid"].str.strip() == SERUM, 0, 1)
    use = timed & known
    return subject[use].astype(np.int64), time_s[use], item[use], abnormal[use]


def seconds(column: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Turn time texts into int64 seconds since 1970 and whether each could be read."""
    times = pd.to_datetime(column, errors="coerce", format="ISO8601").to_numpy(dtype="datetime64[s]")
    timed = ~np.isnat(times)
    return np.where(timed, times, np.datetime64(0, "s")).astype(np.int64), timed


def nearest_flag(
    results: Results, subject: np.ndarray, time_s: np.ndarray, *, hours_before: float, hours_after: float
) -> np.ndarray:
    """Return the label of each ECG, float64: 1 abnormal, 0 normal, NaN where the window holds no usable result.

    Two results equally near count as the earlier one. Both ends belong to the window.
    """
    flag = np.full(len(subject), np.nan)
    if not len(results.subject):
        return flag
    # One sorted key for (subject, time): subjects are ranked, times stay within one stride.
    ranks, rank_of_result = np.unique(results.subject, return_inverse=True)
    start = min(int(results.time_s.min()), int(time_s.min()))
    stride = max(int(results.time_s.max()), int(time_s.max())) - start + 1
    key = rank_of_result * stride + (results.time_s - start)
    place = np.minimum(np.searchsorted(ranks, subject), len(ranks) - 1)
    after = np.searchsorted(key, place * stride + (time_s - start), side="right")
    best = np.full(len(subject), np.inf)
    for index, limit_s in ((after - 1, hours_before * HOUR_S), (after, hours_after * HOUR_S)):
        held = np.clip(index, 0, len(key) - 1)
        distance = np.abs(results.time_s[held] - time_s)
        usable = (index >= 0) & (index < len(key)) & (results.subject[held] == subject)
        better = usable & (distance <= limit_s) & (distance < best)
        best[better] = distance[better]
        flag[better] = results.abnormal[held[better]]
    return flag
