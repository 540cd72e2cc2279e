"""Stage `ingest`: a data source in, records.parquet, signals.zarr and bad_records.csv out.

Works shard by shard: memory is bounded by a shard, a killed run goes on where it stopped, and several processes give
the same bytes as one. Not here: what a source is (stages/cohorts), how a record is read (stages/readers).
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cache.claims import Claims
from cache.errors import InputError, StoreError, UsageError
from cache.files import write_text
from cache.fingerprint import fingerprint, text_digest
from cache.records import BASE_COLUMNS, Target, write_records
from cache.signals import LEADS, MISSING, N_SAMPLES, SignalStore, create_signals, open_signals
from stages.cohorts import Cohort, Entries, Published, open_cohort
from stages.readers import standardise
from stages.splits import N_FOLDS, assign_folds, split_names, strata_of

Progress = Callable[[int, int], None]
VERSION = "1"
"""Raised whenever the same files would give other rows; an interrupted run of another version is not gone on with."""
PROGRESS_EVERY = 32
LONGEST_REASON = 300
QUALITY = (
    "sampling_rate_hz",
    "n_samples",
    "nan_fraction",
    "flat_leads",
    "missing_leads",
    "clipped_fraction",
    "status",
    "reason",
)


@dataclass(frozen=True)
class IngestSummary:
    """What came of it.

    Attributes
    ----------
    reasons
        Kind of reason -> bad records, most frequent first; bad_records.csv names each record.
    labels
        Target -> records that have it.
    splits
        train, val, test -> records.
    notes
        What the source left out of the labels and why.
    """

    n_records: int
    n_bad: int
    n_patients: int
    reasons: dict[str, int]
    labels: dict[str, int]
    splits: dict[str, int]
    notes: list[str]


@dataclass(frozen=True)
class _Task:
    """One shard for one process: what to read, and where to."""

    source: str
    folder: str
    options: str
    signals: Path
    shard: int
    paths: tuple[str, ...]
    refused: dict[int, str]


def ingest(
    source: str,
    path: str | Path,
    options: Mapping[str, Any] | None = None,
    *,
    records_path: Path,
    signals_path: Path,
    limit: int | None = None,
    workers: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> IngestSummary:
    """Read a cohort into the stores. The same input gives the same bytes, whatever `workers`.

    Parameters
    ----------
    source
        One of `stages.cohorts.list_cohorts()`.
    path
        The cohort's folder; no record outside of it is opened.
    options
        Of the source; unknown ones are refused by name.
    limit
        Only the first records of the list.
    workers
        Processes.
    seed
        Of the folds, where the cohort has none.
    progress
        Called with (records done, records in all).

    Raises
    ------
    UsageError
        Unknown source or option, a limit or number of workers below 1.
    MissingFileError, InputError
        A folder, list or column is missing. A bad record is no error: it gets a row that says why.
    """
    _check_usage(limit, workers)
    cohort = open_cohort(source, path, options)
    entries = cohort.entries()
    frame, refused, notes = _rows(entries, source, limit, seed)
    work = signals_path.with_name(f".{signals_path.name}.ingest")
    with closing(Claims(signals_path, work)) as claims, claims.claim(0) as ours:
        if not ours:
            raise StoreError(f"{signals_path}: another `ensemble ingest` is writing it; wait for it, or stop it")
        store = _resume_or_create(signals_path, work, frame, _identity(cohort, frame))
        tasks = _tasks(cohort, store, frame, refused)
        _run([t for t in tasks if not _done(store, work, t.shard)], work, workers, _Report(progress, len(frame), tasks))
        for name, column in _quality(work, store.n_shards).items():
            frame[name] = column
        _write(records_path, frame, entries.targets)
        shutil.rmtree(work)
    return _summary(frame, entries.targets, notes)


def _check_usage(limit: int | None, workers: int) -> None:
    for name, value in (("--limit", limit), ("--workers", workers)):
        if value is not None and value < 1:
            raise UsageError(f"{name} is {value}; give a number from 1 up")


# ---- the table -------------------------------------------------------------------------------------------------------


def _rows(
    entries: Entries, source: str, limit: int | None, seed: int
) -> tuple[pd.DataFrame, dict[int, str], list[str]]:
    """Return the rows with unique ids, patients, folds; which of them must not be read and why; notes."""
    frame = entries.frame if limit is None else entries.frame.head(limit)
    frame = frame.reset_index(drop=True).assign(source=source)
    if not len(frame):
        raise InputError(f"source '{source}' lists no record")
    notes = list(entries.notes)
    refused = _make_unique(frame)
    frame["path"] = frame["path"].astype(object).where(frame["path"].notna(), "").astype(str)
    unknown = frame["patient_id"].isna()
    if unknown.any() and not unknown.all():
        notes.append(f"{int(unknown.sum())} records have no patient: each counts as a patient of its own")
    frame["patient_id"] = frame["patient_id"].where(~unknown, "record:" + frame["record_id"]).astype(str)
    notes += _add_folds(frame, entries, seed)
    for target in entries.targets:
        if target.kind in ("binary", "multiclass"):
            frame[target.name] = frame[target.name].astype("Int16")
    return frame, refused, notes


def _make_unique(frame: pd.DataFrame) -> dict[int, str]:
    """Name every row; of rows with one name the first is read and the others are refused."""
    refused: dict[int, str] = {}
    names: list[str] = []
    seen: Counter[str] = Counter()
    for row, name in enumerate(frame["record_id"]):
        plain = f"row-{row}" if name is None or pd.isna(name) else str(name)
        if plain == f"row-{row}":
            refused[row] = "the list gives it no record id"
        seen[plain] += 1
        if seen[plain] > 1:
            refused[row] = f"the list has record id '{plain}' more than once; only the first is read"
            plain = f"{plain}#{seen[plain]}"
            seen[plain] += 1
        names.append(plain)
    frame["record_id"] = names
    return refused


def _add_folds(frame: pd.DataFrame, entries: Entries, seed: int) -> list[str]:
    if "fold" in frame:
        published = entries.published
        if published is None:
            last = int(frame["fold"].max())
            published = Published(last + 1, val=max(last - 1, 0), test=last)
        frame["split"] = split_names(frame["fold"].to_numpy(), val=published.val, test=published.test)
        return []
    n_patients = frame["patient_id"].nunique()
    n_folds = min(N_FOLDS, n_patients)
    strata = strata_of(frame, entries.targets)
    frame["fold"] = assign_folds(frame["patient_id"].tolist(), strata, n_folds=n_folds, seed=seed)
    if n_patients < 3:
        frame["split"] = "train"
        return [f"{n_patients} patients cannot be split: all records are train"]
    frame["split"] = split_names(frame["fold"].to_numpy(), val=n_folds - 2, test=n_folds - 1)
    return []


# ---- the signals -----------------------------------------------------------------------------------------------------


def _identity(cohort: Cohort, frame: pd.DataFrame) -> str:
    """Say what an interrupted run was reading; only the same is gone on with."""
    options = cohort.options.model_dump(mode="json")
    rows = text_digest(f"{i}\0{p}" for i, p in zip(frame["record_id"], frame["path"], strict=True))
    content = {
        "version": VERSION,
        "source": cohort.name,
        "folder": str(cohort.folder),
        "options": options,
        "rows": rows,
    }
    return fingerprint(content)


def _resume_or_create(path: Path, work: Path, frame: pd.DataFrame, identity: str) -> SignalStore:
    told = work / "identity"
    if path.exists() and told.is_file() and told.read_text(encoding="utf-8") == identity:
        return open_signals(path, mode="r+")
    for left in work.glob("*.json"):
        left.unlink()
    told.unlink(missing_ok=True)
    store = create_signals(path, len(frame))
    write_text(told, identity)
    return store


def _done(store: SignalStore, work: Path, shard: int) -> bool:
    """Whether a shard is complete. One with a bad record is read again: a person may have put it right meanwhile."""
    told = work / f"{shard:08d}.json"
    return told.is_file() and store.written(shard) and "bad" not in json.loads(told.read_text())["status"]


def _tasks(cohort: Cohort, store: SignalStore, frame: pd.DataFrame, refused: dict[int, str]) -> list[_Task]:
    options = json.dumps(cohort.options.model_dump(mode="json"), sort_keys=True)
    paths = frame["path"].tolist()
    tasks = []
    for shard in range(store.n_shards):
        rows = store.rows_of(shard)
        mine = {row - rows.start: refused[row] for row in range(rows.start, rows.stop) if row in refused}
        place = (cohort.name, str(cohort.folder), options, store.path, shard)
        tasks.append(_Task(*place, paths=tuple(paths[rows]), refused=mine))
    return tasks


class _Report:
    """Counts records for the caller's progress display."""

    def __init__(self, progress: Progress | None, total: int, tasks: list[_Task]) -> None:
        self._progress, self._total = progress, total
        self._waiting = sum(len(t.paths) for t in tasks)

    def begin(self, tasks: list[_Task]) -> None:
        """Say that only these are left to do."""
        self._finished = self._waiting - sum(len(t.paths) for t in tasks)
        self.add(0)

    def add(self, n: int) -> None:
        """Count finished records."""
        self._finished += n
        if self._progress is not None:
            self._progress(self._finished, self._total)


