"""Stage `ingest`: a data source in, records.parquet, signals.zarr and bad_records.csv out.

Works shard by shard: memory is bounded by a shard, a killed run goes on where it stopped, and several processes give
the same bytes as one. Not here: what a source is (stages/cohorts), how a record is read (stages/readers).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from cache.claims import AnyClaims
from cache.errors import MissingFileError, StoreError, UsageError
from cache.fingerprint import fingerprint, text_digest
from cache.records import open_records
from cache.signals import SignalStore, create_signals, open_signals
from cache.storage.locations import Location, require_writable, store_exists
from cache.storage.writing import Guard, store_text
from cache.upkeep.signal_growth import grow_signals, lengthen_signals
from cache.zarr_io.groups import recover_group
from stages.cohorts import Cohort, Entries, open_cohort
from stages.ingest.outputs import IngestSummary, write_tables
from stages.ingest.record_table import Rows, appended_rows, new_rows
from stages.ingest.settings import IngestPaths, IngestSettings
from stages.ingest.shards import (
    IDENTITY,
    Progress,
    Task,
    claims_of,
    identity_in,
    left_in,
    pending_tasks,
    quality_of_new,
    work_claims,
)
from stages.ingest.shards import run as read_shards
from stages.readers.files.patients import check_alike, hash_patients, patient_key
from stages.readers.rows import RowOptions
from stages.settings import Machine, usable_cores

VERSION = "5"
"""Raised whenever the same files would give other rows; an interrupted run of another version is not gone on with."""


def run(
    settings: IngestSettings,
    paths: IngestPaths,
    progress: Progress | None = None,
    *,
    machine: Machine = Machine(),  # noqa: B008 - frozen
) -> IngestSummary:
    """Read a cohort into the stores. The same input gives the same bytes, whatever the machine's `workers`.

    Parameters
    ----------
    progress
        Called with (records done, records in all).

    Raises
    ------
    UsageError
        Unknown source or option.
    MissingFileError, InputError
        A folder, list or column is missing; with `append`, the list does not go with the table that is there. A bad
        record is no error: it gets a row that says why.
    StoreError
        Another process is writing; with `append`, the stores that are there do not belong together.
    """
    n_processes = reading_processes(machine)

    def read(tasks: Sequence[Task], work: Location, n_records: int, progress: Progress | None) -> None:
        read_shards(tasks, work, n_processes, n_records, progress)

    return run_by(read, settings, paths, progress)


ReadShards = Callable[[Sequence[Task], Location, int, Progress | None], None]
"""Does tasks, whose files of quality go to a work folder, of so many records in all, and tells how far it is."""


def run_by(
    read: ReadShards, settings: IngestSettings, paths: IngestPaths, progress: Progress | None = None
) -> IngestSummary:
    """Do what `run` does, with shards that `read` lets others do: on a cluster by `shards.do_task`."""
    require_writable(paths.records, paths.signals)
    cohort = open_cohort(settings.source, settings.path, settings.options)
    if settings.append and not store_exists(paths.signals):
        raise MissingFileError(f"{paths.signals} does not exist; run `ensemble ingest` without --append first")
    work = paths.signals.parent / f".{paths.signals.name}.ingest"
    folders = [place.parent for place in (paths.records, paths.signals) if isinstance(place, Path)]
    key = patient_key(folders) if settings.hash_patients else None
    entries = cohort.listed()
    if key is not None:
        hash_patients(entries.frame, key, entries.notes)
    with closing(claims_of(paths.signals, work)) as claims, _this_ingest(claims, paths.signals):
        rows = _rows(entries, settings, paths)
        del entries
        row_options = _row_options(settings, cohort)
        identity = _identity(cohort, rows, row_options)
        with _owned(paths.signals, work) as of_workers:
            store = _store(paths.signals, work, rows, identity, of_workers.confirm)
        tasks = pending_tasks(cohort, store, rows, work, row_options, identity)
        read(tasks, work, len(rows.frame), progress)
        with _owned(paths.signals, work) as of_workers:
            claims.confirm()
            lengthen_signals(paths.signals, of_workers.confirm)
            new = quality_of_new(work, store, rows.n_kept)
            summary = write_tables(paths.records, rows, new, row_options, cohort.hint, of_workers.confirm)
            for left in left_in(work):
                left.unlink()
            of_workers.remove()
        claims.remove()
    return summary


@contextmanager
def _this_ingest(claims: AnyClaims, signals: Location) -> Iterator[None]:
    """Be the one ingest into a store."""
    claims.share()  # a lease on a shard is worth what the session of its holder is
    with claims.claim(0) as ours:
        if not ours:
            raise StoreError(f"{signals}: another `ensemble ingest` is writing it; wait for it, or stop it")
        yield


@contextmanager
def _owned(signals: Location, work: Location) -> Iterator[AnyClaims]:
    """Have the store alone: workers of a run that was killed may still be at a shard of it."""
    with closing(work_claims(signals, work)) as claims:
        while not claims.try_acquire():
            time.sleep(claims.pause_s)
        yield claims


def _rows(entries: Entries, settings: IngestSettings, paths: IngestPaths) -> Rows:
    if settings.append:
        kept = open_records(paths.records, columns=["patient_id"])["patient_id"].astype(str).tolist()
        check_alike(kept, paths.records, hashing=settings.hash_patients)
        return appended_rows(entries, settings.source, settings.limit, settings.seed, paths.records)
    return new_rows(entries, settings.source, settings.limit, settings.seed)


def _row_options(settings: IngestSettings, cohort: Cohort) -> RowOptions:
    if settings.derive_leads and cohort.amplitude != "mV":
        raise UsageError(
            f"cohort.derive_leads: the signals of {cohort.name} are {cohort.amplitude}s, each lead of a scale of its "
            "own: no lead follows from others; leave it out"
        )
    return RowOptions(
        derive_leads=settings.derive_leads,
        pace_spikes=settings.pace_spikes,
        seconds=None if settings.seconds == "all" else settings.seconds,
        lead_names=cohort.lead_names,
        scale=cohort.options.scale,
        amplitude=cohort.amplitude,
    )


def reading_processes(machine: Machine) -> int:
    """Return how many processes read: as many as the machine says, or as there are cores."""
    return usable_cores() if machine.workers == "auto" else machine.workers


def _identity(cohort: Cohort, rows: Rows, row_options: RowOptions) -> str:
    """Say what an interrupted run was reading; only the same is gone on with."""
    ids = text_digest(f"{i}\0{p}" for i, p in zip(rows.frame["record_id"], rows.frame["path"], strict=True))
    content = {
        "version": VERSION,
        "source": cohort.name,
        "folder": str(Path(cohort.folder).absolute()),
        "options": cohort.options.model_dump(mode="json"),
        "rows": ids,
        "kept": rows.n_kept,
        **row_options.to_json(),
    }
    return fingerprint(content)


def _store(path: Location, work: Location, rows: Rows, identity: str, guard: Guard) -> SignalStore:
    """Open the store where an interrupted run left it, or make it, or make it grow."""
    recover_group(path, guard)
    found = identity_in(work)
    if found == identity and store_exists(path):
        return open_signals(path, mode="r+")
    for left in left_in(work):
        if left.name.endswith(".json"):
            left.unlink()
    identity_file = work / IDENTITY
    if rows.kept is None:
        identity_file.unlink(missing_ok=True)
        store = create_signals(path, len(rows.frame), guard=guard)
    else:
        store_text(identity_file, "growing", guard)
        store = _grown(path, rows, interrupted=found is not None, guard=guard)
    store_text(identity_file, identity, guard)
    return store


def _grown(path: Location, rows: Rows, *, interrupted: bool, guard: Guard) -> SignalStore:
    held = len(open_signals(path))
    if held < rows.n_kept or (held > rows.n_kept and not interrupted):
        raise StoreError(
            f"{path} holds {held} records, records.parquet {rows.n_kept}: they do not belong together; "
            "ingest without --append"
        )
    if held == len(rows.frame):
        return open_signals(path, mode="r+")
    return grow_signals(path, rows.n_kept, len(rows.frame), guard)
