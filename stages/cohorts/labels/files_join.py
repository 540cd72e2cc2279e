"""Joins a table of labels to ECG files: by file name, path or record id, or by patient and time of the recording."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal, NamedTuple

import pandas as pd
from pydantic import Field

from cache.errors import InputError
from cache.records import Target
from stages.cohorts.labels.dates import DateOrder, moments_of
from stages.cohorts.labels.join import add_labels, key_column
from stages.cohorts.labels.keys import KeyMatcher
from stages.cohorts.labels.options import LabelOptions
from stages.cohorts.labels.table import check_column, read_labels
from stages.readers.files import Facts


class FileLabelOptions(LabelOptions):
    """The label options of the source `wfdb`, and how rows are found by patient and time.

    Attributes
    ----------
    time
        Column with the time of the recording; rows are then found by patient (option `patient`) and time.
    time_tolerance_s
        How far the time of a row may be from that of the file.
    date_order
        What the first number of dates such as 03/04/2024 is; None: what can only be meant.
    patient_zeros
        Whether patient ids that differ in zeros before them alone are one patient (`ignore`) or two (`keep`); None:
        such ids are refused.
    """

    time: str | None = None
    time_tolerance_s: float = Field(60.0, ge=0, le=86400)
    date_order: DateOrder | None = None
    patient_zeros: Literal["keep", "ignore"] | None = None


class Listed(NamedTuple):
    """The files of a folder: paths, the names of their records, and what each says of itself."""

    paths: list[str]
    record_ids: list[str]
    facts: list[Facts]


def add_file_labels(
    frame: pd.DataFrame, listed: Listed, folder: Path, options: FileLabelOptions, notes: list[str]
) -> list[Target]:
    """Add the labels of the table that the option `labels` names; patients of the table win over those of the files."""
    if options.labels is None:
        notes.append("no labels: name a CSV or Excel file by the option 'labels'")
        _spell_patients(frame, folder, options)
        return []
    matchers = _matchers(listed, Path(options.labels))
    table, path, more = read_labels(folder, options, is_record=lambda text: any(m.is_record(text) for m in matchers))
    notes += more
    if options.time is not None:
        rows, used = _by_patient_and_time(table, path, listed, options, notes)
    else:
        rows, used = _by_name(table, path, matchers, options, notes)
    of_files = frame["patient_id"].copy()
    targets = add_labels(frame, table.drop(columns=used), rows, path, options, notes)
    frame["patient_id"] = frame["patient_id"].where(frame["patient_id"].notna(), of_files)
    _spell_patients(frame, path, options)
    if frame["patient_id"].notna().any():
        notes[:] = [note for note in notes if not note.startswith("no patients: ")]
    return targets


def _spell_patients(frame: pd.DataFrame, path: Path, options: FileLabelOptions) -> None:
    """Give patients whose ids differ in zeros alone one id, or refuse them where the study does not say what they are.

    One patient under two names could be in training and test.
    """
    ids = [None if pd.isna(who) else str(who).strip() for who in frame["patient_id"]]
    spelt: dict[str, str] = {}
    for who in (one for one in ids if one is not None):
        other = spelt.setdefault(who.lstrip("0"), who)
        if other != who and options.patient_zeros is None:
            raise InputError(
                f"{path}: patient ids '{other}' and '{who}' differ in zeros before them alone; set the option "
                "'patient_zeros' to ignore (one patient) or keep (two)"
            )
    if options.patient_zeros == "ignore":
        one_each = [None if who is None else spelt[who.lstrip("0")] for who in ids]
        frame["patient_id"] = pd.Series(one_each, index=frame.index, dtype=object)


def _matchers(listed: Listed, path: Path) -> list[KeyMatcher]:
    """Return the ways in which a table may name files: with or without the ends of their names, or by record id."""
    bare = [str(Path(name).with_suffix("")) for name in listed.paths]
    ways = [listed.paths, bare, listed.record_ids]
    return [KeyMatcher(names, path) for names in ways]


def _by_name(
    table: pd.DataFrame, path: Path, matchers: Sequence[KeyMatcher], options: FileLabelOptions, notes: list[str]
) -> tuple[list[list[int]], list[str]]:
    """Find rows by the way of naming files that finds most."""
    best: tuple[int, str, KeyMatcher] | None = None
    for matcher in matchers:
        key_notes: list[str] = []
        key = key_column(table, path, matcher, options, key_notes)
        n_found = matcher.count(table[key])
        if best is None or n_found > best[0]:
            best, best_notes = (n_found, key, matcher), key_notes
    if best is None:
        raise InputError(f"{path}: no file is there to be named")
    notes += best_notes
    return best[2].rows(table[best[1]], notes), [best[1]]


def _by_patient_and_time(
    table: pd.DataFrame, path: Path, listed: Listed, options: FileLabelOptions, notes: list[str]
) -> tuple[list[list[int]], list[str]]:
    """Find rows by patient and the time nearest to that of the file."""
    patient, time = str(options.patient or _patient_column(table, path)), str(options.time)
    for name, option in ((patient, "patient"), (time, "time")):
        check_column(table, path, name, option)
    times = moments_of(table[time], path, time, options.date_order)
    where: dict[str, list[int]] = defaultdict(list)
    for row, who in enumerate(table[patient]):
        if who is not None and times[row] is not None:
            where[_plain_patient(who, options)].append(row)
    tolerance = timedelta(seconds=options.time_tolerance_s)
    rows = [_nearest(where, times, one, tolerance, options) for one in listed.facts]
    n_found = sum(map(bool, rows))
    if not n_found:
        raise InputError(_no_match(where, path, listed, options))
    if n_found < len(rows):
        notes.append(f"{path.name}: {len(rows) - n_found} records have no row of their patient and time")
    return rows, [time]


def _patient_column(table: pd.DataFrame, path: Path) -> str:
    found = next((name for name in ("patient_id", "subject_id") if name in table), None)
    if found is None:
        raise InputError(
            f"{path}: rows are found by patient and time; name the patients' column by the option 'patient'"
        )
    return found


def _plain_patient(who: str, options: FileLabelOptions) -> str:
    plain = who.strip().removesuffix(".0") if options.patient_zeros == "ignore" else who.strip()
    return (plain.lstrip("0") or "0") if options.patient_zeros == "ignore" else plain


def _nearest(
    where: dict[str, list[int]],
    times: Sequence[datetime | None],
    one: Facts,
    tolerance: timedelta,
    options: FileLabelOptions,
) -> list[int]:
    if one.patient_id is None or one.acquired is None:
        return []
    near = [
        (abs(when - one.acquired), row)
        for row in where.get(_plain_patient(one.patient_id, options), ())
        if (when := times[row]) is not None and abs(when - one.acquired) <= tolerance
    ]
    least = min((gap for gap, _ in near), default=None)
    return [row for gap, row in near if gap == least]


def _no_match(where: dict[str, list[int]], path: Path, listed: Listed, options: FileLabelOptions) -> str:
    """Say why no row is found, and whether zeros before patient ids are all that is in the way."""
    known = {one.patient_id for one in listed.facts if one.patient_id is not None}
    plain = {who.lstrip("0") for who in known}
    if known.isdisjoint(where) and not plain.isdisjoint(who.lstrip("0") for who in where):
        return (
            f"{path}: its patient ids differ from those of the files in zeros before them alone; if they are the same "
            "patients, set the option 'patient_zeros' to ignore"
        )
    return (
        f"{path}: no row has the patient and time of a file (options 'patient', 'time', and 'time_tolerance_s': "
        f"{options.time_tolerance_s:g})"
    )
