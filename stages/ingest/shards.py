"""Reads a cohort shard by shard into signals.zarr: reading overlaps packing, and several processes may share the work.

A shard counts when its signals and then its quality columns (a file in the work folder) are on the disk; a killed run
goes on with the next one. Not here: which rows there are (record_table.py).
"""

from __future__ import annotations

import itertools
import json
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from queue import SimpleQueue
from typing import Any, overload

import numpy as np

from cache.claims import AnyClaims, claims_on
from cache.errors import StoreError
from cache.signals import LEADS, N_SAMPLES, PackedRows, SignalStore, open_signals
from cache.storage.locations import Location
from cache.storage.objects import ObjectPath
from cache.storage.writing import Guard, store_text
from stages.cohorts import Cohort, open_cohort
from stages.ingest.record_table import Rows
from stages.ingest.row_block import Judged, KeptRows, RowBlock, quality_columns
from stages.readers.rows import RowOptions

Progress = Callable[[int, int], None]
IDENTITY, SHARDS = "identity", "shards"
"""Names in the work folder: what the run reads, and the claims on its shards."""
BLOCKS, SHARDS_AHEAD = 4, 2
"""Blocks that are being read or packed; shards that may wait for the disk."""


@dataclass(frozen=True)
class Task:
    """One shard for one process: what to read, and where to; its first `n_kept` rows stay as they are."""

    source: str
    folder: str
    options: str
    signals: Location
    shard: int
    n_kept: int
    paths: tuple[str, ...]
    refused: dict[int, str]
    row_options: RowOptions
    identity: str = ""
    """Of the run that asked for it, see `work_claims`."""

    @property
    def n_records(self) -> int:
        """Rows of the shard, those that stay included."""
        return self.n_kept + len(self.paths)


class PendingTasks(Sequence[Task]):
    """Shards that are not complete; each is made of its rows of the list when it is asked for.

    Parameters
    ----------
    made
        Shard -> its task.
    """

    def __init__(self, shards: list[int], made: Callable[[int], Task]) -> None:
        self._shards, self._made = shards, made

    def __len__(self) -> int:
        return len(self._shards)

    @overload
    def __getitem__(self, key: int) -> Task: ...

    @overload
    def __getitem__(self, key: slice) -> PendingTasks: ...

    def __getitem__(self, key: int | slice) -> Task | PendingTasks:
        if isinstance(key, slice):
            return PendingTasks(self._shards[key], self._made)
        return self._made(self._shards[key])


