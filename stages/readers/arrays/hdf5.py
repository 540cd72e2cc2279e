"""HDF5 files of recordings, opened once a process. Needs h5py, which is imported only here and only then.

A file may point to others (links, external storage, virtual datasets), which are not of the cohort's folder: refused.
So is what unpacks to more than it says.
"""

from __future__ import annotations

import itertools
import math
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from cache.errors import InputError
from stages.readers.wfdb.limits import MAX_SAMPLES

MAX_CHUNK_BYTES = 1 << 28
"""One sample of a chunk cannot be read without unpacking all of it."""
MAX_CHUNKS = 10_000
"""Chunks that are looked at for one row."""
GZIP, LZF = 1, 32000
_PLAIN = (2, 3)  # shuffle and fletcher32 change no size, but for a checksum
_GROWTH = {GZIP: 1032, LZF: 100}
"""Bytes that one packed byte can stand for, at most."""
_PIECE_BYTES = 1 << 24
CHECKSUM_BYTES = 4
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
def _opened(path: str) -> _Opened:  # noqa: ARG001
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


class Hdf5Rows:
    """The rows of a dataset. What their chunks unpack to is looked at before HDF5 makes room for it."""

    def __init__(self, found: Any, label: str) -> None:
        self._dataset, self._label = found, label
        self.shape: tuple[int, ...] = found.shape
        pipeline = found.id.get_create_plist()
        self._filters = [pipeline.get_filter(k)[0] for k in range(pipeline.get_nfilters())]
        packing = [code for code in self._filters if code not in _PLAIN]
        if len(packing) > 1 or not set(packing) <= set(_GROWTH):
            raise InputError(f"{label} is packed by other filters than one of gzip and lzf; write it anew")
        self._growth = _GROWTH[packing[0]] if packing else 0

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, row: int | slice) -> np.ndarray:
        with _naming_damage(self._label):
            if self._growth:
                self._check_chunks(range(len(self))[row] if isinstance(row, slice) else range(row, row + 1))
            return np.asarray(self._dataset[row])

    def _check_chunks(self, rows: range) -> None:
        """Refuse chunks that unpack to more than their shape has: HDF5 goes on unpacking whatever comes."""
        spans = [(rows.start, rows.stop), *((0, n) for n in self.shape[1:])]
        sizes = self._dataset.chunks
        starts = [range(low // n * n, high, n) for (low, high), n in zip(spans, sizes, strict=True)]
        if math.prod(map(len, starts)) > MAX_CHUNKS:
            raise InputError(f"{self._label} has more than {MAX_CHUNKS} chunks to a row; write larger ones")
        n_bytes = math.prod(sizes) * self._dataset.dtype.itemsize + CHECKSUM_BYTES
        for place in itertools.product(*starts):
            n_packed = self._dataset.id.get_chunk_info_by_coord(place).size
            if n_packed * self._growth <= MAX_CHUNK_BYTES:
                continue
            if GZIP not in self._filters or n_packed > n_bytes + n_bytes // 100:
                raise InputError(f"{self._label} has a packed chunk of {n_packed} bytes; write smaller ones")
            if self._unpacks_beyond(place, n_bytes):
                raise InputError(f"{self._label} has a chunk that unpacks to more than its {n_bytes} bytes")

    def _unpacks_beyond(self, place: tuple[int, ...], limit: int) -> bool:
        """Whether a chunk packed by gzip holds more than `limit` bytes, in bounded memory."""
        skipped, packed = self._dataset.id.read_direct_chunk(place)
        if skipped >> self._filters.index(GZIP) & 1:
            return False
        unpacking, total = zlib.decompressobj(), 0
        while packed and not unpacking.eof and total <= limit:
            total += len(unpacking.decompress(packed, _PIECE_BYTES))
            packed = unpacking.unconsumed_tail
        return total > limit


@contextmanager
def _naming_damage(label: str) -> Iterator[None]:
    """Name a file that is damaged; HDF5 gives errors of any type for one."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{label} cannot be read ({' '.join(str(error).split())[:120]})") from error


def dataset(path: str, name: str, n_axes: int) -> Hdf5Rows:
    """Return a dataset of a file.

    Raises
    ------
    InputError
        The file is not there, damaged or not HDF5, h5py is not installed, or the dataset is not one of numbers with
        `n_axes` axes that lie in this file, in chunks that fit the memory.
    """
    label = f"{Path(path).name}: dataset '{name}'"
    with _naming_damage(label):
        return _dataset(_opened(path).file(path), path, name, n_axes, label)


def _dataset(file: Any, path: str, name: str, n_axes: int, label: str) -> Hdf5Rows:
    _check_links(file, name, label)
    found = file.get(name)
    if getattr(found, "ndim", None) != n_axes or found.dtype.kind not in "fiu":
        raise InputError(f"{Path(path).name} has no dataset '{name}' of numbers with {n_axes} axes")
    if found.is_virtual or found.external:
        raise InputError(f"{label} keeps its samples in other files; write them into this one")
    if found.chunks and math.prod(found.chunks) * found.dtype.itemsize > MAX_CHUNK_BYTES:
        raise InputError(
            f"{label} has chunks of {found.chunks}, more than {MAX_CHUNK_BYTES >> 20} MB; write smaller ones"
        )
    return Hdf5Rows(found, label)


def _check_links(file: Any, name: str, label: str) -> None:
    """Refuse a name on whose way a link lies: it may lead to any file."""
    import h5py

    group = file
    for part in filter(None, name.split("/")):
        link = group.get(part, getlink=True) if isinstance(group, h5py.Group) else None
        if link is not None and not isinstance(link, h5py.HardLink):
            raise InputError(f"{label} is behind a link; name the dataset itself")
        group = None if link is None else group.get(part)


def check_size(shape: tuple[int, ...]) -> None:
    """Refuse a record so large that no recording is: a packed file may promise any size."""
    if math.prod(shape) > MAX_SAMPLES:
        raise InputError(f"its array is {shape}, more than {MAX_SAMPLES} samples")
