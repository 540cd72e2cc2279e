"""Stage `ingest`: a data source in, records.parquet, signals.zarr and bad_records.csv out.

Works shard by shard: memory is bounded by a shard, a killed run goes on where it stopped, and several processes give
the same bytes as one. Not here: what a source is (stages/cohorts), how a record is read (stages/readers).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cache.claims import Claims
from cache.errors import MissingFileError, StoreError, UsageError
from cache.files import write_text
from cache.fingerprint import fingerprint, text_digest
from cache.signals import SignalStore, create_signals, open_signals
from cache.upkeep.signal_growth import grow_signals, lengthen_signals
from stages.cohorts import Cohort, open_cohort
from stages.ingest.outputs import IngestSummary, add_quality, summary_of, write_tables
from stages.ingest.record_table import Rows, appended_rows, new_rows
from stages.ingest.shards import Progress, pending_tasks, quality_of_new, run
from stages.readers.recording import SECONDS_KEPT
from stages.readers.rows import RowOptions

VERSION = "5"
"""Raised whenever the same files would give other rows; an interrupted run of another version is not gone on with."""


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
    append: bool = False,
    derive_leads: bool = False,
    pace_spikes: bool = False,
    seconds: float | None = SECONDS_KEPT,
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
    append
        Add the records that the stores do not have behind those they have, which stay as they are, folds included.
    derive_leads
        Compute III, aVR, aVL and aVF from I and II where a file lacks them; the column `derived_leads` names them.
    pace_spikes
        Count pacemaker spikes into the column of that name, which is null otherwise.
    seconds
        What is kept of a record from its beginning; None: all.
    progress
        Called with (records done, records in all).

    Raises
    ------
    UsageError
        Unknown source or option, a limit or number of workers below 1.
    MissingFileError, InputError
        A folder, list or column is missing; with `append`, the list does not go with the table that is there. A bad
        record is no error: it gets a row that says why.
    StoreError
        Another process is writing; with `append`, the stores that are there do not belong together.
    """
    _check_usage(limit, workers)
    cohort = open_cohort(source, path, options)
    if append and not signals_path.exists():
        raise MissingFileError(f"{signals_path} does not exist; run `ensemble ingest` without --append first")
    work = signals_path.with_name(f".{signals_path.name}.ingest")
    entries = cohort.entries()
    with closing(Claims(signals_path, work)) as claims, claims.claim(0) as ours:
        if not ours:
            raise StoreError(f"{signals_path}: another `ensemble ingest` is writing it; wait for it, or stop it")
        rows = (
            appended_rows(entries, source, limit, seed, records_path)
            if append
            else new_rows(entries, source, limit, seed)
        )
        del entries
        row_options = RowOptions(
            derive_leads=derive_leads,
            pace_spikes=pace_spikes,
            seconds=seconds,
            lead_names=cohort.lead_names,
            scale=cohort.options.scale,
        )
        store = _store(signals_path, work, rows, _identity(cohort, rows, row_options))
        run(pending_tasks(cohort, store, rows, work, row_options), work, workers, len(rows.frame), progress)
        lengthen_signals(signals_path)
        add_quality(rows, quality_of_new(work, store, rows.n_kept))
        write_tables(records_path, rows, row_options)
        for left in work.glob("*"):
            if left.is_file():
                left.unlink()
        claims.remove()
    return summary_of(rows)


def _check_usage(limit: int | None, workers: int) -> None:
    for name, value in (("--limit", limit), ("--workers", workers)):
        if value is not None and value < 1:
            raise UsageError(f"{name} is {value}; give a number from 1 up")


def _identity(cohort: Cohort, rows: Rows, row_options: RowOptions) -> str:
    """Say what an interrupted run was reading; only the same is gone on with."""
    ids = text_digest(f"{i}\0{p}" for i, p in zip(rows.frame["record_id"], rows.frame["path"], strict=True))
    content = {
        "version": VERSION,
        "source": cohort.name,
        "folder": str(cohort.folder),
        "options": cohort.options.model_dump(mode="json"),
        "rows": ids,
        "kept": rows.n_kept,
        **asdict(row_options),
    }
    return fingerprint(content)


def _store(path: Path, work: Path, rows: Rows, identity: str) -> SignalStore:
    """Open the store where an interrupted run left it, or make it, or make it grow."""
    told = work / "identity"
    if path.exists() and told.is_file() and told.read_text(encoding="utf-8") == identity:
        return open_signals(path, mode="r+")
    interrupted = told.is_file()
    for left in work.glob("*.json"):
        left.unlink()
    if rows.kept is None:
        told.unlink(missing_ok=True)
        store = create_signals(path, len(rows.frame))
    else:
        write_text(told, "growing")
        store = _grown(path, rows, interrupted)
    write_text(told, identity)
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
