"""Reads a cohort shard by shard into signals.zarr: reading overlaps packing, and several processes may share the work.

A shard counts when its signals and then its quality columns (a file in the work folder) are on the disk; a killed run
goes on with the next one. Not here: which rows there are (table.py).
"""

from __future__ import annotations

import itertools
import json
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cache.errors import InputError
from cache.files import write_text
from cache.signals import LEADS, MISSING, N_SAMPLES, SignalStore, open_signals
from stages.cohorts import Cohort, open_cohort
from stages.ingest.table import Rows
from stages.readers import standardise
from stages.readers.limbs import derive_limb_leads, limb_suspicions

Progress = Callable[[int, int], None]
PROGRESS_EVERY = 32
WRITERS = 2
LONGEST_REASON = 300
QUALITY = {
    "sampling_rate_hz": "float64",
    "n_samples": "Int64",
    "nan_fraction": "float64",
    "flat_leads": "object",
    "missing_leads": "object",
    "clipped_fraction": "float64",
    "status": "object",
    "reason": "object",
    "derived_leads": "object",
    "limb_swap": "object",
}
"""Columns that reading a record gives."""


@dataclass(frozen=True)
class Task:
    """One shard for one process: what to read, and where to; its first `n_kept` rows stay as they are."""

    source: str
    folder: str
    options: str
    signals: Path
    shard: int
    n_kept: int
    paths: tuple[str, ...]
    refused: dict[int, str]
    derive_leads: bool

    @property
    def n_records(self) -> int:
        """Rows of the shard, those that stay included."""
        return self.n_kept + len(self.paths)


