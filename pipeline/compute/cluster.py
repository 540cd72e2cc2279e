"""Running `embed` on a Dask cluster: each task one shard, the network loaded once per worker."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache.errors import EnsembleError, StoreError, UsageError
from pipeline.progress import counting
from stages.devices import choose_device
from stages.embed import Embedder, EmbedPaths, EmbedSettings, EmbedSummary

if TYPE_CHECKING:
    from distributed import Client, Future

CONNECT_TIMEOUT_S = 10
RETRIES = 3
"""A task that failed is tried again this often. One whose worker died goes to another worker; Dask gives that up after
`distributed.scheduler.allowed-failures` deaths (3)."""

_EMBEDDERS: dict[str, Embedder] = {}
"""The expert that this worker process has loaded."""

_ONE_AT_A_TIME = threading.Lock()
"""A worker of several threads still embeds one shard at a time: claims do not exclude threads from each other."""


def embed_on_cluster(settings: EmbedSettings, paths: EmbedPaths, scheduler: str, device: str) -> EmbedSummary:
    """Embed the pending shards as tasks.

    The study's folder must have the same path on every worker. Where workers were started with `--resources GPU=1`,
    each runs one task at a time.

    Parameters
    ----------
    device
        auto, cpu, cuda or cuda:i, of each worker. `settings.device` is of this machine, which only makes the store.
    """
    paths = EmbedPaths(
        paths.records.absolute(), paths.signals.absolute(), paths.store.absolute(), paths.state.absolute()
    )
    with _connect(scheduler) as client:
        from distributed import as_completed

        embedder = Embedder(settings, paths)
        pending = embedder.prepare_store()
        summary = embedder.plan()
        summary.n_embedded = 0
        weights = None if settings.weights is None else Path(settings.weights).absolute()
        tasks = client.map(
            _embed_shard,
            pending,
            settings=replace(settings, device=device, weights=weights),
            paths=paths,
            fingerprint=embedder.identity.fingerprint,
            pure=False,
            retries=RETRIES,
            resources={"GPU": 1} if _has_gpus(client) else None,
        )
        with counting(f"embed {settings.expert} on {scheduler}", summary.n_resumed, summary.n_records) as count:
            for task in as_completed(tasks):
                part = _result(task, scheduler)
                summary.add(part)
                count(part.n_embedded)
    return embedder.finish(summary)


def _result(task: Future[Any], scheduler: str) -> EmbedSummary:
    from distributed import CancelledError, KilledWorker

    try:
        summary: EmbedSummary = task.result()
    except KilledWorker as error:
        raise EnsembleError(
            f"--scheduler {scheduler}: several workers died at one shard; look at their logs (out of memory? then a "
            "smaller --batch-size), and run again"
        ) from error
    except CancelledError as error:
        raise EnsembleError(
            f"--scheduler {scheduler}: the connection was lost; start a cluster, and the same command goes on"
        ) from error
    return summary


def _connect(scheduler: str) -> Client:
    try:
        from distributed import Client
    except ImportError as error:
        raise UsageError("--scheduler: Dask is not installed; run pip install 'ecg-ensemble[cluster]'") from error

    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # what it logs is said in one line here
    try:
        return Client(scheduler, timeout=CONNECT_TIMEOUT_S)
    except (OSError, ValueError) as error:
        raise UsageError(f"--scheduler {scheduler}: cannot be reached ({error}); expected tcp://host:port") from error


def _has_gpus(client: Client) -> bool:
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return any("GPU" in worker.get("resources", {}) for worker in workers)


def _embed_shard(shard: int, settings: EmbedSettings, paths: EmbedPaths, fingerprint: str) -> EmbedSummary:
    with _ONE_AT_A_TIME:
        return _embedder(settings, paths, fingerprint).run([shard])


def _embedder(settings: EmbedSettings, paths: EmbedPaths, fingerprint: str) -> Embedder:
    """Return this worker's expert, loaded anew where the weights or the records are no longer those of the last run."""
    key = repr((settings, paths, fingerprint))
    if key not in _EMBEDDERS:
        _EMBEDDERS.clear()  # one expert at a time: device memory
        embedder = Embedder(replace(settings, device=choose_device(settings.device)), paths)
        if embedder.identity.fingerprint != fingerprint:
            raise StoreError(
                f"{paths.store}: a worker finds other weights, records or another version of this program than here; "
                "give all machines the same, and run again"
            )
        _EMBEDDERS[key] = embedder
    return _EMBEDDERS[key]
