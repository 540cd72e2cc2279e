"""Reads a cohort shard by shard into signals.zarr: reading overlaps packing, and several processes may share the work.

A shard counts when its signals and then its quality columns (a file in the work folder) are on the disk; a killed run
goes on with the next one. Not here: which rows there are (table.py).
"""

from __future__ import annotations

import itertools
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pandas as pd

from cache.errors import InputError
from cache.files import write_text
from cache.places import folder_of
from cache.signals import LEADS, MISSING, N_SAMPLES, PackedRows, SignalStore, open_signals
from stages.cohorts import Cohort, open_cohort
from stages.ingest.table import Rows
from stages.readers import Counts, Quality, Recording, standardise_block
from stages.readers.limbs import derive_limb_leads, limb_suspicions
from stages.readers.pacing import count_pace_spikes

Progress = Callable[[int, int], None]
BLOCK_RECORDS = 64
"""Read and packed at once: large enough for array calls, small enough for the processor's cache."""
PACKERS, SHARDS_AHEAD = 2, 2
"""Threads that pack; shards that may wait for the disk."""
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
    "pace_spikes": "Int64",
}
"""Columns that reading a record gives."""


@dataclass(frozen=True)
class Extras:
    """What is done on request only."""

    derive_leads: bool = False
    pace_spikes: bool = False


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
    extras: Extras

    @property
    def n_records(self) -> int:
        """Rows of the shard, those that stay included."""
        return self.n_kept + len(self.paths)


