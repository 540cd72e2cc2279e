"""The line that embeds shards: read and prepare ahead, forward, collect and write, in three threads side by side.

The network never sees a record of the next shard before the last one is on the disk: a worker that is killed has at
most one shard of work to repeat. What is read and prepared meanwhile lets it go on at once.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from cache.claims import AnyClaims
from cache.embeddings import EmbeddingStore
from cache.errors import StoreError
from cache.record_rows import RecordRows
from cache.signals import SignalStore
from stages.embed.buffer import ShardBuffer
from stages.embed.settings import EmbedSettings, EmbedSummary
from stages.experts import Expert
from stages.experts.faults import SAME_FAULTS, Faults
from stages.experts.run import (
    GPU_BATCH,
    NOT_FINITE,
    Prepared,
    SignalGroup,
    Vectors,
    prepare_group,
    run_expert,
)

MISSES = 16
"""Shards in a row that others have, on object storage: then the list is too old, and a new one is asked for."""
PREFETCHED_BATCHES = 2
SHARDS_AT_ONCE = 2
"""The shard that is computed, and the next one, of which the first batches are prepared."""
AUTO_BATCH = {"cpu": 16, "cuda": GPU_BATCH}
"""Records read and prepared together."""

Progress = Callable[[int], None]
"""Called with the number of records just embedded."""


@dataclass(frozen=True)
class _Part:
    """One batch's rows of a shard."""

    shard: int
    offset: int
    """First row within the shard."""
    n_rows: int
    last: bool
    """Whether it ends the shard."""


@dataclass(frozen=True)
class _Batch:
    part: _Part
    prepared: list[Prepared]
    """Model inputs, by the records' rate and length."""
    record_ids: list[str]
    reasons: dict[int, str]
    """Position within the batch -> why the record has no vector."""


class _Held:
    """The claims on shards that are not written yet; what is left of them is given back at the end."""

    def __init__(self, claims: AnyClaims) -> None:
        self._claims, self._held = claims, dict[int, ExitStack]()

    def __enter__(self) -> _Held:
        return self

    def __exit__(self, *_: object) -> None:
        for shard in list(self._held):
            self.give_back(shard)

    def take(self, shard: int) -> bool:
        """Claim a shard; whether it is ours."""
        claim = ExitStack()
        if not claim.enter_context(self._claims.claim(shard)):
            return False
        self._held[shard] = claim
        return True

    def give_back(self, shard: int) -> None:
        """Let others have it."""
        self._held.pop(shard).close()