def pending_tasks(cohort: Cohort, store: SignalStore, rows: Rows, work: Path, derive_leads: bool) -> list[Task]:
    """Return the shards that are not complete."""
    options = json.dumps(cohort.options.model_dump(mode="json"), sort_keys=True)
    paths, tasks = rows.frame["path"].tolist(), []
    for shard in range(rows.n_kept // store.shard_records, store.n_shards):
        held = store.rows_of(shard)
        first = max(held.start, rows.n_kept)
        if first < held.stop and not _done(store, work, shard):
            refused = {k - first: rows.refused[k] for k in range(first, held.stop) if k in rows.refused}
            place = (cohort.name, str(cohort.folder), options, store.path, shard, first - held.start)
            tasks.append(
                Task(*place, paths=tuple(paths[first : held.stop]), refused=refused, derive_leads=derive_leads)
            )
    return tasks


def _done(store: SignalStore, work: Path, shard: int) -> bool:
    """Whether a shard is complete. One with a bad record is read again: a person may have put it right meanwhile."""
    told = _told(work, shard)
    return told.is_file() and store.written(shard) and "bad" not in json.loads(told.read_text())["status"]


def _told(work: Path, shard: int) -> Path:
    return work / f"{shard:08d}.json"


def quality_of_new(work: Path, store: SignalStore, n_kept: int) -> dict[str, pd.Series]:
    """Return the quality columns of the rows from `n_kept` on, from the work folder."""
    shards = range(n_kept // store.shard_records, store.n_shards) if n_kept < len(store) else ()
    parts = [json.loads(_told(work, shard).read_text()) for shard in shards]
    columns = {name: [value for part in parts for value in part[name]] for name in QUALITY}
    return {name: pd.Series(values, dtype=QUALITY[name]) for name, values in columns.items()}


# ---- running ---------------------------------------------------------------------------------------------------------


def run(tasks: list[Task], work: Path, workers: int, n_records: int, progress: Progress | None) -> None:
    """Do the tasks, here or in `workers` processes; `progress` is called with (records done, records in all)."""
    report = _Report(progress, n_records, n_records - sum(len(t.paths) for t in tasks))
    if workers == 1 or len(tasks) <= 1:
        _run_here(tasks, work, report.add)
        return
    # Spawned, not forked: zarr runs threads, which a fork would break.
    with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=get_context("spawn")) as pool:
        try:
            for task in _in_flight(pool, tasks, work, 2 * workers):
                report.add(len(task.paths))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


class _Report:
    """Counts records for the caller's progress display."""

    def __init__(self, progress: Progress | None, total: int, finished: int) -> None:
        self._progress, self._total, self._finished = progress, total, finished
        self.add(0)

    def add(self, n: int) -> None:
        self._finished += n
        if self._progress is not None:
            self._progress(self._finished, self._total)


def _run_here(tasks: list[Task], work: Path, report: Callable[[int], None]) -> None:
    """Read in this thread while two others pack, digest and write the shards before."""
    if not tasks:
        return
    store = open_signals(tasks[0].signals, mode="r+")
    # Made once for the whole run: asking the system for memory anew costs more than reading into it.
    buffers = [_buffer(max(t.n_records for t in tasks)) for _ in range(min(WRITERS + 1, len(tasks)))]
    writing: deque[Future[None]] = deque()
    with ThreadPoolExecutor(WRITERS) as pool:
        for turn, task in enumerate(tasks):
            read = _read_shard(task, buffers[turn % len(buffers)], report)
            if len(writing) == WRITERS:
                writing.popleft().result()
            writing.append(pool.submit(_write_shard, store, task, read, work))
        for future in writing:
            future.result()


def _in_flight(pool: ProcessPoolExecutor, tasks: list[Task], work: Path, n_ahead: int) -> Iterator[Task]:
    """Give each task when it is done; only `n_ahead` at a time are handed to the pool."""
    running: dict[Future[None], Task] = {}
    waiting = iter(tasks)
    while True:
        for task in itertools.islice(waiting, n_ahead - len(running)):
            running[pool.submit(_read_and_write, task, work)] = task
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            future.result()
            yield running.pop(future)


# ---- one shard -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Read:
    """A shard in memory: what signals.zarr takes, and the quality columns of its new rows."""

    signals_uv: np.ndarray
    valid: np.ndarray
    told: dict[str, list[Any]]


def _buffer(n_records: int) -> np.ndarray:
    return np.empty((n_records, len(LEADS), N_SAMPLES), dtype=np.int16)


def _read_shard(task: Task, buffer: np.ndarray, report: Callable[[int], None] | None = None) -> _Read:
    cohort = _cohort(task.source, task.folder, task.options)
    signals_uv = buffer[: task.n_records]
    valid = np.zeros(task.n_records, dtype=np.int32)
    _copy_kept(task, signals_uv, valid)
    told: dict[str, list[Any]] = {name: [] for name in QUALITY}
    for k, path in enumerate(task.paths):
        row = task.n_kept + k
        judged = _read_record(cohort, path, task.refused.get(k), signals_uv[row])
        if task.derive_leads and judged["missing_leads"]:
            judged["derived_leads"] = derive_limb_leads(signals_uv[row], judged["missing_leads"])
        valid[row] = judged.pop("valid")
        for name in QUALITY:
            told[name].append(judged.get(name))
        if report is not None and (k + 1) % PROGRESS_EVERY == 0:
            report(PROGRESS_EVERY)
    if report is not None:
        report(len(task.paths) % PROGRESS_EVERY)
    return _Read(signals_uv, valid, told)


def _copy_kept(task: Task, signals_uv: np.ndarray, valid: np.ndarray) -> None:
    if task.n_kept:
        store = open_signals(task.signals)
        start = store.rows_of(task.shard).start
        rows = slice(start, start + task.n_kept)
        signals_uv[: task.n_kept], valid[: task.n_kept] = store.read_uv(rows), np.asarray(store.valid[rows])


def _write_shard(store: SignalStore, task: Task, read: _Read, work: Path) -> None:
    read.told["limb_swap"] = limb_suspicions(read.signals_uv[task.n_kept :])
    store.write_shard(task.shard, read.signals_uv, read.valid)
    write_text(_told(work, task.shard), json.dumps(read.told))


def _read_and_write(task: Task, work: Path) -> None:
    store = open_signals(task.signals, mode="r+")
    _write_shard(store, task, _read_shard(task, _buffer(task.n_records)), work)


@lru_cache(maxsize=4)
def _cohort(source: str, folder: str, options: str) -> Cohort:
    return open_cohort(source, folder, json.loads(options))


def _read_record(cohort: Cohort, path: str, refused: str | None, out: np.ndarray) -> dict[str, Any]:
    reason = refused
    if reason is None:
        try:
            judged = vars(standardise(cohort.read(path), out))
            return {**judged, "status": "ok", "reason": None, "derived_leads": ()}
        except InputError as error:
            reason = str(error)
        # One record must not stop the run, whatever is wrong with it; the reason names what happened.
        except Exception as error:
            reason = f"unforeseen {type(error).__name__}: {error}"
    out.fill(MISSING)
    return {**dict.fromkeys(QUALITY), "valid": 0, "status": "bad", "reason": " ".join(reason.split())[:LONGEST_REASON]}
