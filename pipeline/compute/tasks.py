"""Work on a Dask cluster: connecting, handing out tasks, and what their ends mean in one line.

A task is one shard or part, claimed by whoever does it; one that failed is tried again, one whose worker died goes to
another. Not here: what a task does (`cluster` for embed, `prediction` for predict).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cache.errors import EnsembleError, UsageError

if TYPE_CHECKING:
    from distributed import Client, Future

CONNECT_TIMEOUT_S = 10
RETRIES = 3
"""A task that failed is tried again this often. One whose worker died goes to another worker; Dask gives that up after
`distributed.scheduler.allowed-failures` deaths (3)."""


@contextmanager
def connected(scheduler: str) -> Iterator[Client]:
    """Give a client of the cluster.

    Raises
    ------
    UsageError
        The scheduler cannot be reached.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise UsageError("--scheduler: Dask is not installed; run pip install 'ecg-ensemble[cluster]'") from error

    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # what it logs is said in one line here
    try:
        client = Client(scheduler, timeout=CONNECT_TIMEOUT_S)
    except (OSError, ValueError) as error:
        raise UsageError(f"--scheduler {scheduler}: cannot be reached ({error}); expected tcp://host:port") from error
    with client:
        yield client


def results(
    client: Client, scheduler: str, function: Callable[..., Any], items: Sequence[Any], unit: str, **given: Any
) -> Iterator[Any]:
    """Give what `function(item, **given)` returns for each item, as they are done.

    Where workers were started with `--resources GPU=1`, each does one task at a time.

    Parameters
    ----------
    unit
        What an item is, for messages.

    Raises
    ------
    EnsembleError
        Several workers died at one task, or the connection was lost.
    Exception
        What a task raised at its last try.
    """
    from distributed import as_completed

    resources = {"GPU": 1} if has_gpus(client) else None
    tasks = client.map(function, items, **given, pure=False, retries=RETRIES, resources=resources)
    for task in as_completed(tasks):
        yield _result(task, scheduler, unit)


def _result(task: Future[Any], scheduler: str, unit: str) -> Any:
    from distributed import CancelledError, KilledWorker

    try:
        return task.result()
    except KilledWorker as error:
        raise EnsembleError(
            f"--scheduler {scheduler}: several workers died at one {unit}; look at their logs (out of memory? then a "
            "smaller --batch-size), and run again"
        ) from error
    except CancelledError as error:
        raise EnsembleError(
            f"--scheduler {scheduler}: the connection was lost; start a cluster, and the same command goes on"
        ) from error


def has_gpus(client: Client) -> bool:
    """Whether some of the workers were started with `--resources GPU=...`."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return any("GPU" in worker.get("resources", {}) for worker in workers)