@dataclass
class Line:
    """The three-stage line over the pending shards of one store."""

    expert: Expert
    settings: EmbedSettings
    records: RecordRows
    signals: SignalStore
    store: EmbeddingStore
    claims: AnyClaims
    summary: EmbedSummary
    progress: Progress | None

    def __post_init__(self) -> None:
        self.batch_size = self.settings.batch_size or AUTO_BATCH.get(self.expert.device.type, 16)
        self.buffer = ShardBuffer(self.store)
        self.faults = Faults(self.settings.expert, min(SAME_FAULTS, len(self.store)))

    def embed(self, pending: list[int]) -> None:
        """Embed those of the pending shards that no other process has claimed."""
        with (
            _Held(self.claims) as held,
            ThreadPoolExecutor(1, "read") as reader,
            ThreadPoolExecutor(1, "write") as writer,
        ):
            collected: Future[None] | None = None
            for batch in self._read_ahead(self._parts(pending, held), reader):
                vectors = self._compute(batch)
                if collected is not None:
                    collected.result()  # at most one batch waits to be collected
                collected = writer.submit(self._collect, batch, vectors)
                if batch.part.last:
                    collected.result()
                    writer.submit(self._write, batch.part.shard).result()
                    held.give_back(batch.part.shard)
                    collected = None

    def _parts(self, pending: list[int], held: _Held) -> Iterator[_Part]:
        """Give the batches of each shard that is ours; claims it when its first batch is asked for."""
        misses = 0
        for shard in pending:
            if not self._ours(shard, held):
                misses += 1
                if misses == MISSES and self.claims.apart:
                    return
                continue
            misses = 0
            n = size_of(self.store.rows_of(shard))
            for offset in range(0, n, self.batch_size):
                n_rows = min(self.batch_size, n - offset)
                yield _Part(shard, offset, n_rows, offset + n_rows == n)

    def _ours(self, shard: int, held: _Held) -> bool:
        """Claim a shard, unless others have it or have written it."""
        if self.store.complete(shard) or not held.take(shard):
            return False
        if self.store.complete(shard):  # meanwhile, by whoever had claimed it
            held.give_back(shard)
            return False
        return True

    def _read_ahead(self, parts: Iterator[_Part], reader: ThreadPoolExecutor) -> Iterator[_Batch]:
        waiting: deque[tuple[_Part, Future[_Batch]]] = deque()
        for part in parts:
            waiting.append((part, reader.submit(self._read, part)))
            while waiting and _enough([p for p, _ in waiting]):
                yield waiting.popleft()[1].result()
        for _, batch in waiting:
            yield batch.result()

    def _read(self, part: _Part) -> _Batch:
        started = time.perf_counter()
        first = self.store.rows_of(part.shard).start + part.offset
        rows = slice(first, first + part.n_rows)
        records = self.records.read(rows)
        readable = np.array([not row.unreadable for row in records])
        reasons = {k: row.unreadable for k, row in enumerate(records) if row.unreadable}
        names, prepared = [row.record_id for row in records], []
        for group in self.signals.read_groups(rows, readable):
            found = prepare_group(self.expert, SignalGroup(*group), self.faults, names, reasons)
            prepared += [] if found is None else [found]
        self.summary.seconds["read"] += time.perf_counter() - started
        return _Batch(part, prepared, names, reasons)

    def _compute(self, batch: _Batch) -> list[Vectors]:
        started = time.perf_counter()
        views = tuple(self.store.views)
        vectors = [
            run_expert(self.expert, one.x, self.settings.batch_size, views, one.record_s) for one in batch.prepared
        ]
        self.summary.seconds["compute"] += time.perf_counter() - started
        self.summary.n_embedded += batch.part.n_rows
        if self.progress:
            self.progress(batch.part.n_rows)
        return vectors

    def _collect(self, batch: _Batch, vectors: list[Vectors]) -> None:
        """Put a batch's vectors into the shard's buffer; those that are not finite stay missing."""
        started = time.perf_counter()
        parts = []
        for prepared, found in zip(batch.prepared, vectors, strict=True):
            failed = found.failed(self.expert.spec.nan_features)
            batch.reasons.update(dict.fromkeys(prepared.positions[failed].tolist(), NOT_FINITE))
            parts.append((prepared.positions, ~failed, found))
        self.buffer.put(batch.part.offset, batch.part.n_rows, parts)
        self.summary.bad.update({batch.record_ids[k]: reason for k, reason in batch.reasons.items()})
        self.summary.seconds["write"] += time.perf_counter() - started

    def _write(self, shard: int) -> None:
        started = time.perf_counter()
        try:
            content = self.buffer.content(size_of(self.store.rows_of(shard)))
            self.store.write(shard, content, self.claims.confirm)
        except OSError as error:
            raise StoreError(
                f"{self.store.path}: cannot write shard {shard} ({error.strerror}); make room and run again"
            ) from error
        self.summary.seconds["write"] += time.perf_counter() - started


def _enough(waiting: list[_Part]) -> bool:
    """Whether enough is read ahead: some batches, and no shard too many that others could take."""
    opened = len({part.shard for part in waiting}) + waiting[-1].last  # the next part would open a shard
    return len(waiting) > PREFETCHED_BATCHES or opened > SHARDS_AT_ONCE


def size_of(rows: slice) -> int:
    """Return how many rows a slice of known ends holds."""
    return int(rows.stop - rows.start)