def pending_tasks(cohort: Cohort, store: SignalStore, rows: Rows, work: Path, extras: Extras) -> list[Task]:
    """Return the shards that are not complete."""
    options = json.dumps(cohort.options.model_dump(mode="json"), sort_keys=True)
    paths, tasks = rows.frame["path"].tolist(), []
    for shard in range(rows.n_kept // store.shard_records, store.n_shards):
        held = store.rows_of(shard)
        first = max(held.start, rows.n_kept)
        if first < held.stop and not _done(store, work, shard):
            refused = {k - first: rows.refused[k] for k in range(first, held.stop) if k in rows.refused}
            place = (cohort.name, str(cohort.folder), options, folder_of(store.path), shard, first - held.start)
            tasks.append(Task(*place, paths=tuple(paths[first : held.stop]), refused=refused, extras=extras))
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
    """Read in this thread, while others pack the blocks before and one writes the shards before."""
    if not tasks:
        return
    store = open_signals(tasks[0].signals, mode="r+")
    rows = max(BLOCK_RECORDS // store.chunk_records, 1) * store.chunk_records
    # Made once for the whole run: asking the system for memory anew costs more than reading into it.
    free: SimpleQueue[np.ndarray] = SimpleQueue()
    for _ in range(PACKERS + 2):
        free.put(np.empty((rows, len(LEADS), N_SAMPLES), dtype=np.int16))
    writing: deque[Future[None]] = deque()
    with ThreadPoolExecutor(PACKERS) as packers, ThreadPoolExecutor(1) as writer:
        for task in tasks:
            blocks = [
                (judged, packers.submit(_pack, store, buffer, judged, free, task.extras))
                for buffer, judged in _read_shard(task, rows, free, report)
            ]
            if len(writing) == SHARDS_AHEAD:
                writing.popleft().result()
            writing.append(writer.submit(_write_shard, store, task, blocks, work))
        for future in writing:
            future.result()


def _silent(_: int) -> None:
    """Report nothing: a process of its own has nobody to report to."""


def _in_flight(pool: ProcessPoolExecutor, tasks: list[Task], work: Path, n_ahead: int) -> Iterator[Task]:
    """Give each task when it is done; only `n_ahead` at a time are handed to the pool."""
    running: dict[Future[None], Task] = {}
    waiting = iter(tasks)
    while True:
        for task in itertools.islice(waiting, n_ahead - len(running)):
            running[pool.submit(_run_here, [task], work, _silent)] = task
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            future.result()
            yield running.pop(future)


# ---- one shard -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Judged:
    """What is known of the rows of a block: valid lengths of all, and the quality columns of the new ones."""

    n_kept: int
    valid: np.ndarray
    told: dict[str, list[Any]]


def _read_shard(
    task: Task, n_rows: int, free: SimpleQueue[np.ndarray], report: Callable[[int], None]
) -> Iterator[tuple[np.ndarray, _Judged]]:
    """Read a shard in blocks of `n_rows`, into arrays that are free."""
    cohort = _cohort(task.source, task.folder, task.options)
    kept, valid = _kept(task)
    for start in range(0, task.n_records, n_rows):
        there = kept[start : start + n_rows]
        paths = task.paths[max(start - task.n_kept, 0) : max(start + n_rows - task.n_kept, 0)]
        first = max(start - task.n_kept, 0)
        refused = [task.refused.get(first + k) for k in range(len(paths))]
        buffer = free.get()
        buffer[: len(there)] = there
        told = _read_records(cohort, paths, refused, buffer[len(there) :], derive_leads=task.extras.derive_leads)
        lengths = np.array([*valid[start : start + n_rows], *told.pop("valid")], dtype=np.int32)
        report(len(paths))
        yield buffer, _Judged(len(there), lengths, told)


def _kept(task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Return the signals and valid lengths of the rows that stay."""
    if not task.n_kept:
        return np.empty((0, len(LEADS), N_SAMPLES), dtype=np.int16), np.empty(0, dtype=np.int32)
    store = open_signals(task.signals)
    start = store.rows_of(task.shard).start
    rows = slice(start, start + task.n_kept)
    return store.read_uv(rows), np.asarray(store.valid[rows])


def _pack(
    store: SignalStore, buffer: np.ndarray, judged: _Judged, free: SimpleQueue[np.ndarray], extras: Extras
) -> PackedRows:
    """Pack a block, and judge what is seen in finished rows; then its array is free again."""
    block = buffer[: len(judged.valid)]
    try:
        new = block[judged.n_kept :]
        judged.told["limb_swap"] = limb_suspicions(new)
        if extras.pace_spikes:
            counts = zip(count_pace_spikes(new), judged.told["status"], strict=True)
            judged.told["pace_spikes"] = [n if status == "ok" else None for n, status in counts]
        return store.pack(block)
    finally:
        free.put(buffer)


def _write_shard(store: SignalStore, task: Task, blocks: list[tuple[_Judged, Future[PackedRows]]], work: Path) -> None:
    packed = [packing.result() for _, packing in blocks]
    store.write_packed(task.shard, packed, np.concatenate([judged.valid for judged, _ in blocks]))
    told = {name: [value for judged, _ in blocks for value in judged.told[name]] for name in QUALITY}
    write_text(_told(work, task.shard), json.dumps(told))


@lru_cache(maxsize=4)
def _cohort(source: str, folder: str, options: str) -> Cohort:
    return open_cohort(source, folder, json.loads(options))


def _read_records(
    cohort: Cohort, paths: Sequence[str], refused: Sequence[str | None], out: np.ndarray, *, derive_leads: bool
) -> dict[str, list[Any]]:
    """Read records into the rows of `out`; returns columns: those of quality, and `valid`."""
    failed: dict[int, Exception] = {row: InputError(why) for row, why in enumerate(refused) if why is not None}
    recordings: list[Recording | Counts | None] = [None] * len(paths)
    for row, path in enumerate(paths):
        if row not in failed:
            try:
                recordings[row] = cohort.read(path)
            # One record must not stop the run, whatever is wrong with it; the reason names what happened.
            except Exception as error:
                failed[row] = error
    told: dict[str, list[Any]] = {name: [] for name in (*QUALITY, "valid")}
    for row, judged in enumerate(standardise_block(recordings, out)):
        if isinstance(judged, Quality):
            columns = {**vars(judged), "status": "ok", "derived_leads": ()}
            if derive_leads and judged.missing_leads:
                columns["derived_leads"] = derive_limb_leads(out[row], judged.missing_leads)
        else:
            out[row].fill(MISSING)
            columns = {"status": "bad", "reason": _reason(failed.get(row, judged)), "valid": 0}
        for name, column in told.items():
            column.append(columns.get(name))
    return told


def _reason(error: Exception) -> str:
    text = str(error) if isinstance(error, InputError) else f"unforeseen {type(error).__name__}: {error}"
    return " ".join(text.split())[:LONGEST_REASON]
