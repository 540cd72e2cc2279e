"""Whether stores read as they were written (`verify`), and dropping exactly what does not (`repair`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from cache.embeddings import EmbeddingStore, open_embeddings
from cache.errors import EnsembleError, StorageError, StoreError
from cache.signals import SignalStore, open_signals
from cache.storage.locations import Location, name_within
from cache.storage.writing import Guard
from cache.zarr_io.groups import ZARR_ERRORS, shard_file
from cache.zarr_io.metadata import metadata_faults, restore_metadata

_Store = TypeVar("_Store", EmbeddingStore, SignalStore)


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a store.

    Attributes
    ----------
    shard
        Which one; None where it concerns the whole store.
    missing
        Nothing of the shard is there: it was never written, or was dropped. There is nothing to repair.
    """

    store: Location
    shard: int | None
    what: str
    missing: bool = False

    def __str__(self) -> str:
        where = "" if self.shard is None else f" shard {self.shard}:"
        return f"{self.store}:{where} {self.what}"


def embedding_faults(path: Location) -> Iterator[Fault]:
    """Read a whole embedding store against its checksums and row count; metadata first.

    Where the metadata are damaged, the shards are not looked at: it is not known what they should be.
    """
    return _faults(path, open_embeddings, _embedding_shard_faults)


def signal_faults(path: Location) -> Iterator[Fault]:
    """Read a whole signal store against its checksums and every row's digest; metadata first."""
    return _faults(path, open_signals, _signal_shard_faults)


def _faults(
    path: Location, opened: Callable[[Location], _Store], faults_of: Callable[[_Store, int], Iterator[Fault]]
) -> Iterator[Fault]:
    damaged = metadata_faults(path)
    yield from (Fault(path, None, f"{name} is damaged") for name in damaged)
    if damaged:
        return
    try:
        store = opened(path)
    except StorageError:  # the storage is at fault, not what lies there
        raise
    except EnsembleError as error:
        yield Fault(path, None, _without(path, error))
        return
    for shard in range(store.n_shards):
        yield from faults_of(store, shard)


def _without(path: Location, error: EnsembleError) -> str:
    return str(error).removeprefix(f"{path}: ")


def _embedding_shard_faults(store: EmbeddingStore, shard: int) -> Iterator[Fault]:
    rows = store.rows_of(shard)
    files = store.shard_files(shard)
    absent = [file for file in files if not file.exists()]
    if absent == files and (files or not store.complete(shard)):
        yield Fault(store.path, shard, f"records {rows.start} to {rows.stop - 1} are not embedded", missing=True)
        return
    for file in absent:
        yield Fault(store.path, shard, f"{name_within(store.path, file)} is missing")
    for array in store.arrays():
        if absent and not shard_file(store.path, array, shard).exists():
            continue
        try:
            values = store.read(array.basename, rows)
        except StoreError as error:
            yield Fault(store.path, shard, _without(store.path, error))
            continue
        if array.basename == "done" and not values.all():
            yield Fault(store.path, shard, f"{int((~values).sum())} of {len(values)} rows are not marked done")


def _signal_shard_faults(store: SignalStore, shard: int) -> Iterator[Fault]:
    rows = store.rows_of(shard)
    if not shard_file(store.path, store.digest, shard).exists():
        yield Fault(store.path, shard, f"records {rows.start} to {rows.stop - 1} are not written", missing=True)
        return
    try:
        signals, digests = np.asarray(store.signals[rows]), np.asarray(store.digest[rows])
        valid, rates = store.valid_of(rows), store.rates_of(rows)
    except (*ZARR_ERRORS, StoreError) as error:
        yield Fault(store.path, shard, f"is damaged ({str(error).splitlines()[0]})")
        return
    if ((valid < 0) | (valid > signals.shape[2])).any():
        yield Fault(store.path, shard, "a valid length is impossible")
        return
    wrong = rows.start + np.flatnonzero((store.digests_of(signals, valid, rates) != digests).any(axis=1))
    if len(wrong):
        yield Fault(store.path, shard, f"{len(wrong)} records are not those written, the first is row {wrong[0]}")
    # zarr keeps no file of a shard of fill values: that is right only where no record could be read.
    if not shard_file(store.path, store.valid, shard).exists() and not store.all_missing(digests):
        yield Fault(store.path, shard, "the valid lengths are missing")


def count_without_vector(store: EmbeddingStore) -> int:
    """Count the rows whose expert gave no vector; reads one byte a row, all embeddings of an older store."""
    if store.has_vector is not None:
        return int((~store.read("has_vector", slice(0, len(store)))).sum())
    parts = (store.read_embedding(store.rows_of(shard)) for shard in range(store.n_shards))
    return sum(int(np.isnan(rows).all(axis=1).sum()) for rows in parts)


def repair_embeddings(path: Location, guard: Guard | None = None) -> Iterator[str]:
    """Put metadata right and drop exactly the bad shards; gives one line for each thing done.

    Only for a process that owns the store (`cache.claims`). What cannot be repaired stays, for `embedding_faults`.
    """
    return _repair(path, embedding_faults, open_embeddings, f"run `ensemble embed --expert {path.stem}`", guard)


def repair_signals(path: Location, guard: Guard | None = None) -> Iterator[str]:
    """Put metadata right and drop exactly the bad shards of a signal store, so that `ingest` reads them again."""
    return _repair(path, signal_faults, open_signals, "run `ensemble ingest`", guard)


def _require_readable(store: EmbeddingStore | SignalStore, shard: int) -> None:
    """Refuse to drop what the disk does not let us read: a failing disk or a lost permission is no damage."""
    for file in _files_of(store, shard):
        try:
            file.read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StorageError(
                f"{file}: cannot be read ({error.strerror}), which says nothing of what it holds; give access or look "
                "after the disk, and repair again"
            ) from error


def _files_of(store: EmbeddingStore | SignalStore, shard: int) -> list[Location]:
    if isinstance(store, EmbeddingStore):
        return [shard_file(store.path, array, shard) for array in store.arrays()]
    return [*(shard_file(store.path, array, shard) for array in store.facts()), *store.signal_files(shard)]


def _repair(
    path: Location,
    faults: Callable[[Location], Iterator[Fault]],
    opened: Callable[..., EmbeddingStore | SignalStore],
    then: str,
    guard: Guard | None,
) -> Iterator[str]:
    for name in restore_metadata(path, guard):
        yield f"{path}: {name} restored"
    bad = sorted({fault.shard for fault in faults(path) if fault.shard is not None and not fault.missing})
    for shard in bad:
        if guard is not None:
            guard()
        store = opened(path, mode="r+")
        _require_readable(store, shard)
        store.drop(shard)
        yield f"{path}: shard {shard} dropped; {then}"