def _run(tasks: list[_Task], work: Path, workers: int, report: _Report) -> None:
    report.begin(tasks)
    if workers == 1 or len(tasks) <= 1:
        _run_here(tasks, work, report)
        return
    # Spawned, not forked: zarr runs threads, which a fork would break.
    with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=get_context("spawn")) as pool:
        try:
            for task in _in_flight(pool, tasks, work, 2 * workers):
                report.add(len(task.paths))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _run_here(tasks: list[_Task], work: Path, report: _Report) -> None:
    """Read in this thread while another one packs and writes the shard before."""
    writing: Future[None] | None = None
    # Two for the whole run: asking the system for memory anew costs more than reading into it.
    buffers = [_buffer(max((len(t.paths) for t in tasks), default=0)) for _ in range(min(2, len(tasks)))]
    with ThreadPoolExecutor(1) as pool:
        for turn, task in enumerate(tasks):
            read = _read_shard(task, buffers[turn % 2], report.add)
            if writing is not None:
                writing.result()
            writing = pool.submit(_write_shard, task, read, work)
        if writing is not None:
            writing.result()


def _in_flight(pool: ProcessPoolExecutor, tasks: list[_Task], work: Path, n_ahead: int) -> Iterator[_Task]:
    """Give each task when it is done; only `n_ahead` at a time are handed to the pool."""
    running: dict[Future[None], _Task] = {}
    waiting = iter(tasks)
    while True:
        for task in itertools.islice(waiting, n_ahead - len(running)):
            running[pool.submit(_read_and_write, task, work)] = task
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            future.result()
            yield running.pop(future)