def pending_tasks(
    cohort: Cohort, store: SignalStore, rows: Rows, work: Location, row_options: RowOptions, identity: str = ""
) -> PendingTasks:
    """Return the shards that are not complete."""
    left = {file.name for file in left_in(work)}  # asked once: of objects each look is a request
    options = json.dumps(cohort.options.model_dump(mode="json"), sort_keys=True)

    def made(shard: int) -> Task:
        held = store.rows_of(shard)
        first = max(held.start, rows.n_kept)
        refused = {k - first: rows.refused[k] for k in range(first, held.stop) if k in rows.refused}
        place = (cohort.name, str(cohort.folder), options, store.path, shard, first - held.start)
        paths = tuple(cohort.places(rows.frame.iloc[first : held.stop]))
        return Task(*place, paths=paths, refused=refused, row_options=row_options, identity=identity)

    pending = []
    for shard in range(rows.n_kept // store.shard_records, store.n_shards):
        held = store.rows_of(shard)
        seen = _quality_file(work, shard).name in left and _done(store, work, shard)
        if max(held.start, rows.n_kept) < held.stop and not seen:
            pending.append(shard)
    return PendingTasks(pending, made)


def _done(store: SignalStore, work: Location, shard: int) -> bool:
    """Whether a shard is complete. One with a bad record is read again: a person may have put it right meanwhile."""
    return store.written(shard) and "bad" not in json.loads(_quality_file(work, shard).read_bytes())["status"]


def left_in(work: Location) -> list[Location]:
    """Return the files or objects in a work folder, those of claims left out."""
    if isinstance(work, ObjectPath):
        return [work / name for name in work.files()]
    return [file for file in work.glob("*") if file.is_file()]


def _quality_file(work: Location, shard: int) -> Location:
    return work / f"{shard:08d}.json"


def quality_of_new(work: Location, store: SignalStore, n_kept: int) -> Iterator[dict[str, list[Any]]]:
    """Give the quality columns of the rows from `n_kept` on, a shard at a time, from the work folder."""
    for shard in range(n_kept // store.shard_records, store.n_shards) if n_kept < len(store) else ():
        yield json.loads(_quality_file(work, shard).read_bytes())


# ---- running ---------------------------------------------------------------------------------------------------------


def run(tasks: Sequence[Task], work: Location, workers: int, n_records: int, progress: Progress | None) -> None:
    """Do the tasks, here or in `workers` processes; `progress` is called with (records done, records in all)."""
    report = _Report(progress, n_records, n_records - sum(len(t.paths) for t in tasks))
    if workers == 1 or len(tasks) <= 1:
        if isinstance(work, ObjectPath):
            for task in tasks:
                report.add(do_task(task, work))
        else:
            _run_in_process(tasks, work, report.add)
        return
    # Spawned, not forked: zarr runs threads, which a fork would break.
    with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=get_context("spawn")) as pool:
        try:
            for task in _in_flight(pool, tasks, work, 2 * workers):
                report.add(len(task.paths))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def work_claims(signals: Location, work: Location) -> AnyClaims:
    """Return the claims of those who write shards of a store that one run owns, on whatever machines.

    Each of them shares the whole, and claims its shard; the owner acquires the whole before it makes, replaces or ends
    the store, so that no worker that was given up, and is not dead, writes into another run's. They lie in a file of
    their own: a process that closes a file of claims gives back all that it has in it.
    """
    return claims_of(signals.parent / f"{signals.name}.{SHARDS}", work)


def claims_of(store: Location, work: Location) -> AnyClaims:
    """Return the claims on a store: in a folder their files lie in the work folder, objects say themselves where."""
    return claims_on(store, work if isinstance(work, Path) else Path())


def do_task(task: Task, work: Location) -> int:
    """Read one shard on behalf of the run that owns the store, and return how many records were read.

    Raises
    ------
    StoreError
        Another run owns the store by now.
    """
    with closing(work_claims(task.signals, work)) as claims:
        claims.share()
        if (found := identity_in(work)) != task.identity:
            if found is None:
                claims.remove()
            raise StoreError(f"{task.signals}: the `ensemble ingest` that asked for this shard is over; run it again")
        while True:
            with claims.claim(task.shard) as ours:
                if ours:
                    _run_in_process([task], work, _silent, claims.confirm)
                    return len(task.paths)
            time.sleep(claims.pause_s * random.uniform(0.5, 1.5))  # a worker that was given up is still at it


def identity_in(work: Location) -> str | None:
    """Return what the run in a work folder reads; None where there is none."""
    try:
        return (work / IDENTITY).read_bytes().decode()
    except (FileNotFoundError, NotADirectoryError):
        return None


class _Report:
    """Counts records for the caller's progress display."""

    def __init__(self, progress: Progress | None, total: int, finished: int) -> None:
        self._progress, self._total, self._finished = progress, total, finished
        self.add(0)

    def add(self, n: int) -> None:
        self._finished += n
        if self._progress is not None:
            self._progress(self._finished, self._total)


def _run_in_process(
    tasks: Sequence[Task], work: Location, report: Callable[[int], None], guard: Guard | None = None
) -> None:
    """Read in this thread, while one packs the blocks before and one writes the shards before."""
    if not tasks:
        return
    store = open_signals(tasks[0].signals, mode="r+")
    # Made once for the whole run: asking the system for memory anew costs more than reading into it.
    free: SimpleQueue[RowBlock] = SimpleQueue()
    for _ in range(BLOCKS):
        free.put(RowBlock(store.chunk_records, store))
    writing: deque[Future[None]] = deque()
    with ThreadPoolExecutor(1) as packer, ThreadPoolExecutor(1) as writer:
        for task in tasks:
            read = _read_shard(task, store, free, report)
            blocks = [(judged, packer.submit(_pack, block, judged, free)) for block, judged in read]
            if len(writing) == SHARDS_AHEAD:
                writing.popleft().result()
            writing.append(writer.submit(_write_shard, store, task, blocks, work, guard))
        for future in writing:
            future.result()


def _silent(_: int) -> None:
    """Report nothing: a process of its own has nobody to report to."""


def _in_flight(pool: ProcessPoolExecutor, tasks: Sequence[Task], work: Location, n_ahead: int) -> Iterator[Task]:
    """Give each task when it is done; only `n_ahead` at a time are handed to the pool."""
    running: dict[Future[Any], Task] = {}
    waiting = iter(tasks)
    while True:
        for task in itertools.islice(waiting, n_ahead - len(running)):
            if isinstance(work, ObjectPath):
                running[pool.submit(do_task, task, work)] = task
            else:
                running[pool.submit(_run_in_process, [task], work, _silent)] = task
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            future.result()
            yield running.pop(future)


# ---- one shard -------------------------------------------------------------------------------------------------------


def _read_shard(
    task: Task, store: SignalStore, free: SimpleQueue[RowBlock], report: Callable[[int], None]
) -> Iterator[tuple[RowBlock, Judged]]:
    """Read a shard chunk by chunk, into blocks that are free."""
    cohort = _cohort(task.source, task.folder, task.options, task.row_options.seconds)
    kept = _kept(task)
    size = store.chunk_records
    for start in range(0, task.n_records, size):
        first, last = max(start - task.n_kept, 0), max(start + size - task.n_kept, 0)
        paths = task.paths[first:last]
        refused = [task.refused.get(first + k) for k in range(len(paths))]
        stays = KeptRows(*(values[start : start + size] for values in kept))
        block = free.get()
        judged = block.read(cohort, stays, paths, refused, task.row_options)
        report(len(paths))
        yield block, judged


def _kept(task: Task) -> KeptRows:
    """Return the rows that stay."""
    if not task.n_kept:
        return KeptRows(np.empty((0, len(LEADS), N_SAMPLES), dtype=np.int16), np.empty(0, np.int32), np.empty(0))
    store = open_signals(task.signals)
    start = store.rows_of(task.shard).start
    rows = slice(start, start + task.n_kept)
    return KeptRows(store.read_uv(rows), store.valid_of(rows), store.rates_of(rows))


def _pack(block: RowBlock, judged: Judged, free: SimpleQueue[RowBlock]) -> PackedRows:
    try:
        return block.pack(judged)
    finally:
        free.put(block)


def _write_shard(
    store: SignalStore,
    task: Task,
    blocks: list[tuple[Judged, Future[PackedRows]]],
    work: Location,
    guard: Guard | None,
) -> None:
    judged = [block for block, _ in blocks]
    valid, rate_hz = (np.concatenate([block[k] for block in judged]) for k in (0, 1))
    store.write_packed(task.shard, [packing.result() for _, packing in blocks], valid, rate_hz, guard)
    store_text(_quality_file(work, task.shard), json.dumps(quality_columns(judged)), guard)


@lru_cache(maxsize=4)
def _cohort(source: str, folder: str, options: str, seconds: float | None) -> Cohort:
    cohort = open_cohort(source, folder, json.loads(options))
    cohort.seconds = seconds
    return cohort
