"""The line that embeds shards: read and prepare ahead, forward, write behind, in three threads side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cache.claims import Claims
from cache.embeddings import EmbeddingStore, Shard
from cache.errors import InputError, StoreError
from cache.signals import RATE_HZ, SignalStore
from stages.embed.settings import EmbedSettings, EmbedSummary
from stages.experts import Expert
from stages.experts._run import Vectors, run_expert

PREFETCHED_BATCHES = 2
AUTO_BATCH = {"cpu": 16, "cuda": 256}

Progress = Callable[[int], None]
"""Called with the number of records just embedded."""


@dataclass(frozen=True)
class _Batch:
    shard: int
    offset: int
    """First row within the shard."""
    n_rows: int
    good: np.ndarray
    """Positions within the batch that `x` holds."""
    x: Tensor | None


@dataclass
class Line:
    """The three-stage line over the pending shards of one store."""

    expert: Expert
    settings: EmbedSettings
    records: pd.DataFrame
    signals: SignalStore
    store: EmbeddingStore
    claims: Claims
    summary: EmbedSummary
    progress: Progress | None

    def __post_init__(self) -> None:
        self.record_ids = self.records["record_id"].to_numpy()
        self.readable = (self.records["status"] == "ok").to_numpy()
        self.reasons = self.records["reason"].to_numpy()
        self.batch_size = self.settings.batch_size or AUTO_BATCH.get(self.expert.device.type, 16)

    def embed(self, pending: list[int]) -> None:
        """Embed those of the pending shards that no other process has claimed."""
        with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(1, "write") as writer:
            written: list[Future[None]] = []
            with ExitStack() as held:
                for shard, batches in self._claimed(pending, reader, held):
                    written.append(writer.submit(self._write, shard, self._compute(shard, batches)))
                    if len(written) > 1:  # at most one shard waits to be written: memory stays bounded
                        written.pop(0).result()
                for future in written:
                    future.result()

    def _claimed(
        self, pending: list[int], reader: ThreadPoolExecutor, held: ExitStack
    ) -> Iterator[tuple[int, Iterator[_Batch]]]:
        """Give each shard that is ours with its batches, read ahead; claims are kept until everything is written."""
        for shard in pending:
            ours = held.enter_context(self.claims.claim(shard))
            if ours and not self.store.complete(shard):
                yield shard, self._read_ahead(shard, reader)

    def _read_ahead(self, shard: int, reader: ThreadPoolExecutor) -> Iterator[_Batch]:
        rows = self.store.rows_of(shard)
        starts = list(range(0, size_of(rows), self.batch_size))
        waiting: list[Future[_Batch]] = []
        for start in starts:
            waiting.append(reader.submit(self._read, shard, start, min(self.batch_size, size_of(rows) - start)))
            if len(waiting) > PREFETCHED_BATCHES:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()

    def _read(self, shard: int, offset: int, n_rows: int) -> _Batch:
        started = time.perf_counter()
        first = self.store.rows_of(shard).start + offset
        rows = slice(first, first + n_rows)
        good = np.flatnonzero(self.readable[rows])
        for row in range(first, first + n_rows):
            if not self.readable[row]:
                self.summary.bad[self.record_ids[row]] = str(self.reasons[row])
        good, x = self._prepare(self.signals.read_mv(rows), good, first)
        self.summary.seconds["read"] += time.perf_counter() - started
        return _Batch(shard, offset, n_rows, good, x)

    def _prepare(self, signals_mv: np.ndarray, good: np.ndarray, first: int) -> tuple[np.ndarray, Tensor | None]:
        if not len(good):
            return good, None
        try:
            return good, self.expert.prepare(signals_mv[good], RATE_HZ)
        except (ValueError, ArithmeticError, IndexError):
            kept, parts = [], []
            for position in good:  # one record spoilt the batch: find it, keep the others
                try:
                    parts.append(self.expert.prepare(signals_mv[position : position + 1], RATE_HZ))
                    kept.append(position)
                except (ValueError, ArithmeticError, IndexError) as error:
                    self.summary.bad[self.record_ids[first + position]] = str(error).splitlines()[0]
            return np.array(kept, dtype=np.int64), torch.cat(parts) if parts else None

    def _compute(self, shard: int, batches: Iterator[_Batch]) -> Shard:
        n = size_of(self.store.rows_of(shard))
        content = _empty(self.store, n)
        for batch in batches:
            started = time.perf_counter()
            if batch.x is not None:
                self._place(content, batch, self._encode(batch.x))
            self.summary.seconds["compute"] += time.perf_counter() - started
            self.summary.n_embedded += batch.n_rows
            if self.progress:
                self.progress(batch.n_rows)
        return content

    def _encode(self, x: Tensor) -> Vectors:
        precision = self.settings.precision
        step = min(self.batch_size, len(x))
        while True:
            try:
                return _joined([run_expert(self.expert, x[i : i + step], precision) for i in range(0, len(x), step)])
            except torch.OutOfMemoryError as error:
                if self.settings.batch_size is not None or step == 1:
                    raise InputError(
                        f"expert '{self.settings.expert}': device memory is full at batch size {step}; "
                        "use a smaller --batch-size or --precision bf16"
                    ) from error
                torch.cuda.empty_cache()
                step = max(1, step // 2)

    def _place(self, content: Shard, batch: _Batch, vectors: Vectors) -> None:
        first = self.store.rows_of(batch.shard).start + batch.offset
        failed = vectors.failed(self.expert.spec.nan_features)
        for position in batch.good[failed]:
            self.summary.bad.setdefault(self.record_ids[first + position], "the expert gave no finite vector")
        at = batch.offset + batch.good[~failed]
        content.layers[at] = vectors.layers[~failed]
        content.embedding[at] = vectors.embedding[~failed]
        if content.output is not None and vectors.output is not None:
            content.output[at] = vectors.output[~failed]

    def _write(self, shard: int, content: Shard) -> None:
        started = time.perf_counter()
        try:
            self.store.write(shard, content)
        except OSError as error:
            raise StoreError(
                f"{self.store.path}: cannot write shard {shard} ({error.strerror}); make room and run again"
            ) from error
        self.summary.seconds["write"] += time.perf_counter() - started


def _empty(store: EmbeddingStore, n: int) -> Shard:
    def nan(shape: tuple[int, ...]) -> np.ndarray:
        return np.full((n, *shape[1:]), np.nan, dtype=np.float32)

    return Shard(nan(store.layers.shape), nan(store.embedding.shape), nan(store.output.shape) if store.output else None)


def _joined(parts: list[Vectors]) -> Vectors:
    if len(parts) == 1:
        return parts[0]
    outputs = [p.output for p in parts if p.output is not None]
    return Vectors(
        np.concatenate([p.layers for p in parts]),
        np.concatenate([p.embedding for p in parts]),
        np.concatenate(outputs) if outputs else None,
    )


def size_of(rows: slice) -> int:
    """Return how many rows a slice of known ends holds."""
    return int(rows.stop - rows.start)
