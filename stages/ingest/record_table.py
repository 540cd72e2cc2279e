"""The rows of records.parquet before a signal is read: unique ids, patients, folds, and what a list adds to a table.

Not here: reading signals (shards.py), writing the files (outputs.py).
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pyarrow as pa

from cache.errors import InputError, UsageError
from cache.fingerprint import text_digest
from cache.records import BASE_COLUMNS, SPLITS, Target, open_records
from cache.storage.locations import Location
from stages.cohorts import Entries, Published
from stages.ingest.folds import N_FOLDS, assign_folds, split_names, strata_of
from stages.ingest.packed_texts import all_named, is_packed, longest, named_patients, pack, pack_texts
from stages.readers.rows import QUALITY

IDENTITY = ("record_id", "patient_id", "source", "path")
EXTRA = {
    "derived_leads": pa.list_(pa.string()),
    "limb_swap": pa.string(),
    "pace_spikes": pa.int16(),
    "notes": pa.list_(pa.string()),
}
"""Columns beside the base ones: limb leads computed from I and II, a suspicion that some were exchanged, pacing, what
was left out or assumed of the file."""
TEXTS = ("record_id", "patient_id", "path")
LONGEST_NAME = 500
"""Characters of an id, a target or a class: arrays of texts give each the room of the longest one."""


@dataclass(frozen=True)
class Rows:
    """The table of a run.

    Attributes
    ----------
    frame
        Every row, those that were there first.
    refused
        Row -> why it must not be read.
    kept
        Names of the first rows, which stand in records.parquet already; None where the table is new.
    """

    frame: pd.DataFrame
    targets: list[Target]
    notes: list[str]
    refused: dict[int, str]
    kept: pd.DataFrame | None = None

    @property
    def n_kept(self) -> int:
        """How many first rows are there already."""
        return 0 if self.kept is None else len(self.kept)


def new_rows(entries: Entries, source: str, limit: int | None, seed: int) -> Rows:
    """Make the rows of a cohort that is ingested for the first time."""
    rows = _without_empty(_listed(entries, source, limit))
    rows.notes.extend(_add_folds(rows.frame, entries, seed))
    return rows


def _without_empty(rows: Rows) -> Rows:
    """Leave out targets that no record can have a class of, e.g. of a list of statements that has none of a kind."""
    empty = [target.name for target in rows.targets if _is_empty(target)]
    rows.notes.extend(f"{name}: left out, the labels name no class of it" for name in empty)
    return replace(rows, targets=[target for target in rows.targets if target.name not in empty])


def _is_empty(target: Target) -> bool:
    return target.kind in ("multilabel", "multiclass") and not target.classes


def appended_rows(entries: Entries, source: str, limit: int | None, seed: int, records_path: Location) -> Rows:
    """Put the records of a list that records.parquet does not have behind those it has.

    A patient who is there keeps the fold. New ones get the list's fold where it has folds, else they are dealt to the
    fold that has the fewest records like theirs.

    Raises
    ------
    InputError
        The table is of another source, has other targets, or had too few patients to be split.
    """
    if entries.published_of:
        raise InputError(f"{records_path}: --append takes more of one source; ingest several cohorts without --append")
    kept = open_records(records_path, without=tuple(QUALITY))
    others = set(kept["source"]) - {source}
    if others:
        raise InputError(f"{records_path} holds source '{others.pop()}'; --append takes more of the same source only")
    listed = _listed(entries, source, limit)
    known = kept.attrs["targets"]
    # A few records may have no class of a target that the table has, and the other way round.
    listed = replace(listed, targets=[t for t in listed.targets if t.name in known or not _is_empty(t)])
    targets = _joined_targets(list(kept.attrs.pop("targets").values()), listed, records_path)
    fresh = _not_in(kept, listed)
    _as_codes(kept, targets)
    fold, split = _folds_of_new(kept, fresh, entries, targets, seed, records_path)
    columns = [*IDENTITY, "fold", "split", *(t.name for t in targets)]
    parts = [kept[columns], fresh.assign(fold=fold, split=split)[columns]]
    frame = pd.concat([part for part in parts if len(part)], ignore_index=True)
    _check_patients(frame)
    place = {int(row): len(kept) + k for k, row in enumerate(fresh.index)}
    refused = {place[row]: reason for row, reason in listed.refused.items() if row in place}
    notes = [*listed.notes, f"{len(kept)} records were there, {len(fresh)} are new"]
    gone = len(kept) + len(fresh) - len(listed.frame)
    if gone > 0:
        notes.append(f"{gone} records that were there are not in the list; they stay")
    return Rows(frame, targets, notes, refused, kept[["record_id"]])


def _listed(entries: Entries, source: str, limit: int | None) -> Rows:
    """Name every row and its patient."""
    if entries.published_of and limit is not None:
        raise UsageError(f"--limit {limit}: with several cohorts, give each a `limit` under cohorts in params.yaml")
    pack(entries.frame, TEXTS, [target.name for target in entries.targets if target.kind == "multilabel"])
    frame = entries.frame if limit is None else entries.frame.head(limit)
    frame = frame.reset_index(drop=True)
    if not entries.published_of:
        frame["source"] = source
    if not len(frame):
        raise InputError(f"source '{source}' lists no record")
    _check_names(entries.targets)
    notes = list(entries.notes)
    if is_packed(frame["path"]):
        frame["path"] = frame["path"].fillna("")
    else:
        paths = ["" if gone else str(path) for path, gone in zip(frame["path"], frame["path"].isna(), strict=True)]
        frame["path"] = pd.Series(
            paths, index=frame.index, dtype=object
        )  # a name of other bytes is no text of pandas 3
    no_names = _make_short(frame) | _make_text(frame)
    refused = _make_unique(frame) | no_names
    unknown = frame["patient_id"].isna()
    if unknown.any() and not unknown.all():
        notes.append(f"{int(unknown.sum())} records have no patient: each counts as a patient of its own")
    pack_texts(frame, TEXTS)
    if is_packed(frame["patient_id"]):
        frame["patient_id"] = named_patients(frame["patient_id"], frame["record_id"])
    else:
        names = frame["record_id"].astype(object)
        frame["patient_id"] = frame["patient_id"].where(~unknown, "record:" + names).astype(str)
        pack_texts(frame, TEXTS)
    _as_codes(frame, entries.targets)
    return Rows(frame, list(entries.targets), notes, refused)


def _as_codes(frame: pd.DataFrame, targets: list[Target]) -> None:
    for target in targets:
        if target.kind in ("binary", "multiclass"):
            frame[target.name] = frame[target.name].astype("Int16")


def _check_names(targets: list[Target]) -> None:
    """Refuse a target that has the name of another column, or names of any length, before a signal is read."""
    for target in targets:
        longest = max((target.name, *target.classes), key=len)
        if len(longest) > LONGEST_NAME:
            raise InputError(
                f"target '{target.name[:80]}' has a name or class of {len(longest)} characters, more than "
                f"{LONGEST_NAME}; is it a label? Leave it out by the option 'targets'"
            )
    for name, n in Counter(target.name for target in targets).items():
        if n > 1 or name in BASE_COLUMNS or name in EXTRA:
            raise InputError(
                f"a target cannot be named '{name}': records.parquet has a column of that name; rename it in the "
                "labels, or leave it out by the option 'targets'"
            )


def _make_text(frame: pd.DataFrame) -> dict[int, str]:
    """Write what is no Unicode text (a file name of other bytes) with backslashes; such a record is refused."""
    refused: dict[int, str] = {}
    for column in TEXTS:
        if is_packed(frame[column]):
            continue
        texts = frame[column].tolist()
        odd = [row for row, text in enumerate(texts) if isinstance(text, str) and not _is_text(text)]
        for row in odd:
            texts[row] = texts[row].encode("utf-8", "backslashreplace").decode()
            refused[row] = f"its {column} is not UTF-8 text"
        if odd:
            frame[column] = pd.Series(texts, index=frame.index, dtype=object)
    return refused


def _make_short(frame: pd.DataFrame) -> dict[int, str]:
    """Shorten ids that are no names, to what still tells them apart; such a record is refused."""
    refused: dict[int, str] = {}
    for column in ("record_id", "patient_id"):
        if is_packed(frame[column]) and longest(frame[column]) <= LONGEST_NAME:
            continue
        ids = frame[column].tolist()
        for row, name in enumerate(ids):
            if isinstance(name, str) and len(name) > LONGEST_NAME:
                shown = name.encode("utf-8", "backslashreplace").decode()
                ids[row] = f"{shown[:80]}...{text_digest([shown])}"
                refused[row] = f"its {column} has {len(name)} characters, more than {LONGEST_NAME}"
        if refused:
            frame[column] = pd.Series(ids, index=frame.index, dtype=object)
    return refused


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _make_unique(frame: pd.DataFrame) -> dict[int, str]:
    """Name every row; of rows with one name the first is read and the others are refused."""
    if is_packed(frame["record_id"]) and all_named(frame["record_id"]):
        return {}
    refused: dict[int, str] = {}
    names: list[str] = []
    given = [None if name is None or pd.isna(name) else str(name) for name in frame["record_id"]]
    taken, seen = set(given), set[str]()
    for row, name in enumerate(given):
        plain = name
        if plain is None:
            refused[row], plain = "the list gives it no record id", _free(f"row-{row}", taken)
        elif plain in seen:
            refused[row] = f"the list has record id '{plain}' more than once; only the first is read"
            plain = _free(plain, taken)
        seen.add(plain)
        taken.add(plain)
        names.append(plain)
    frame["record_id"] = names
    return refused


def _free(name: str, taken: set[str | None]) -> str:
    """Return a name that nothing has: itself, or with #2, #3 ... behind."""
    if name not in taken:
        return name
    return next(f"{name}#{k}" for k in itertools.count(2) if f"{name}#{k}" not in taken)


