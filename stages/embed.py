"""Stage `embed`: run one frozen expert over every record once, and write its vectors shard by shard.

Reading and preparing, the forward pass, and writing run in three threads side by side. A run that was killed goes on
where it stopped; one that was made from something else starts afresh.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cache.claims import Claims
from cache.embeddings import EmbeddingStore, Identity, Layout, Shard, open_embeddings, resume_or_create
from cache.errors import EnsembleError, InputError, StoreError
from cache.records import open_records, records_digest
from cache.signals import RATE_HZ, SignalStore, open_signals
from stages.experts import Expert, expert_class, load_expert
from stages.experts._base import Precision
from stages.experts._run import Vectors, run_expert, set_precision
from stages.experts._weights import find_weights, sha256_of

PREFETCHED_BATCHES = 2
WAIT_S = 0.5
"""Pause before looking again at shards that other processes hold."""
AUTO_BATCH = {"cpu": 16, "cuda": 256}

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class EmbedSettings:
    """How one expert is run; `weights` to `dtype` change the numbers and are part of the fingerprint."""

    expert: str
    weights: str | Path | None = None
    config: Mapping[str, Any] | None = None
    preprocessing: str | None = None
    precision: Precision = "fp32"
    dtype: str | None = None
    device: str = "cpu"
    batch_size: int | None = None
    """Records a forward pass; None: chosen by the device, and halved when its memory is full."""
    shard_records: int = 1024


@dataclass
class EmbedSummary:
    """What a run did, for the run record and the last line on the terminal."""

    expert: str
    store: str
    n_records: int
    n_embedded: int = 0
    """Records embedded in this run."""
    n_resumed: int = 0
    """Records that were there already."""
    fresh_because: str = ""
    bad: dict[str, str] = field(default_factory=dict)
    """record_id -> why this run could not embed it."""
    n_without_vector: int = 0
    """Records of the whole store that have no vector."""
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("read", "compute", "write", "total"), 0.0))


@dataclass(frozen=True)
class _Batch:
    shard: int
    offset: int
    """First row within the shard."""
    n_rows: int
    good: np.ndarray
    """Positions within the batch that `x` holds."""
    x: Tensor | None


def identity_of(settings: EmbedSettings, signals: SignalStore, records: pd.DataFrame) -> Identity:
    """Return what the vectors would be made from, without loading the network."""
    cls, variant = expert_class(settings.expert)
    spec = cls.published_spec(variant)
    weights = "none"
    if spec.needs_weights:
        weights = sha256_of(find_weights(spec, settings.weights))
    expert = {
        "expert": settings.expert,
        "version": spec.version,
        "weights_sha256": weights,
        "config": dict(settings.config or {}),
        "preprocessing": settings.preprocessing or cls.preprocessing_variants[0],
        "precision": settings.precision,
        "dtype": settings.dtype or spec.store_dtype,
    }
    source = spec.weights
    facts = {
        "licence": spec.licence,
        "weights_source": source.repo_id if source else "",
        "weights_revision": source.revision if source else "",
        "pretrained_on": list(spec.pretrained_on),
    }
    return Identity(expert, signals.content_digest(), records_digest(records["record_id"].tolist()), facts)


def plan(settings: EmbedSettings, records_path: Path, signals_path: Path, store_path: Path) -> EmbedSummary:
    """Return what `embed` would do (`n_embedded` = records still to do), touching nothing."""
    records, signals = _inputs(records_path, signals_path)
    identity = identity_of(settings, signals, records)
    summary = EmbedSummary(settings.expert, str(store_path), len(records), n_embedded=len(records))
    try:
        store = open_embeddings(store_path)
    except EnsembleError as error:
        summary.fresh_because = str(error)
        return summary
    if store.fingerprint != identity.fingerprint:
        summary.fresh_because = "made from other weights, settings or records"
        return summary
    summary.n_embedded = sum(_size(store.rows_of(shard)) for shard in store.pending())
    summary.n_resumed = len(records) - summary.n_embedded
    return summary


def embed(
    settings: EmbedSettings,
    *,
    records_path: Path,
    signals_path: Path,
    store_path: Path,
    state_folder: Path,
    progress: Progress | None = None,
) -> EmbedSummary:
    """Bring one expert's store up to date.

    Parameters
    ----------
    state_folder
        Where claims lie; outside the store and outside every DVC output.
    progress
        Called with (records done, records in all), from this thread.

    Raises
    ------
    StoreError
        Stores that do not belong together or cannot be written.
    WeightsError
        Weights that cannot be had or do not match.
    """
    started = time.perf_counter()
    records, signals = _inputs(records_path, signals_path)
    identity = identity_of(settings, signals, records)
    summary = EmbedSummary(settings.expert, str(store_path), len(records))
    with closing(Claims(store_path, state_folder)) as claims:
        claims.share()
        store = _matching(store_path, identity)
        if store is None or store.pending():
            expert = _load(settings)
            layout = _layout(expert, settings, records)
            if store is None or store.shard_records != layout.shard_records:
                claims.own()
                store, summary.fresh_because = resume_or_create(store_path, layout, identity)
                claims.share()
            _Run(expert, settings, records, signals, store, claims, summary, progress).until_complete()
        else:
            summary.n_resumed = len(records)
    summary.n_without_vector = _without_vector(store)
    summary.seconds["total"] = time.perf_counter() - started
    return summary


@dataclass
class _Run:
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

    def until_complete(self) -> None:
        """Embed what is missing; shards that another process has claimed are waited for, and taken over if it dies."""
        while pending := self.store.pending():
            before = self.summary.n_embedded
            missing = sum(_size(self.store.rows_of(shard)) for shard in pending)
            self.summary.n_resumed = self.summary.n_records - missing - before
            self._embed(pending)
            if self.summary.n_embedded == before:
                time.sleep(WAIT_S)

    def _embed(self, pending: list[int]) -> None:
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
        starts = list(range(0, _size(rows), self.batch_size))
        waiting: list[Future[_Batch]] = []
        for start in starts:
            waiting.append(reader.submit(self._read, shard, start, min(self.batch_size, _size(rows) - start)))
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
        n = _size(self.store.rows_of(shard))
        content = _empty(self.store, n)
        for batch in batches:
            started = time.perf_counter()
            if batch.x is not None:
                self._place(content, batch, self._encode(batch.x))
            self.summary.seconds["compute"] += time.perf_counter() - started
            self.summary.n_embedded += batch.n_rows
            if self.progress:
                self.progress(self.summary.n_resumed + self.summary.n_embedded, self.summary.n_records)
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


def _inputs(records_path: Path, signals_path: Path) -> tuple[pd.DataFrame, SignalStore]:
    records, signals = open_records(records_path), open_signals(signals_path)
    if len(records) != len(signals):
        raise StoreError(
            f"{records_path} has {len(records)} records, {signals_path} has {len(signals)}; run `ensemble ingest` again"
        )
    return records, signals


def _matching(store_path: Path, identity: Identity) -> EmbeddingStore | None:
    """Open a store that was made from the same things."""
    try:
        store = open_embeddings(store_path, mode="r+")
    except EnsembleError:
        return None
    return store if store.fingerprint == identity.fingerprint else None


def _load(settings: EmbedSettings) -> Expert:
    spec_class, variant = expert_class(settings.expert)
    weights = settings.weights if spec_class.published_spec(variant).needs_weights else None
    expert = load_expert(
        settings.expert, weights, settings.config, settings.device, preprocessing=settings.preprocessing
    )
    set_precision(expert, settings.precision)
    return expert


def _layout(expert: Expert, settings: EmbedSettings, records: pd.DataFrame) -> Layout:
    spec = expert.spec
    return Layout(
        n_records=len(records),
        layer_names=spec.layer_names,
        layer_dims=spec.layer_dims,
        embedding_dim=spec.embedding_dim,
        output_dim=spec.output_dim or 0,
        dtype=settings.dtype or spec.store_dtype,
        shard_records=settings.shard_records,
    )


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


def _without_vector(store: EmbeddingStore) -> int:
    shards = (store.read_embedding(store.rows_of(shard)) for shard in range(store.n_shards))
    return sum(int(np.isnan(rows).all(axis=1).sum()) for rows in shards)


def _size(rows: slice) -> int:
    return int(rows.stop - rows.start)
