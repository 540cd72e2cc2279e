"""The few zarr calls both stores share: making and opening groups safely, sharded arrays, durable shards."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.errors import ZarrUserWarning

from cache.errors import MissingFileError, StoreError
from cache.files import sync
from cache.metadata import metadata_faults, seal

ZARR_ERRORS = (KeyError, ValueError, TypeError, OSError, ZarrUserWarning)


def create_group(path: Path, attributes: Mapping[str, Any], fill: Callable[[zarr.Group, Path], None]) -> None:
    """Make a new group with its arrays beside `path` and move it there: no half-made store ever stands there.

    `fill` is given the group and its folder. One that stands at `path` is moved aside first, and then removed.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".partial", dir=path.parent) as folder:
            fresh = Path(folder) / path.name
            fill(zarr.create_group(fresh, zarr_format=3, attributes=dict(attributes)), fresh)
            seal(fresh)
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


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.replaced")


def recover_group(path: Path) -> None:
    """Undo what a killed `create_group` left: the store it had moved aside goes back, half-made ones go away.

    Only for the process that owns the store.
    """
    if not path.exists() and _aside(path).exists():
        _aside(path).rename(path)
    for left in leftovers(path):
        shutil.rmtree(left, ignore_errors=True)


def leftovers(path: Path) -> list[Path]:
    """Return the folders beside a store that a killed `create_group` left."""
    aside = [_aside(path)] if path.exists() and _aside(path).exists() else []
    return [*aside, *sorted(path.parent.glob(f".{path.name}.*.partial"))]


def open_group(path: Path, *, made_by: str, mode: str = "r") -> zarr.Group:
    """Open an existing group; `made_by` is the command that would make it, for the error message."""
    if not path.exists():
        raise MissingFileError(f"{path} does not exist; run `{made_by}` first")
    damaged = metadata_faults(path)
    if damaged:
        raise StoreError(f"{path}: the metadata are damaged ({', '.join(damaged)}); run `ensemble cache repair`")
    try:
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
) -> None:
    """Add an array whose shards hold `shard_rows` whole rows; each chunk carries a crc32c: damage never reads as data.

    `chunks[0]` must divide `shard_rows`; the other axes of a shard are whole.
    """
    shards = (shard_rows, *(-(-size // chunk) * chunk for size, chunk in zip(shape[1:], chunks[1:], strict=True)))
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


def get_array(group: zarr.Group, name: str) -> zarr.Array:
    """Return one array of a group; KeyError if there is none of that name."""
    found = group[name]
    if not isinstance(found, zarr.Array):
        raise KeyError(name)
    return found


def shard_file(path: Path, array: zarr.Array, shard: int) -> Path:
    """Return the file that holds one shard of rows (shards span all other axes)."""
    return path.joinpath(array.basename, "c", str(shard), *itertools.repeat("0", array.ndim - 1))


def write_shard(path: Path, array: zarr.Array, shard: int, shard_rows: int, values: np.ndarray) -> None:
    """Write one whole shard in one piece and flush it to the disk; what a killed writer left of it is removed first."""
    file = shard_file(path, array, shard)
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
