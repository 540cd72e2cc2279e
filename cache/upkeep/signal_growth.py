"""Giving signals.zarr more rows or a longer time axis, without copying the shards that are there."""

from __future__ import annotations

import os
from pathlib import Path

import zarr
from zarr.codecs import BloscCodec

from cache.errors import StoreError
from cache.files import link_or_copy
from cache.signals import (
    CHUNK_RECORDS,
    N_SAMPLES,
    SIGNAL_ATTRIBUTES,
    SignalStore,
    add_signal_arrays,
    open_signals,
    rates_at_500_hz,
)
from cache.storage.locations import Location
from cache.storage.objects import ObjectPath
from cache.storage.writing import Guard
from cache.zarr_io.groups import create_group, get_array, grow_objects, shard_file, write_shard


def grow_signals(path: str | Location, n_kept: int, n_records: int, guard: Guard | None = None) -> SignalStore:
    """Give a store more rows behind its first `n_kept`; all or nothing.

    The shards that hold those stay as they are (linked, not copied; objects where they stand). The last of them, if it
    is not full, has to be written again, with its old rows first. A store of the first version becomes one of the
    second, in a folder.

    Raises
    ------
    StoreError
        The first `n_kept` rows are not all written, or another tool laid them out.
    """
    store = open_signals(path)
    if store.codec is None or store.signals.chunks[0] != CHUNK_RECORDS:
        raise StoreError(f"{path} was laid out by another tool and cannot grow; ingest without --append")
    store.content_digest(n_kept)
    return _made_again(store, n_kept, n_records, store.n_samples, guard)


def lengthen_signals(path: str | Location, guard: Guard | None = None) -> SignalStore:
    """Make the time axis as long as the longest record, in whole pieces; to be called when all shards are written."""
    store = open_signals(path)
    longest = max((int(store.valid_of(store.rows_of(k)).max(initial=0)) for k in range(store.n_shards)), default=0)
    n_samples = max(1, -(-longest // N_SAMPLES)) * N_SAMPLES
    if n_samples == store.n_samples:
        return store
    return _made_again(store, len(store), len(store), n_samples, guard)


def _made_again(store: SignalStore, n_kept: int, n_records: int, n_samples: int, guard: Guard | None) -> SignalStore:
    """Make a store of other sizes from the shards of one that stands there, which are linked; all or nothing."""
    path, codec = store.path, store.codec
    if codec is None:
        raise StoreError(f"{path} was laid out by another tool and is not written into")
    if isinstance(path, ObjectPath):
        return _grown_objects(path, store, codec, (n_records, n_samples), guard)
    shards = range(-(-n_kept // store.shard_records))
    folders = [path / store.signals.basename / "c" / str(shard) / "0" for shard in shards]
    files = [file for folder in folders if folder.is_dir() for file in folder.iterdir() if file.name.isdigit()]
    # There is no file of a shard of nothing but fill values.
    facts = [shard_file(path, array, shard) for shard in shards for array in store.facts()]
    files += [file for file in facts if isinstance(file, Path) and file.exists()]

    def fill(group: zarr.Group, folder: Path) -> None:
        add_signal_arrays(group, n_records, store.shard_records, codec, n_samples)
        for file in files:
            link_or_copy(file, folder / file.relative_to(path))
        if store.rate_hz is None:
            _give_rates(store, shards, group, folder)
        os.sync()

    create_group(path, {**SIGNAL_ATTRIBUTES, "row_digest": store.row_digest}, fill)
    return open_signals(path, mode="r+")


def _grown_objects(
    path: ObjectPath, store: SignalStore, codec: BloscCodec, sizes: tuple[int, int], guard: Guard | None
) -> SignalStore:
    """Change the metadata alone: the objects of shards stay, and a last one that is not full is written again."""
    if store.rate_hz is None:
        raise StoreError(f"{path} is of the first version and cannot grow in a bucket; ingest without --append")
    n_records, n_samples = sizes

    def fill(group: zarr.Group, _: Path) -> None:
        add_signal_arrays(group, n_records, store.shard_records, codec, n_samples)

    grow_objects(path, {**SIGNAL_ATTRIBUTES, "row_digest": store.row_digest}, fill, (), guard)
    return open_signals(path, mode="r+")


def _give_rates(store: SignalStore, shards: range, group: zarr.Group, folder: Path) -> None:
    """Write the rates of a store of the first version, and the digests of its short records as they are taken now."""
    size, fresh = store.shard_records, SignalStore(folder, group)
    for shard in shards:
        rows = store.rows_of(shard)
        valid = store.valid_of(rows)
        write_shard(folder, get_array(group, "rate_hz"), shard, size, rates_at_500_hz(valid))
        if ((valid > 0) & (valid < N_SAMPLES)).any():
            digests = fresh.digests_of(store.read_uv(rows), valid).copy()
            digests[~store.row_digests_of(rows).any(axis=1)] = 0  # rows that were never written
            target = shard_file(folder, fresh.digest, shard)
            target.unlink()
            write_shard(folder, fresh.digest, shard, size, digests)