@dataclass(frozen=True)
class _Read:
    """A shard in memory: what signals.zarr takes, and the quality columns of its rows."""

    signals_uv: np.ndarray
    valid: np.ndarray
    told: dict[str, list[Any]]


def _buffer(n_records: int) -> np.ndarray:
    return np.empty((n_records, len(LEADS), N_SAMPLES), dtype=np.int16)


def _read_shard(task: _Task, buffer: np.ndarray, report: Callable[[int], None] | None = None) -> _Read:
    cohort = _cohort(task.source, task.folder, task.options)
    signals_uv = buffer[: len(task.paths)]
    valid = np.zeros(len(task.paths), dtype=np.int32)
    told: dict[str, list[Any]] = {name: [] for name in QUALITY}
    for row, path in enumerate(task.paths):
        judged = _read_record(cohort, path, task.refused.get(row), signals_uv[row])
        valid[row] = judged.pop("valid")
        for name in QUALITY:
            told[name].append(judged[name])
        if report is not None and (row + 1) % PROGRESS_EVERY == 0:
            report(PROGRESS_EVERY)
    if report is not None:
        report(len(task.paths) % PROGRESS_EVERY)
    return _Read(signals_uv, valid, told)


def _write_shard(task: _Task, read: _Read, work: Path) -> None:
    open_signals(task.signals, mode="r+").write_shard(task.shard, read.signals_uv, read.valid)
    write_text(work / f"{task.shard:08d}.json", json.dumps(read.told))


def _read_and_write(task: _Task, work: Path) -> None:
    _write_shard(task, _read_shard(task, _buffer(len(task.paths))), work)


@lru_cache(maxsize=4)
def _cohort(source: str, folder: str, options: str) -> Cohort:
    return open_cohort(source, folder, json.loads(options))


def _read_record(cohort: Cohort, path: str, refused: str | None, out: np.ndarray) -> dict[str, Any]:
    reason = refused
    if reason is None:
        try:
            return {**vars(standardise(cohort.read(path), out)), "status": "ok", "reason": None}
        except InputError as error:
            reason = str(error)
        # One record must not stop the run, whatever is wrong with it; the reason names what happened.
        except Exception as error:
            reason = f"unforeseen {type(error).__name__}: {error}"
    out.fill(MISSING)
    judged: dict[str, Any] = dict.fromkeys(QUALITY)
    return {**judged, "valid": 0, "status": "bad", "reason": " ".join(reason.split())[:LONGEST_REASON]}


def _quality(work: Path, n_shards: int) -> dict[str, pd.Series]:
    parts = [json.loads((work / f"{shard:08d}.json").read_text()) for shard in range(n_shards)]
    columns = {name: [value for part in parts for value in part[name]] for name in QUALITY}
    types = {
        "sampling_rate_hz": "float64",
        "nan_fraction": "float64",
        "clipped_fraction": "float64",
        "n_samples": "Int64",
    }
    return {name: pd.Series(values, dtype=types.get(name, object)) for name, values in columns.items()}


# ---- what is told ----------------------------------------------------------------------------------------------------


def _write(records_path: Path, frame: pd.DataFrame, targets: list[Target]) -> None:
    write_records(records_path, frame[[*BASE_COLUMNS, *(t.name for t in targets)]], targets)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["record_id", "patient_id", "path", "reason"])
    bad = frame[frame["status"] == "bad"]
    writer.writerows(zip(bad["record_id"], bad["patient_id"], bad["path"], bad["reason"], strict=True))
    write_text(records_path.with_name("bad_records.csv"), text.getvalue())


def _summary(frame: pd.DataFrame, targets: list[Target], notes: list[str]) -> IngestSummary:
    bad = frame.loc[frame["status"] == "bad", "reason"]
    # What differs from record to record (names, numbers) does not make another kind of reason.
    kinds = Counter(re.sub(r"\S*\d\S*", "*", reason) for reason in bad)
    counts = frame["split"].value_counts()
    return IngestSummary(
        n_records=len(frame),
        n_bad=len(bad),
        n_patients=int(frame["patient_id"].nunique()),
        reasons=dict(sorted(kinds.items(), key=lambda item: (-item[1], item[0]))),
        labels={t.name: int(frame[t.name].notna().sum()) for t in targets},
        splits={name: int(counts.get(name, 0)) for name in ("train", "val", "test")},
        notes=notes,
    )
