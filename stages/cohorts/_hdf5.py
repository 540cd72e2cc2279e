"""HDF5 files of recordings, opened once a process. Needs h5py, which is imported only here and only then.

A file may point to others (links, external storage, virtual datasets), which are not of the cohort's folder: refused.
"""

from __future__ import annotations

import math
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from cache.errors import InputError
from stages.readers.wfdb_record import MAX_SAMPLES

MAX_CHUNK_BYTES = 1 << 28
"""One sample of a chunk cannot be read without unpacking all of it."""
Stamp = tuple[int, int, int]


def stamp_of(path: str) -> Stamp:
    """Return what changes when a file is written anew: inode, time (ns) and bytes; what is kept of it goes by this."""
    try:
        held = os.stat(path)
    except OSError as error:
        raise InputError(f"{Path(path).name} cannot be read ({error.strerror})") from error
    return held.st_ino, held.st_mtime_ns, held.st_size


class _Opened:
    """One file; opened again when it has changed. The old one is closed first, or HDF5 would go on with it."""

    def __init__(self) -> None:
        self._stamp: Stamp | None = None
        self._file: Any = None

    def file(self, path: str) -> Any:
        stamp = stamp_of(path)
        if stamp != self._stamp:
            if self._file is not None:
                self._file.close()
            self._stamp, self._file = None, None
            self._file = _open(path)
            self._stamp = stamp
        return self._file


@lru_cache(maxsize=32)
def _opened(path: str) -> _Opened:
    return _Opened()


def _open(path: str) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise InputError("reading HDF5 needs h5py; install it with `pip install h5py`") from error
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise InputError(f"{Path(path).name} cannot be opened as HDF5") from error


def dataset(path: str, name: str, n_axes: int) -> Any:
    """Return a dataset of a file.

    Raises
    ------
    InputError
        The file is not there or not HDF5, h5py is not installed, or the dataset is not one of numbers with `n_axes`
        axes that lie in this file, in chunks that fit the memory.
    """
    file, told = _opened(path).file(path), f"{Path(path).name}: dataset '{name}'"
    _check_links(file, name, told)
    found = file.get(name)
    if getattr(found, "ndim", None) != n_axes or found.dtype.kind not in "fiu":
        raise InputError(f"{Path(path).name} has no dataset '{name}' of numbers with {n_axes} axes")
    if found.is_virtual or found.external:
        raise InputError(f"{told} keeps its samples in other files; write them into this one")
    if found.chunks and math.prod(found.chunks) * found.dtype.itemsize > MAX_CHUNK_BYTES:
        raise InputError(
            f"{told} has chunks of {found.chunks}, more than {MAX_CHUNK_BYTES >> 20} MB; write smaller ones"
        )
    return found


def _check_links(file: Any, name: str, told: str) -> None:
    """Refuse a name on whose way a link lies: it may lead to any file."""
    import h5py

    group = file
    for part in filter(None, name.split("/")):
        link = group.get(part, getlink=True) if isinstance(group, h5py.Group) else None
        if link is not None and not isinstance(link, h5py.HardLink):
            raise InputError(f"{told} is behind a link; name the dataset itself")
        group = None if link is None else group.get(part)


def check_size(shape: tuple[int, ...]) -> None:
    """Refuse a record so large that no recording is: a packed file may promise any size."""
    if math.prod(shape) > MAX_SAMPLES:
        raise InputError(f"its array is {shape}, more than {MAX_SAMPLES} samples")
