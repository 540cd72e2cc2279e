"""Making an embedding store, going on with one where it stopped, and extending one of the first rows.

One rule: vectors made from different things never stand in one store.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import zarr

from cache.embeddings import SCHEMA_VERSION, EmbeddingStore, Identity, Layout, open_embeddings
from cache.files import link_or_copy
from cache.storage.locations import Location, location_of, name_within, store_exists
from cache.storage.objects import ObjectPath
from cache.storage.writing import Guard
from cache.upkeep.kept import bring_back, set_aside
from cache.zarr_io.groups import add_array, create_group, grow_objects, recover_group

CHUNK_RECORDS = 256


def create_embeddings(
    path: str | Location,
    layout: Layout,
    identity: Identity,
    kept: EmbeddingStore | None = None,
    guard: Guard | None = None,
) -> EmbeddingStore:
    """Make an empty store (replacing one that stands there).

    Parameters
    ----------
    kept
        The store that stands there, whose full shards the new one takes over.
    guard
        Raises where this process no longer owns the store (`Claims.confirm`).
    """
    path = location_of(path)
    attributes = {
        "schema_version": SCHEMA_VERSION,
        **identity.expert,
        **identity.facts,
        "layer_names": list(layout.layer_names),
        "layer_dims": list(layout.layer_dims),
        "signals_digest": identity.signals_digest,
        "records_digest": identity.records_digest,
        "fingerprint": identity.fingerprint,
    }

    def fill(group: zarr.Group, folder: Path) -> None:
        _add_arrays(group, layout, has_vector=kept is None or kept.has_vector is not None)
        if kept is not None and isinstance(path, Path):
            _link_whole_shards(kept, folder)

    if kept is not None and isinstance(path, ObjectPath):
        grow_objects(path, attributes, fill, _of_last_shard(kept), guard)
    else:
        create_group(path, attributes, fill, guard)
    return open_embeddings(path, mode="r+")


def _add_arrays(group: zarr.Group, layout: Layout, *, has_vector: bool) -> None:
    n, shard = layout.n_records, layout.shard_records
    rows, width = _chunk_rows(shard), max(layout.layer_dims)
    sizes: dict[str, tuple[int, ...]] = {
        "layers": (len(layout.layer_names), width),
        "embedding": (layout.embedding_dim,),
    }
    if layout.output_dim:
        sizes["output"] = (layout.output_dim,)
    for name, size in {**sizes, **layout.views}.items():
        # One layer (or second) a chunk: reading one layer of every record touches only its bytes.
        chunks = (rows, 1, size[1]) if len(size) == 2 else (rows, *size)
        add_array(group, name, (n, *size), chunks, shard_rows=shard, dtype=layout.dtype, fill_value=np.nan)
    for name in ("has_vector", "done") if has_vector else ("done",):
        add_array(group, name, (n,), (shard,), shard_rows=shard, dtype="bool", fill_value=False)


def _chunk_rows(shard_records: int) -> int:
    """Return the rows of a chunk: they must divide the shard's; a shard without a fitting divisor is one chunk."""
    divisors = [k for k in range(CHUNK_RECORDS // 4, CHUNK_RECORDS + 1) if shard_records % k == 0]
    return divisors[-1] if divisors else shard_records


def _link_whole_shards(kept: EmbeddingStore, folder: Path) -> None:
    """Give a new store the full shards of an older one, without copying where the disk allows it."""
    for shard in range(len(kept) // kept.shard_records):
        for file in kept.shard_files(shard) if kept.complete(shard) else ():
            if isinstance(file, Path):
                link_or_copy(file, folder / name_within(kept.path, file))
    os.sync()


def _of_last_shard(kept: EmbeddingStore) -> list[str]:
    """Return the objects of a last shard that is partly filled, and has to be embedded again; its flags first."""
    if not len(kept) % kept.shard_records:
        return []
    files = reversed(kept.shard_files(kept.n_shards - 1))
    return [name_within(kept.path, file) for file in files]


Prefix = Callable[[int], tuple[str, str]]
"""Number of first rows -> their signals digest and records digest, of the cohort as it is now."""


def grew_from(store: EmbeddingStore, identity: Identity, n_records: int, prefix: Prefix) -> bool:
    """Whether a store holds the first rows of what `identity` is about, made in the same way."""
    if not 0 < len(store) < n_records:
        return False
    older = Identity(identity.expert, *prefix(len(store)), facts=identity.facts)
    return store.fingerprint == older.fingerprint and store.records_digest == older.records_digest


def resume_or_create(
    path: str | Location,
    layout: Layout,
    identity: Identity,
    prefix: Prefix | None = None,
    guard: Guard | None = None,
) -> tuple[EmbeddingStore, str]:
    """Open the store where it stopped if it was made from the same things; otherwise start afresh.

    With `prefix`, a store of the first rows is extended: its full shards stay, the rest is pending. A store of other
    things is moved aside (`cache.upkeep.kept`); one of these very things that was moved aside comes back.

    Returns
    -------
    The store, and why it was started afresh ("" when resumed or extended).

    Raises
    ------
    StoreError
        What stands there cannot be opened; it is left as it is.
    """
    path = location_of(path)
    recover_group(path, guard)
    if not store_exists(path):
        return _back_or_new(path, layout, identity, guard), "no store yet"
    store = open_embeddings(path, mode="r+")
    if store.fingerprint == identity.fingerprint and store.shard_records == layout.shard_records:
        return store, ""
    if prefix is not None and _fits(store, layout) and grew_from(store, identity, layout.n_records, prefix):
        return create_embeddings(path, layout, identity, store, guard), ""
    why = difference(store, identity)
    set_aside(path, identity.fingerprint, guard)
    return _back_or_new(path, layout, identity, guard), why


def _back_or_new(path: Location, layout: Layout, identity: Identity, guard: Guard | None) -> EmbeddingStore:
    """Bring kept vectors of this identity back, or make an empty store."""
    if bring_back(path, identity.fingerprint, guard):
        back = open_embeddings(path, mode="r+")
        if back.shard_records == layout.shard_records or not back.pending():
            return back
    return create_embeddings(path, layout, identity, guard=guard)


def _fits(store: EmbeddingStore, layout: Layout) -> bool:
    """Whether a store's shards can stand in one of this layout."""
    return bool(store.shard_files(0)) and layout == Layout(
        n_records=layout.n_records,
        layer_names=store.layer_names,
        layer_dims=store.layer_dims,
        embedding_dim=store.embedding.shape[1],
        output_dim=store.output.shape[1] if store.output is not None else 0,
        dtype=str(store.embedding.dtype),
        shard_records=store.shard_records,
        views={name: array.shape[1:] for name, array in store.views.items()},
    )


def difference(store: EmbeddingStore, identity: Identity) -> str:
    """Say what a store was made from that is otherwise now."""
    wanted = {**identity.expert, "signals_digest": identity.signals_digest, "records_digest": identity.records_digest}
    changed = [name for name, value in wanted.items() if store.attributes.get(name) != value]
    return "changed: " + (", ".join(changed) or "shard size")
