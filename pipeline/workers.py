"""Running `embed` here, in several processes, or on a Dask cluster. Shards are claimed, so workers never meet."""

from __future__ import annotations

import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor

from pipeline.progress import progress
from stages.embed import Embedder, EmbedPaths, EmbedSettings, EmbedSummary


def run_embed(settings: EmbedSettings, paths: EmbedPaths, *, workers: int, scheduler: str | None) -> EmbedSummary:
    """Bring one expert's store up to date."""
    if scheduler is not None:
        from pipeline.cluster import embed_on_cluster

        return embed_on_cluster(settings, paths, scheduler)
    if workers > 1:
        return _in_processes(settings, paths, workers)
    embedder = Embedder(settings, paths)
    with progress(f"embed {settings.expert}") as update:
        return embedder.finish(embedder.run(progress=update))


def _in_processes(settings: EmbedSettings, paths: EmbedPaths, workers: int) -> EmbedSummary:
    embedder = Embedder(settings, paths)
    embedder.prepare_store()
    summary = embedder.plan()
    summary.n_embedded = 0
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_share_cores, initargs=(workers,)) as pool:
        for future in [pool.submit(_work, settings, paths) for _ in range(workers)]:
            summary.add(future.result())
    return embedder.finish(summary)


def _work(settings: EmbedSettings, paths: EmbedPaths) -> EmbedSummary:
    return Embedder(settings, paths).run()


def _share_cores(workers: int) -> None:
    """Share the cores out among the workers, and leave Ctrl-C to the parent."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // workers))