def _add_folds(frame: pd.DataFrame, entries: Entries, seed: int) -> list[str]:
    if entries.published_of:
        return _add_folds_by_source(frame, entries, seed)
    if "fold" in frame:
        _check_patients(frame)
        published = _published(entries, frame["fold"])
        frame["split"] = split_names(frame["fold"].to_numpy(), val=published.val, test=published.test)
        return _of_missing(frame) if entries.published is None else []
    n_patients = frame["patient_id"].nunique()
    n_folds = min(N_FOLDS, n_patients)
    strata = strata_of(frame, entries.targets)
    frame["fold"] = assign_folds(frame["patient_id"], strata, n_folds=n_folds, seed=seed)
    if n_patients < 3:
        frame["split"] = "train"
        return [f"{n_patients} patients cannot be split: all records are train"]
    frame["split"] = split_names(frame["fold"].to_numpy(), val=n_folds - 2, test=n_folds - 1)
    return []


def _add_folds_by_source(frame: pd.DataFrame, entries: Entries, seed: int) -> list[str]:
    """Split each source as it would be split alone: its own folds where it has some, else dealt to its patients."""
    notes, parts = [], []
    for name, published in entries.published_of.items():
        part = frame[frame["source"] == name].copy()
        targets = [target for target in entries.targets if part[target.name].notna().any()]
        if "fold" in part and part["fold"].isna().all():
            part = part.drop(columns="fold")
        elif "fold" in part:
            part["fold"] = part["fold"].astype(int)
        alone = replace(entries, targets=targets, published=published, published_of={})
        notes += [f"{name}: {note}" for note in _add_folds(part, alone, seed)]
        parts.append(part[["fold", "split"]])
    dealt = pd.concat(parts).loc[frame.index]
    frame["fold"], frame["split"] = dealt["fold"].astype(int), dealt["split"]
    return notes


