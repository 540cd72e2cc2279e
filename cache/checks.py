"""Whether stores read as they were written (`verify`), and dropping exactly what does not (`repair`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cache._zarr import ZARR_ERRORS, shard_file
from cache.embeddings import EmbeddingStore, open_embeddings
from cache.errors import EnsembleError
from cache.metadata import metadata_faults, restore_metadata
from cache.signals import SignalStore, open_signals


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

    store: Path
    shard: int | None
    what: str
    missing: bool = False

    def __str__(self) -> str:
        where = "" if self.shard is None else f" shard {self.shard}:"
        return f"{self.store}:{where} {self.what}"


def embedding_faults(path: Path) -> Iterator[Fault]:
    """Read a whole embedding store against its checksums and row count; metadata first.

    Where the metadata are damaged, the shards are not looked at: it is not known what they should be.
    """
    damaged = metadata_faults(path)
    for name in damaged:
        yield Fault(path, None, f"{name} is damaged")
    if damaged:
        return
    try:
        store = open_embeddings(path)
    except EnsembleError as error:
        yield Fault(path, None, str(error).removeprefix(f"{path}: "))
        return
    for shard in range(store.n_shards):
        yield from _embedding_shard_faults(store, shard)


def _embedding_shard_faults(store: EmbeddingStore, shard: int) -> Iterator[Fault]:
    rows = store.rows_of(shard)
    files = store.shard_files(shard)
    absent = [file for file in files if not file.exists()]
    if absent == files and (files or not store.complete(shard)):
        yield Fault(store.path, shard, f"records {rows.start} to {rows.stop - 1} are not embedded", missing=True)
        return
    for file in absent:
        yield Fault(store.path, shard, f"{file.relative_to(store.path)} is missing")
    for array in store.arrays():
        if absent and not shard_file(store.path, array, shard).exists():
            continue
        try:
            values = store.read(array.basename, rows)
        except EnsembleError as error:
            yield Fault(store.path, shard, str(error).removeprefix(f"{store.path}: "))
            continue
        if array.basename == "done" and not values.all():
            yield Fault(store.path, shard, f"{int((~values).sum())} of {len(values)} rows are not marked done")


def signal_faults(path: Path) -> Iterator[Fault]:
    """Read a whole signal store against its checksums and every row's digest; metadata first."""
    damaged = metadata_faults(path)
    for name in damaged:
        yield Fault(path, None, f"{name} is damaged")
    if damaged:
        return
    try:
        store = open_signals(path)
    except EnsembleError as error:
        yield Fault(path, None, str(error).removeprefix(f"{path}: "))
        return
    for shard in range(store.n_shards):
        yield from _signal_shard_faults(store, shard)


def _signal_shard_faults(store: SignalStore, shard: int) -> Iterator[Fault]:
    rows = store.rows_of(shard)
    if not shard_file(store.path, store.digest, shard).exists():
        yield Fault(store.path, shard, f"records {rows.start} to {rows.stop - 1} are not written", missing=True)
        return
    try:
        signals, digests = np.asarray(store.signals[rows]), np.asarray(store.digest[rows])
        valid = np.asarray(store.valid[rows])
    except ZARR_ERRORS as error:
        yield Fault(store.path, shard, f"is damaged ({str(error).splitlines()[0]})")
        return
    wrong = rows.start + np.flatnonzero((store.digests_of(signals) != digests).any(axis=1))
    if len(wrong):
        yield Fault(store.path, shard, f"{len(wrong)} records are not those written, the first is row {wrong[0]}")
    # zarr keeps no file of a shard of fill values: that is right only where no record could be read.
    if not shard_file(store.path, store.valid, shard).exists() and not store.all_missing(digests):
        yield Fault(store.path, shard, "the valid lengths are missing")
    elif ((valid < 0) | (valid > signals.shape[2])).any():
        yield Fault(store.path, shard, "a valid length is impossible")


def repair_embeddings(path: Path) -> Iterator[str]:
    """Put metadata right and drop exactly the bad shards; gives one line for each thing done.

    Only for a process that owns the store (`cache.claims`). What cannot be repaired stays, for `embedding_faults`.
    """
    for name in restore_metadata(path):
        yield f"{path}: {name} restored"
    for shard in _bad(embedding_faults(path)):
        open_embeddings(path, mode="r+").drop(shard)
        yield f"{path}: shard {shard} dropped; run `ensemble embed --expert {path.stem}`"


def repair_signals(path: Path) -> Iterator[str]:
    """Put metadata right and drop exactly the bad shards of a signal store, so that `ingest` reads them again."""
    for name in restore_metadata(path):
        yield f"{path}: {name} restored"
    for shard in _bad(signal_faults(path)):
        open_signals(path, mode="r+").drop(shard)
        yield f"{path}: shard {shard} dropped; run `ensemble ingest`"


def _bad(faults: Iterator[Fault]) -> list[int]:
    return sorted({fault.shard for fault in faults if fault.shard is not None and not fault.missing})
