"""Running `ingest` on a Dask cluster: the machine that asks owns the stores, each task reads and writes one shard."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cache.storage.locations import Location
from pipeline.compute.tasks import connected, results
from stages.ingest import IngestPaths, IngestSettings, IngestSummary
from stages.ingest.shards import Progress, Task, do_task
from stages.ingest.stage import run_by

if TYPE_CHECKING:
    from distributed import Client

_ONE_AT_A_TIME = threading.Lock()
"""A worker of several threads still reads one shard at a time: claims do not exclude threads from each other."""


def ingest_on_cluster(
    settings: IngestSettings, paths: IngestPaths, scheduler: str, progress: Progress | None = None
) -> IngestSummary:
    """Read a cohort into the stores by tasks of a shard each.

    The cohort's folder must have the same path on every worker; so must that of the signals, with record locks, where
    they do not go to object storage.
    """
    settings = settings.model_copy(update={"path": str(Path(settings.path).absolute())})
    paths = replace(paths, records=paths.records.absolute(), signals=paths.signals.absolute())
    with connected(scheduler) as client:
        return run_by(partial(_read_on_cluster, client, scheduler), settings, paths, progress)


def _read_on_cluster(
    client: Client, scheduler: str, tasks: Sequence[Task], work: Location, n_records: int, progress: Progress | None
) -> None:
    done = n_records - sum(len(task.paths) for task in tasks)
    if progress is not None:
        progress(done, n_records)
    for n in results(client, scheduler, _read_shard, tasks, "shard", work=work):
        done += n
        if progress is not None:
            progress(done, n_records)


def _read_shard(task: Task, work: Location) -> int:
    with _ONE_AT_A_TIME:
        return do_task(task, work)
