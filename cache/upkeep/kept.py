"""Stores that another one has replaced: they stay beside it, under their fingerprint, until `ensemble cache gc`.

Vectors may have cost days. A run with other weights moves those that stand there aside before it makes its own, and a
run that goes back to the earlier weights finds them again. Among objects, moving means copying within the bucket.
"""

from __future__ import annotations

import re

from cache.embeddings import open_embeddings
from cache.errors import EnsembleError
from cache.storage.locations import Location, move, remove, store_exists
from cache.storage.objects import ObjectPath
from cache.storage.writing import Guard

_NAME = re.compile(r"\.(?P<expert>.+)\.(?P<fingerprint>[0-9a-f]{16})\.kept\.zarr")


def kept_path(path: Location, fingerprint: str) -> Location:
    """Return where a store of this fingerprint is kept when another one takes its place."""
    return path.parent / f".{path.stem}.{fingerprint[:16]}.kept.zarr"


def kept_stores(folder: Location) -> list[Location]:
    """Return the kept stores in a folder of stores, in order, those of interrupted copies too."""
    if isinstance(folder, ObjectPath):
        found: list[Location] = list(folder.children())
    else:
        found = sorted(folder.glob(".*.kept.zarr")) if folder.is_dir() else []
    return [path for path in found if _NAME.fullmatch(path.name)]


def replaced_by(path: Location) -> Location:
    """Return the store that stands, or stood, where a kept one was."""
    named = _NAME.fullmatch(path.name)
    return path.parent / f"{named['expert']}.zarr" if named else path


def set_aside(path: Location, fingerprint: str, guard: Guard | None = None) -> Location | None:
    """Move a store that one of another fingerprint is about to replace aside, and return where it is kept.

    None, and nothing is moved, where no shard of it is complete, it has this very fingerprint or cannot be opened. Only
    for the process that owns the store. Of two kept stores of one fingerprint, the later one stays.
    """
    try:
        store = open_embeddings(path)
        pending = len(store.pending())
    except EnsembleError:
        return None
    if pending == store.n_shards or store.fingerprint == fingerprint:
        return None
    target = kept_path(path, store.fingerprint)
    _clear(target)
    move(path, target, guard)
    return target


def bring_back(path: Location, fingerprint: str, guard: Guard | None = None) -> bool:
    """Put a kept store of this fingerprint back to `path`, where nothing may stand; whether there was one.

    Only for the process that owns the store.
    """
    source = kept_path(path, fingerprint)
    if not _is_whole(source, fingerprint):
        return False
    move(source, path, guard)
    return True


def _is_whole(path: Location, fingerprint: str) -> bool:
    """Whether a kept store can be opened and is of this fingerprint, of which its name holds a part alone."""
    try:
        return store_exists(path) and open_embeddings(path).fingerprint == fingerprint
    except EnsembleError:
        return False


def _clear(path: Location) -> None:
    """Remove a kept store, or what an interrupted copy left of one."""
    if isinstance(path, ObjectPath) or path.exists():
        remove(path)
