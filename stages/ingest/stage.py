"""Stage `ingest`: a data source in, records.parquet, signals.zarr and bad_records.csv out.

Works shard by shard: memory is bounded by a shard, a killed run goes on where it stopped, and several processes give
the same bytes as one. Not here: what a source is (stages/cohorts), how a record is read (stages/readers).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from cache.claims import Claims
from cache.errors import MissingFileError, StoreError, UsageError
from cache.files import write_text
from cache.fingerprint import fingerprint, text_digest
from cache.records import open_records
from cache.signals import SignalStore, create_signals, open_signals
from cache.upkeep.signal_growth import grow_signals, lengthen_signals
from stages.cohorts import Cohort, Entries, open_cohort
from stages.ingest.outputs import IngestSummary, add_quality, summary_of, write_tables
from stages.ingest.record_table import Rows, appended_rows, new_rows
from stages.ingest.settings import IngestPaths, IngestSettings
from stages.ingest.shards import IDENTITY, Progress, Task, identity_in, pending_tasks, quality_of_new, work_claims
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

    def read(tasks: list[Task], work: Path, n_records: int, progress: Progress | None) -> None:
        read_shards(tasks, work, n_processes, n_records, progress)

    return run_by(read, settings, paths, progress)


ReadShards = Callable[[list[Task], Path, int, Progress | None], None]
"""Does tasks, whose files of quality go to a work folder, of so many records in all, and tells how far it is."""


def run_by(
    read: ReadShards, settings: IngestSettings, paths: IngestPaths, progress: Progress | None = None
) -> IngestSummary:
    """Do what `run` does, with shards that `read` lets others do: on a cluster by `shards.do_task`."""
    cohort = open_cohort(settings.source, settings.path, settings.options)
    if settings.append and not paths.signals.exists():
        raise MissingFileError(f"{paths.signals} does not exist; run `ensemble ingest` without --append first")
    work = paths.signals.with_name(f".{paths.signals.name}.ingest")
    key = patient_key([paths.records.parent, paths.signals.parent]) if settings.hash_patients else None
    entries = cohort.listed()
    if key is not None:
        hash_patients(entries.frame, key, entries.notes)
    with closing(Claims(paths.signals, work)) as claims, claims.claim(0) as ours:
        if not ours:
            raise StoreError(f"{paths.signals}: another `ensemble ingest` is writing it; wait for it, or stop it")
        rows = _rows(entries, settings, paths)
        del entries
        row_options = _row_options(settings, cohort)
        identity = _identity(cohort, rows, row_options)
        with _owned(paths.signals, work):
            store = _store(paths.signals, work, rows, identity)
        tasks = pending_tasks(cohort, store, rows, work, row_options, identity)
        read(tasks, work, len(rows.frame), progress)
        with _owned(paths.signals, work) as of_workers:
            lengthen_signals(paths.signals)
            add_quality(rows, quality_of_new(work, store, rows.n_kept))
            write_tables(paths.records, rows, row_options)
            for left in work.glob("*"):
                if left.is_file():
                    left.unlink()
            of_workers.remove()
        claims.remove()
    return summary_of(rows, cohort.hint)


@contextmanager
def _owned(signals: Path, work: Path) -> Iterator[Claims]:
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


def _store(path: Path, work: Path, rows: Rows, identity: str) -> SignalStore:
    """Open the store where an interrupted run left it, or make it, or make it grow."""
    identity_file = work / IDENTITY
    if path.exists() and identity_in(work) == identity:
        return open_signals(path, mode="r+")
    interrupted = identity_file.is_file()
    for left in work.glob("*.json"):
        left.unlink()
    if rows.kept is None:
        identity_file.unlink(missing_ok=True)
        store = create_signals(path, len(rows.frame))
    else:
        write_text(identity_file, "growing")
        store = _grown(path, rows, interrupted)
    write_text(identity_file, identity)
    return store


def _grown(path: Path, rows: Rows, interrupted: bool) -> SignalStore:
    held = len(open_signals(path))
    if held < rows.n_kept or (held > rows.n_kept and not interrupted):
        raise StoreError(
            f"{path} holds {held} records, records.parquet {rows.n_kept}: they do not belong together; "
            "ingest without --append"
        )
    return (
        open_signals(path, mode="r+") if held == len(rows.frame) else grow_signals(path, rows.n_kept, len(rows.frame))
    )
