"""Stage `embed`: run one frozen expert over every record once, and write its vectors shard by shard.

A run that was killed goes on where it stopped; one that was made from something else starts afresh.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Sequence
from contextlib import closing
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from cache.claims import AnyClaims, claims_on
from cache.embeddings import EmbeddingStore, Identity, Layout, open_embeddings
from cache.errors import ClaimsLostError, MissingFileError, StoreError
from cache.patients import LABELLED_TRAINING
from cache.record_rows import RecordRows
from cache.signals import open_signals
from cache.storage.locations import require_writable, store_exists
from cache.upkeep.checks import count_without_vector
from cache.upkeep.kept import kept_path
from cache.upkeep.resume import difference, grew_from, resume_or_create
from stages.embed.amplitude import check_amplitude
from stages.embed.settings import EmbedPaths, EmbedSettings, EmbedSummary, ReplacedStore
from stages.embed.shard_pipeline import Line, Progress, size_of
from stages.experts import Expert, ExpertSpec, expert_class, load_expert
from stages.experts.checkpoints import find_weights, origin_of, weights_digest
from stages.experts.options import plain_options
from stages.experts.run import set_precision, torch_threads
from stages.experts.versions import labelled_training
from stages.experts.views import checked_views, view_shapes

_LOG = logging.getLogger(__name__)
NO_STORE = "no store yet"
WHOLE_SECONDS = 10.0
"""A shorter record is named as such: experts were made for as much."""


def describe(settings: EmbedSettings) -> dict[str, Any]:
    """Return everything that an expert's vectors depend on besides the records, as its store's attributes keep it."""
    cls, variant = expert_class(settings.expert)
    spec = cls.published_spec(variant)
    views = checked_views(spec, settings.views)
    return {
        "expert": settings.expert,
        "version": spec.version,
        "weights_sha256": _digest_once(spec, find_weights(spec, settings.weights)) if spec.needs_weights else "none",
        "config": dict(settings.config or {}),
        "preprocessing": settings.preprocessing or cls.preprocessing_variants[0],
        "preprocessing_options": plain_options(settings.expert, spec.preprocessing),
        "precision": settings.precision,
        "dtype": settings.dtype or spec.store_dtype,
        **({"views": list(views)} if views else {}),  # a store without any keeps the fingerprint that it always had
    }


def identity_of(settings: EmbedSettings, signals_digest: str, rows_digest: str) -> Identity:
    """Return what vectors of these settings and records are made from; needs the weights file, but not the network."""
    cls, variant = expert_class(settings.expert)
    spec = cls.published_spec(variant)
    how = describe(settings)
    path = find_weights(spec, settings.weights) if spec.needs_weights else None
    seen = labelled_training(
        settings.expert, expert_class(settings.expert.partition("+")[0])[0].published_spec(), how["weights_sha256"]
    )
    facts = {
        **({LABELLED_TRAINING: seen} if seen else {}),
        "licence": spec.licence,
        **origin_of(spec, settings.weights, path, how["weights_sha256"]),
        "pretrained_on": list(spec.pretrained_on),
    }
    return Identity(how, signals_digest, rows_digest, facts)


def load_for(settings: EmbedSettings) -> Expert:
    """Load the expert that the settings ask for, in their precision, on their device."""
    expert = load_expert(
        settings.expert, settings.weights, settings.config, settings.device, preprocessing=settings.preprocessing
    )
    set_precision(expert, settings.precision)
    return expert


def run(settings: EmbedSettings, paths: EmbedPaths, progress: Progress | None = None) -> EmbedSummary:
    """Bring one expert's store up to date in this process; `progress` is called with the records just embedded.

    Several processes may run at once: shards are claimed. `Embedder` has the steps one by one.
    """
    embedder = Embedder(settings, paths)
    return embedder.finish(embedder.run(progress=progress))


class Embedder:
    """One expert over one cohort. The network is loaded when it is first needed, and kept.

    Raises
    ------
    StoreError
        Stores that do not belong together or cannot be written.
    WeightsError
        Weights that cannot be had or do not match.
    UsageError
        The expert needs millivolts, and the cohort's signals are z-scores.
    """

    def __init__(self, settings: EmbedSettings, paths: EmbedPaths) -> None:
        self.settings, self.paths = settings, paths
        self._waiting_is_said = False
        require_writable(paths.store)
        self.records, self.signals = RecordRows(paths.records), open_signals(paths.signals)
        if len(self.records) != len(self.signals):
            raise StoreError(
                f"{paths.records} has {len(self.records)} records, {paths.signals} has {len(self.signals)}; "
                "run `ensemble ingest` again"
            )
        check_amplitude(settings, self.records)

    @cached_property
    def identity(self) -> Identity:
        """What the vectors are made from; needs the weights file, but not the network."""
        return identity_of(self.settings, *self._digests(len(self.records)))

    def _digests(self, n: int) -> tuple[str, str]:
        """Return the signals digest and the records digest of the first `n` rows."""
        return self.signals.content_digest(n), self.records.digest(n)

    @cached_property
    def expert(self) -> Expert:
        """The loaded expert, in the precision asked for."""
        return load_for(self.settings)

    def plan(self) -> EmbedSummary:
        """Return what a run would do (`n_embedded` = records still to do), touching nothing."""
        summary = self._summary()
        summary.n_resumed, summary.fresh_because = self._kept()
        summary.n_embedded = len(self.records) - summary.n_resumed
        return summary

    def replaced(self) -> ReplacedStore | None:
        """Return the store with vectors that a run would replace; None where it goes on with what is there."""
        _, why = self._kept()
        if not why or why == NO_STORE:
            return None
        store = open_embeddings(self.paths.store)
        pending = set(store.pending())
        n_done = _count(store, [shard for shard in range(store.n_shards) if shard not in pending])
        same = store.fingerprint == self.identity.fingerprint
        kept = None if same else kept_path(self.paths.store, store.fingerprint)
        back = store_exists(kept_path(self.paths.store, self.identity.fingerprint))
        return ReplacedStore(self.paths.store, n_done, why, kept, back) if n_done else None

    def _kept(self) -> tuple[int, str]:
        """Return how many records a run would find embedded, and why none where it would start afresh."""
        try:
            store = open_embeddings(self.paths.store)
        except MissingFileError:
            return 0, NO_STORE
        pending = set(store.pending())
        done = [shard for shard in range(store.n_shards) if shard not in pending]
        if store.fingerprint == self.identity.fingerprint:
            resized = bool(pending) and store.shard_records != self.settings.shard_records
            return (0, difference(store, self.identity)) if resized else (_count(store, done), "")
        if grew_from(store, self.identity, len(self.records), self._digests):
            whole = len(store) // store.shard_records
            return _count(store, [shard for shard in done if shard < whole]), ""
        return 0, difference(store, self.identity)

    def run(self, shards: Sequence[int] | None = None, progress: Progress | None = None) -> EmbedSummary:
        """Embed what is missing of `shards` (None: of all), and return what was done.

        Shards that another process has claimed are waited for, and taken over if it dies. `progress` is called with the
        number of records just embedded.
        """
        started = time.perf_counter()
        summary = self._summary()
        with closing(claims_on(self.paths.store, self.paths.state)) as claims, torch_threads(self.settings.threads):
            store, summary.fresh_because = self._store(claims)
            line = None
            while pending := _in_turn(store.pending(shards), claims):
                line = line or Line(
                    self.expert, self.settings, self.records, self.signals, store, claims, summary, progress
                )
                before = summary.n_embedded
                try:
                    line.embed(pending)
                except ClaimsLostError as error:
                    store, line = self._found_again(claims, store, error), None
                    continue
                if summary.n_embedded == before and (held := store.pending(shards)):
                    self._wait(claims, f"for {len(held)} shards that other processes hold")
        summary.n_resumed = max(
            0, len(self.records) - summary.n_embedded
        )  # after lost claims, some were embedded twice
        summary.seconds["total"] = time.perf_counter() - started
        return summary

    def _found_again(self, claims: AnyClaims, store: EmbeddingStore, lost: ClaimsLostError) -> EmbeddingStore:
        """Go on after claims were lost, if the store is still the one that was worked in."""
        claims.share()
        found = self._matching()
        if found is None or found.shard_records != store.shard_records:
            raise StoreError(f"{lost}; meanwhile another run has replaced the store: run again if it is to be yours")
        _LOG.warning("%s; going on with what is still pending", lost)
        return found

    def _wait(self, claims: AnyClaims, what: str) -> None:
        if not self._waiting_is_said:
            _LOG.warning("%s: waiting %s", self.paths.store, what)
            self._waiting_is_said = True
        time.sleep(claims.pause_s * random.uniform(0.5, 1.5))  # rivals that met once should not meet again

    def finish(self, summary: EmbedSummary) -> EmbedSummary:
        """Count the records of the finished store that have no vector, and those that are short."""
        summary.n_without_vector = count_without_vector(open_embeddings(self.paths.store))
        summary.n_short = self._count_short()
        return summary

    def _count_short(self) -> int:
        """Count the records of less than ten seconds; reads twelve bytes a record."""
        shards = (self.signals.rows_of(shard) for shard in range(self.signals.n_shards))
        return sum(int(_short(self.signals.valid_of(rows), self.signals.rates_of(rows)).sum()) for rows in shards)

    def prepare_store(self) -> list[int]:
        """Make or resume the store, and return the shards that are pending."""
        with closing(claims_on(self.paths.store, self.paths.state)) as claims:
            return self._store(claims)[0].pending()

    def _summary(self) -> EmbedSummary:
        return EmbedSummary(self.settings.expert, str(self.paths.store), len(self.records))

    def _store(self, claims: AnyClaims) -> tuple[EmbeddingStore, str]:
        while True:
            claims.share()
            store = self._matching()
            if store is not None and (store.shard_records == self.settings.shard_records or not store.pending()):
                return store, ""
            claims.leave()
            layout = self._layout()  # may take seconds, in which nobody should have to wait
            if claims.try_acquire():
                fresh = resume_or_create(self.paths.store, layout, self.identity, self._digests, claims.confirm)
                claims.share()
                return fresh
            self._wait(claims, "until no other run works in it")  # it may also make the very store that is wanted here

    def _matching(self) -> EmbeddingStore | None:
        try:
            store = open_embeddings(self.paths.store, mode="r+")
        except MissingFileError:
            return None
        return store if store.fingerprint == self.identity.fingerprint else None

    def _layout(self) -> Layout:
        spec = self.expert.spec
        return Layout(
            n_records=len(self.records),
            layer_names=spec.layer_names,
            layer_dims=spec.layer_dims,
            embedding_dim=spec.embedding_dim,
            output_dim=spec.output_dim or 0,
            dtype=self.settings.dtype or spec.store_dtype,
            shard_records=self.settings.shard_records,
            views=view_shapes(spec, self.settings.views),
        )


def _in_turn(pending: list[int], claims: AnyClaims) -> list[int]:
    """Return pending shards in the order of trying them.

    On this machine in that of the records. On object storage each process has its own, since a look at a shard that
    another one has costs two requests, and hundreds that walk the same list meet at every shard.
    """
    return random.sample(pending, len(pending)) if claims.apart else pending


def _count(store: EmbeddingStore, shards: Sequence[int]) -> int:
    return sum(size_of(store.rows_of(shard)) for shard in shards)


def _short(valid: np.ndarray, rate_hz: np.ndarray) -> np.ndarray:
    return (valid > 0) & (valid < np.floor(WHOLE_SECONDS * rate_hz))


def _digest_once(spec: ExpertSpec, path: Path) -> str:
    names = spec.weights.companions if spec.weights else ()
    files = [path, *(path.parent / name for name in names if (path.parent / name).is_file())]
    states = tuple((state.st_size, state.st_mtime_ns) for state in (file.stat() for file in files))
    return _digest_of(spec.name, path, states)


@lru_cache(maxsize=8)
def _digest_of(expert: str, path: Path, states: tuple[tuple[int, int], ...]) -> str:
    """Digest weights once a process; sizes and times make a changed file another one."""
    del states
    cls, variant = expert_class(expert)
    return weights_digest(cls.published_spec(variant), path)
