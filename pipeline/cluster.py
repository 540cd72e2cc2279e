"""Running `embed` on a Dask cluster: each task one shard, the network loaded once per worker."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from cache.errors import UsageError
from pipeline.progress import counting
from stages.embed import Embedder, EmbedPaths, EmbedSettings, EmbedSummary

if TYPE_CHECKING:
    from distributed import Client

CONNECT_TIMEOUT_S = 10
RETRIES = 3
"""A task whose worker died is tried on another one this often."""

_EMBEDDERS: dict[str, Embedder] = {}
"""The expert that this worker process has loaded."""

_ONE_AT_A_TIME = threading.Lock()
"""A worker of several threads still embeds one shard at a time: claims do not exclude threads from each other."""


def embed_on_cluster(settings: EmbedSettings, paths: EmbedPaths, scheduler: str) -> EmbedSummary:
    """Embed the pending shards as tasks.

    The study's folder must have the same path on every worker. Where workers were started with `--resources GPU=1`,
    each runs one task at a time.
    """
    paths = EmbedPaths(*(path.absolute() for path in (paths.records, paths.signals, paths.store, paths.state)))
    with _connect(scheduler) as client:
        from distributed import as_completed

        embedder = Embedder(settings, paths)
        pending = embedder.prepare_store()
        summary = embedder.plan()
        summary.n_embedded = 0
        resources = {"GPU": 1} if _has_gpus(client) else None
        tasks = client.map(
            _embed_shard, pending, settings=settings, paths=paths, pure=False, retries=RETRIES, resources=resources
        )
        with counting(f"embed {settings.expert} on {scheduler}", summary.n_resumed, summary.n_records) as count:
            for task in as_completed(tasks):
                part = task.result()
                summary.add(part)
                count(part.n_embedded)
    return embedder.finish(summary)


def _connect(scheduler: str) -> Client:
    from distributed import Client

    try:
        return Client(scheduler, timeout=CONNECT_TIMEOUT_S)
    except (OSError, ValueError) as error:
        raise UsageError(f"--scheduler {scheduler}: cannot be reached ({error}); expected tcp://host:port") from error


def _has_gpus(client: Client) -> bool:
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return any("GPU" in worker.get("resources", {}) for worker in workers)


def _embed_shard(shard: int, settings: EmbedSettings, paths: EmbedPaths) -> EmbedSummary:
    key = repr((settings, paths))
    with _ONE_AT_A_TIME:
        if key not in _EMBEDDERS:
            _EMBEDDERS.clear()  # one expert at a time: device memory
            _EMBEDDERS[key] = Embedder(settings, paths)
        return _EMBEDDERS[key].run([shard])