def _check_patients(frame: pd.DataFrame) -> None:
    """Refuse folds that split a patient, before a signal is read."""
    patients = frame[["patient_id", "fold"]].drop_duplicates()["patient_id"]
    leaking = patients[patients.duplicated()].unique()
    if len(leaking):
        raise InputError(f"patient '{leaking[0]}' is in more than one fold ({len(leaking)} such patients)")


def _of_missing(frame: pd.DataFrame) -> list[str]:
    absent = [name for name in SPLITS if name not in set(frame["split"])]
    if not absent:
        return []
    n_folds = frame["fold"].nunique()
    return [
        f"no record is {' or '.join(absent)}: the highest of the {n_folds} fold numbers is test, the one below it val"
    ]


def _published(entries: Entries, folds: pd.Series) -> Published:
    last = int(folds.max())
    return entries.published or Published(last + 1, val=max(last - 1, 0), test=last)


# ---- appending -------------------------------------------------------------------------------------------------------


def _not_in(kept: pd.DataFrame, listed: Rows) -> pd.DataFrame:
    """Return the rows of a list that a table does not have.

    A file that is in the table counts as there although its name has changed (a folder whose file names are no longer
    unique names its records by their paths), if nothing in the list has the old name any more.
    """
    frame = listed.frame
    renamed = kept.loc[~kept["record_id"].isin(frame["record_id"]) & (kept["path"] != ""), "path"]
    return frame[~(frame["record_id"].isin(kept["record_id"]) | frame["path"].isin(renamed))]


