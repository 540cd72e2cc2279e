"""Reading and preparing batches in a thread while another one runs the experts on those before."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from stages.predict.answering import Answerer, PreparedBatch
from stages.predict.batches import RecordSource

BATCHES_AHEAD = 2
Key = TypeVar("Key")


def prepared_ahead(
    source: RecordSource, answerer: Answerer, wanted: Iterable[tuple[Key, slice]]
) -> Generator[tuple[Key, PreparedBatch], None, None]:
    """Give the batches of `wanted` (any key, rows) in their order, some read ahead."""
    with ThreadPoolExecutor(1, "read") as reader:
        waiting: deque[tuple[Key, Future[PreparedBatch]]] = deque()
        try:
            for key, rows in wanted:
                waiting.append((key, reader.submit(_prepared, source, answerer, rows)))
                if len(waiting) > BATCHES_AHEAD:
                    ready, batch = waiting.popleft()
                    yield ready, batch.result()
            for ready, batch in waiting:
                yield ready, batch.result()
        finally:
            reader.shutdown(cancel_futures=True)


def _prepared(source: RecordSource, answerer: Answerer, rows: slice) -> PreparedBatch:
    return answerer.prepare(source.read(rows))
