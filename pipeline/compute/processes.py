"""Work that several processes of this machine share: they claim what they do, so that they never meet.

A process that dies (out of memory, killed) costs what it had claimed in work; the others take it over. Not here: what
the work is (`workers` for embed, `prediction` for predict).
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

_LOG = logging.getLogger(__name__)

Count = Callable[[int], None]
Work = Callable[[Count], Any]
"""What one process does, picklable: calls its argument with the records of each step, and returns what came of it."""


def share(works: Sequence[Work], count: Count, received: Callable[[Any], None], unit: str) -> list[int | None]:
    """Let each process do its work, and return how the processes ended.

    Parameters
    ----------
    count
        Is called with the records of each step of any of them.
    received
        Is called with what each of them returns.
    unit
        What a dead process leaves to the others, for the message.

    Raises
    ------
    Exception
        What one of them raised; the others are ended.
    """
    running = _start(works)
    processes = list(running.values())
    try:
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
                if message is None:
                    _LOG.warning("a worker ended with %s; its %s goes to another one", process.exitcode, unit)
                else:
                    received(message[0])
    finally:
        for process in processes:
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def _start(works: Sequence[Work]) -> dict[Connection, SpawnProcess]:
    context = multiprocessing.get_context("spawn")  # forked processes cannot use CUDA, nor zarr's threads
    running: dict[Connection, SpawnProcess] = {}
    for work in works:
        receiving, sending = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(sending, work))
        process.start()
        sending.close()  # so that the worker's end is the only one, and its death ends the pipe
        running[receiving] = process
    return running


def _ready(running: dict[Connection, SpawnProcess]) -> list[Connection]:
    return [pipe for pipe in wait(list(running)) if isinstance(pipe, Connection)]


def _receive(pipe: Connection) -> int | tuple[Any] | BaseException | None:
    """Return a worker's next message; None where it died without a word."""
    try:
        message: int | tuple[Any] | BaseException = pipe.recv()
    except (EOFError, OSError):
        return None
    return message


def _work(pipe: Connection, work: Work) -> None:
    """Do it, telling each step; leaves Ctrl-C to the parent and ends when it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.getLogger("stages.embed").setLevel(logging.ERROR)  # that it waits for its siblings is no news
    try:
        pipe.send((work(pipe.send),))
    except Exception as error:  # noqa: BLE001 - the parent raises it: there it becomes one line
        pipe.send(error)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