def _joined_targets(kept: list[Target], listed: Rows, records_path: Location) -> list[Target]:
    """Return the table's targets with the classes that a list adds behind theirs; renumbers the list's to match.

    Raises
    ------
    InputError
        Other targets, or one of another kind or unit.
    """
    new = {target.name: target for target in listed.targets}
    differing = [name for name in new if name not in {t.name for t in kept}] + [
        t.name for t in kept if t.name not in new
    ]
    if differing:
        raise InputError(
            f"{records_path} and the list do not have the same targets ('{differing[0]}'); give the options it was "
            "made with, or ingest without --append"
        )
    return [_joined(target, new[target.name], listed.frame, records_path) for target in kept]


def _joined(kept: Target, new: Target, frame: pd.DataFrame, records_path: Location) -> Target:
    if (kept.kind, kept.unit) != (new.kind, new.unit):
        raise InputError(
            f"{records_path}: target '{kept.name}' is {kept.kind} {kept.unit}, the list's is {new.kind} {new.unit}; "
            "name its kind by the option 'kinds', or ingest without --append"
        )
    classes = (*kept.classes, *(name for name in new.classes if name not in kept.classes))
    if kept.kind == "binary" and len(classes) > 2:
        raise InputError(f"{records_path}: binary target '{kept.name}' would have the classes {', '.join(classes)}")
    if kept.kind in ("binary", "multiclass") and new.classes:
        number = {k: classes.index(name) for k, name in enumerate(new.classes)}
        frame[kept.name] = frame[kept.name].map(number, na_action="ignore").astype("Int16")
    return replace(kept, classes=classes)


def _folds_of_new(
    kept: pd.DataFrame, fresh: pd.DataFrame, entries: Entries, targets: list[Target], seed: int, records_path: Location
) -> tuple[np.ndarray, np.ndarray]:
    """Return fold and split of the new rows."""
    theirs = dict(zip(kept["patient_id"], kept["fold"].astype(int), strict=True))
    names = dict(zip(kept["fold"].astype(int), kept["split"], strict=True))
    if "fold" in fresh:
        if entries.published is not None:
            val, test = entries.published.val, entries.published.test
            listed = split_names(np.arange(entries.published.n_folds), val=val, test=test)
            names = {**dict(enumerate(listed)), **names}
        fold = np.array([theirs.get(p, int(f)) for p, f in zip(fresh["patient_id"], fresh["fold"], strict=True)])
        # A fold that neither the table nor the authors know cannot become test: that would move records already there.
        return fold.astype(int), np.array([names.get(int(f), "train") for f in fold], dtype=object)
    n_folds = max(names) + 1
    names = {**dict(enumerate(split_names(np.arange(n_folds), val=n_folds - 2, test=n_folds - 1))), **names}
    if set(kept["split"]) == {"train"}:
        raise InputError(f"{records_path}: its patients were too few to be split; ingest without --append")
    columns = ["patient_id", *(t.name for t in targets)]
    both = pd.concat([kept[columns], fresh[columns]], ignore_index=True) if len(fresh) else kept[columns]
    folds = assign_folds(both["patient_id"].tolist(), strata_of(both, targets), n_folds=n_folds, seed=seed, kept=theirs)
    folds = folds[len(kept) :]
    return folds, np.array([names[int(f)] for f in folds], dtype=object)
