"""Running `embed` here, in several processes, or on a Dask cluster. Shards are claimed, so workers never meet."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing.queues import SimpleQueue

from pipeline.progress import progress
from stages.embed import Embedder, EmbedPaths, EmbedSettings, EmbedSummary

REPORT_EVERY_S = 0.2
_MESSAGES: list[SimpleQueue[int]] = []
"""In a worker process: where it reports records just embedded."""


def worker_count(wanted: int | str, device: str, threads: int) -> int:
    """Turn `auto` into one process a GPU, or as many as the cores hold on the CPU."""
    if isinstance(wanted, int):
        return wanted
    return 1 if device.startswith("cuda") else max(1, len(os.sched_getaffinity(0)) // threads)


def run_embed(settings: EmbedSettings, paths: EmbedPaths, *, workers: int, scheduler: str | None) -> EmbedSummary:
    """Bring one expert's store up to date."""
    if scheduler is not None:
        from pipeline.cluster import embed_on_cluster

        return embed_on_cluster(settings, paths, scheduler)
    embedder = Embedder(settings, paths)
    pending = embedder.prepare_store()
    plan = embedder.plan()
    if workers > 1 and len(pending) > 1:
        summary = _in_processes(embedder, plan, min(workers, len(pending)))
    else:
        with counting(f"embed {settings.expert}", plan) as count:
            summary = embedder.run(progress=count)
    return embedder.finish(summary)


@contextmanager
def counting(title: str, plan: EmbedSummary) -> Iterator[Callable[[int], None]]:
    """Show progress over all records, given how many are there already; called with each step."""
    done = plan.n_resumed
    with progress(title) as update:

        def count(records: int) -> None:
            nonlocal done
            done += records
            update(done, plan.n_records)

        yield count


def _in_processes(embedder: Embedder, summary: EmbedSummary, workers: int) -> EmbedSummary:
    context = multiprocessing.get_context("spawn")
    messages: SimpleQueue[int] = context.SimpleQueue()
    with (
        counting(f"embed {summary.expert}, {workers} workers", summary) as count,
        ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(messages,)) as pool,
    ):
        summary.n_embedded = 0
        running = {pool.submit(_work, embedder.settings, embedder.paths) for _ in range(workers)}
        while running:
            finished, running = wait(running, timeout=REPORT_EVERY_S, return_when=FIRST_COMPLETED)
            while not messages.empty():
                count(messages.get())
            for future in finished:
                summary.add(future.result())
    return summary


def _start_worker(messages: SimpleQueue[int]) -> None:
    """Leave Ctrl-C to the parent, end when it ends (however that is), and remember where to report."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _MESSAGES.append(messages)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(settings: EmbedSettings, paths: EmbedPaths) -> EmbedSummary:
    return Embedder(settings, paths).run(progress=_MESSAGES[0].put)
