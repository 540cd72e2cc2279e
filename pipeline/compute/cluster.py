"""Running `embed` on a Dask cluster: each task one shard, the network loaded once per worker."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

from cache.errors import StoreError
from pipeline.compute.tasks import connected, results
from pipeline.progress import counting
from stages.devices import choose_device
from stages.embed import Embedder, EmbedPaths, EmbedSettings, EmbedSummary

_EMBEDDERS: dict[str, Embedder] = {}
"""The expert that this worker process has loaded."""

_ONE_AT_A_TIME = threading.Lock()
"""A worker of several threads still embeds one shard at a time: claims do not exclude threads from each other."""


def embed_on_cluster(settings: EmbedSettings, paths: EmbedPaths, scheduler: str, device: str) -> EmbedSummary:
    """Embed the pending shards as tasks.

    The study's folder must have the same path on every worker.

    Parameters
    ----------
    device
        auto, cpu, cuda or cuda:i, of each worker. `settings.device` is of this machine, which only makes the store.
    """
    paths = EmbedPaths(
        paths.records.absolute(), paths.signals.absolute(), paths.store.absolute(), paths.state.absolute()
    )
    with connected(scheduler) as client:
        embedder = Embedder(settings, paths)
        pending = embedder.prepare_store()
        summary = embedder.plan()
        summary.n_embedded = 0
        weights = None if settings.weights is None else Path(settings.weights).absolute()
        parts = results(
            client,
            scheduler,
            _embed_shard,
            pending,
            "shard",
            settings=replace(settings, device=device, weights=weights),
            paths=paths,
            fingerprint=embedder.identity.fingerprint,
        )
        with counting(f"embed {settings.expert} on {scheduler}", summary.n_resumed, summary.n_records) as count:
            for part in parts:
                summary.add(part)
                count(part.n_embedded)
    return embedder.finish(summary)


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
