"""Running `embed` on this machine, in one process or several. Shards are claimed, so workers never meet.

A worker that dies (out of memory, killed) costs its shard in work; the others take it over.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from cache.errors import StoreError
from pipeline.compute.devices import device_of, n_gpus
from pipeline.progress import counting
from stages.embed import Embedder, EmbedPaths, EmbedSettings, EmbedSummary
from stages.settings import usable_cores

_LOG = logging.getLogger(__name__)


def worker_count(wanted: int | str, device: str, threads: int) -> int:
    """Turn `auto` into one process a GPU, or as many as the cores hold on the CPU."""
    if isinstance(wanted, int):
        return wanted
    return n_gpus(device) or max(1, usable_cores() // threads)


def run_embed(settings: EmbedSettings, paths: EmbedPaths, *, workers: int) -> EmbedSummary:
    """Bring one expert's store up to date, on this machine."""
    embedder = Embedder(settings, paths)
    # What only makes the store for others needs no GPU.
    planner = embedder if workers == 1 else Embedder(replace(settings, device="cpu"), paths)
    pending, plan = planner.prepare_store(), planner.plan()
    if workers > 1 and len(pending) > 1:
        summary = _in_processes(planner, settings, plan, min(workers, len(pending)))
    else:
        with counting(f"embed {settings.expert}", plan.n_resumed, plan.n_records) as count:
            summary = embedder.run(progress=count)
    return embedder.finish(summary)


def _in_processes(embedder: Embedder, settings: EmbedSettings, summary: EmbedSummary, workers: int) -> EmbedSummary:
    running = _start(settings, embedder.paths, workers)
    processes = list(running.values())
    summary.n_embedded = 0
    try:
        with counting(f"embed {summary.expert}, {workers} workers", summary.n_resumed, summary.n_records) as count:
            while running:
                for pipe in _ready(running):
                    message = _receive(pipe)
                    if isinstance(message, int):
                        count(message)
                        continue
                    process = running.pop(pipe)
                    process.join()
                    if isinstance(message, BaseException):
                        raise message
                    if message is not None:
                        summary.add(message)
                    else:
                        _LOG.warning("a worker ended with %s; its shard goes to another one", process.exitcode)
    finally:
        for process in processes:
            process.kill()
            process.join()
    _check_all_done(embedder, [process.exitcode for process in processes])
    return summary


def _start(settings: EmbedSettings, paths: EmbedPaths, workers: int) -> dict[Connection, SpawnProcess]:
    context = multiprocessing.get_context("spawn")  # forked processes cannot use CUDA, nor zarr's threads
    running: dict[Connection, SpawnProcess] = {}
    for number in range(workers):
        receiving, sending = context.Pipe(duplex=False)
        placed = replace(settings, device=device_of(settings.device, number))
        process = context.Process(target=_work, args=(sending, placed, paths))
        process.start()
        sending.close()  # so that the worker's end is the only one, and its death ends the pipe
        running[receiving] = process
    return running


def _ready(running: dict[Connection, SpawnProcess]) -> list[Connection]:
    return [pipe for pipe in wait(list(running)) if isinstance(pipe, Connection)]


def _receive(pipe: Connection) -> int | EmbedSummary | BaseException | None:
    """Return a worker's next message; None where it died without a word."""
    try:
        message: int | EmbedSummary | BaseException = pipe.recv()
    except (EOFError, OSError):
        return None
    return message


def _check_all_done(embedder: Embedder, exit_codes: list[int | None]) -> None:
    pending = embedder.prepare_store()
    if pending:
        raise StoreError(
            f"{embedder.paths.store}: every worker died (exit codes {exit_codes}), {len(pending)} shards are left; "
            "run again, with fewer --workers or a smaller --batch-size if memory was short"
        )


def _work(pipe: Connection, settings: EmbedSettings, paths: EmbedPaths) -> None:
    """Embed what is pending, telling each step; leaves Ctrl-C to the parent and ends when it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.getLogger("stages.embed").setLevel(logging.ERROR)  # that it waits for its siblings is no news
    try:
        pipe.send(Embedder(settings, paths).run(progress=pipe.send))
    except Exception as error:  # noqa: BLE001 - the parent raises it: there it becomes one line
        pipe.send(error)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
