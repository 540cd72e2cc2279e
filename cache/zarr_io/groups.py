"""The few zarr calls both stores share: making and opening groups safely, sharded arrays, durable shards."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec

from cache.errors import MissingFileError, StoreError
from cache.files import sync
from cache.storage.locations import METADATA, Location, remove, store_exists
from cache.storage.objects import ObjectPath
from cache.storage.writing import Guard, put, write_durably
from cache.zarr_io.metadata import announce_growth, finish_growth, is_growing, metadata_faults, seal
from cache.zarr_io.shards import PlainShards

ZARR_ERRORS = (KeyError, ValueError, TypeError, OSError, UserWarning)
"""What zarr raises for damaged metadata and chunks; warnings where they are made errors."""


Fill = Callable[[zarr.Group, Path], None]
"""Given a new group and the folder it is made in, adds the arrays."""


def create_group(path: Location, attributes: Mapping[str, Any], fill: Fill, guard: Guard | None = None) -> None:
    """Make a new group with its arrays elsewhere and move it to `path`: no half-made store ever stands there.

    Of a folder that stands there, all or nothing is replaced: it is moved aside first, and then removed. Objects cannot
    be moved: those that stand there are deleted first, root metadata before all, and the new root metadata come last.
    """
    if isinstance(path, ObjectPath):
        with tempfile.TemporaryDirectory() as folder:
            publish(_made(Path(folder) / path.name, attributes, fill), path, guard)
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".partial", dir=path.parent) as folder:
            fresh = _made(Path(folder) / path.name, attributes, fill)
            if path.exists():
                shutil.rmtree(_aside(path), ignore_errors=True)
                path.rename(_aside(path))
            fresh.rename(path)
        sync(path.parent)
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be made ({error.strerror}); make room or give access, and run again"
        ) from error
    shutil.rmtree(_aside(path), ignore_errors=True)


def _made(fresh: Path, attributes: Mapping[str, Any], fill: Fill) -> Path:
    fill(zarr.create_group(fresh, zarr_format=3, attributes=dict(attributes)), fresh)
    seal(fresh)
    return fresh


def publish(fresh: Path, path: ObjectPath, guard: Guard | None) -> None:
    """Replace the objects of a store by those of a new one."""
    if guard is not None:
        guard()
    remove(path)
    names = sorted(str(file.relative_to(fresh)) for file in fresh.rglob("*") if file.is_file())
    for name in [*(name for name in names if name != METADATA), METADATA]:
        put(path / name, (fresh / name).read_bytes(), guard)


def grow_objects(
    path: ObjectPath, attributes: Mapping[str, Any], fill: Fill, dropped: Sequence[str], guard: Guard | None = None
) -> None:
    """Give a store of objects more rows where it stands, since objects cannot be linked; a killed one is gone on with.

    Parameters
    ----------
    dropped
        Objects of shards that are not full, in the order in which they go.
    """
    if guard is not None:
        guard()
    for name in dropped:
        (path / name).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        fresh = _made(Path(folder) / path.name, attributes, fill)
        announce_growth(path, fresh, guard)
    finish_growth(path, guard)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.replaced")


def recover_group(path: Location, guard: Guard | None = None) -> None:
    """Undo or end what a killed `create_group` or `grow_objects` left: a store that was moved aside goes back.

    Only for the process that owns the store.
    """
    if isinstance(path, ObjectPath):
        finish_growth(path, guard)
        return
    if not path.exists() and _aside(path).exists():
        _aside(path).rename(path)
    for left in leftovers(path):
        remove(left)


def leftovers(path: Location) -> list[Path]:
    """Return the folders beside a store that a killed `create_group` left; beside objects it leaves none."""
    if isinstance(path, ObjectPath):
        return []
    aside = [_aside(path)] if path.exists() and _aside(path).exists() else []
    return [*aside, *sorted(path.parent.glob(f".{path.name}.*.partial"))]


def open_group(path: Location, *, made_by: str, mode: str = "r") -> zarr.Group:
    """Open an existing group; `made_by` is the command that would make it, for the error message.

    A group of objects is always opened for reading: what is written there goes round zarr.
    """
    if not store_exists(path):
        raise MissingFileError(f"{path} does not exist; run `{made_by}` first")
    damaged = metadata_faults(path)
    if damaged and isinstance(path, ObjectPath) and is_growing(path):
        raise MissingFileError(f"{path} is being extended, by a run that goes on or was killed; run `{made_by}` again")
    if damaged:
        raise StoreError(f"{path}: the metadata are damaged ({', '.join(damaged)}); run `ensemble cache repair`")
    try:
        if isinstance(path, ObjectPath):
            from cache.storage.object_store import ReadOnlyObjects

            return zarr.open_group(ReadOnlyObjects(path), mode="r", zarr_format=3)
        return zarr.open_group(path, mode=mode, zarr_format=3)  # type: ignore[arg-type]
    except ZARR_ERRORS as error:
        raise StoreError(
            f"{path}: not a Zarr v3 group ({str(error).splitlines()[0]}); remove it and run `{made_by}`"
        ) from error


def add_array(
    group: zarr.Group,
    name: str,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    *,
    shard_rows: int,
    dtype: str,
    fill_value: Any,
    compressors: Any = None,
    shards: tuple[int, ...] | None = None,
) -> None:
    """Add an array whose shards hold `shard_rows` whole rows; each chunk carries a crc32c: damage never reads as data.

    `chunks[0]` must divide `shard_rows`; the other axes of a shard are whole unless `shards` says otherwise.
    """
    shards = shards or (
        shard_rows,
        *(-(-size // chunk) * chunk for size, chunk in zip(shape[1:], chunks[1:], strict=True)),
    )
    group.create_array(
        name,
        shape=shape,
        chunks=chunks,
        shards=shards,
        dtype=dtype,
        fill_value=fill_value,
        serializer=BytesCodec(),
        compressors=[*([compressors] if compressors else []), Crc32cCodec()],
        config={"write_empty_chunks": True},
    )


def get_array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    """Return one array of a group; KeyError if there is none of that name."""
    found = group[name]
    if not isinstance(found, zarr.Array):
        raise KeyError(name)
    return found


def shard_file(path: Location, array: zarr.Array[Any], shard: int) -> Location:
    """Return the file or object that holds one shard of rows (shards span all other axes)."""
    return path.joinpath(array.basename, "c", str(shard), *itertools.repeat("0", array.ndim - 1))


def write_shard(
    path: Location,
    array: zarr.Array[Any],
    shard: int,
    shard_rows: int,
    values: np.ndarray,
    guard: Guard | None = None,
) -> None:
    """Write one whole shard in one piece and flush it to the disk; what a killed writer left of it is removed first.

    Parameters
    ----------
    guard
        As of `write_durably`; asked for among objects alone.
    """
    file = shard_file(path, array, shard)
    if isinstance(file, ObjectPath):
        _put_shard(path, array, file, values, guard)
        return
    for left in file.parent.glob(f"{file.name}.*.partial"):
        left.unlink(missing_ok=True)
    start = shard * shard_rows
    array[start : start + len(values)] = values
    # zarr keeps no file of a shard that holds the fill value alone: every record of it is bad.
    if file.exists():
        sync(file)
        folder = file.parent
        while folder != path / array.basename:
            sync(folder)
            folder = folder.parent


def _put_shard(
    path: Location, array: zarr.Array[Any], file: ObjectPath, values: np.ndarray, guard: Guard | None
) -> None:
    """Put what zarr would write into a folder: no object of a shard that holds the fill value alone."""
    plain = PlainShards.of(path, array)
    if plain is None:
        raise StoreError(f"{path}: {array.basename} was laid out by another tool and is not written into")
    if (values == plain.fill).all():
        if guard is not None:
            guard()
        file.unlink(missing_ok=True)
        return
    grouped = np.ascontiguousarray(values, dtype=plain.dtype).reshape(1, len(values), plain.width)
    write_durably(file, path, plain.pieces(grouped), guard)
