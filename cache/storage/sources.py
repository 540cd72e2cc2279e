"""Reading parts of one file or object, at places that the reader chooses: what shards are read through."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from cache.storage.locations import Location
from cache.storage.objects import ObjectPath

GAP_BYTES = 256 * 1024
"""Ranges of an object that lie nearer are read in one request: that costs less than a second one."""

Buffer = memoryview | bytearray


class Source(Protocol):
    """An open file or object."""

    def end(self, size: int) -> bytes:
        """Return the last `size` bytes, or all where there are fewer."""

    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Say which (offset, size) will be read, so that they can be fetched together."""

    def read_into(self, buffers: Sequence[Buffer], offset: int) -> int:
        """Fill the buffers from `offset` on; gives the number of bytes read, fewer where the file is shorter."""


@contextlib.contextmanager
def opened(file: Location) -> Iterator[Source]:
    """Open a file or object for reading; OSError if that cannot be done."""
    if isinstance(file, ObjectPath):
        yield ObjectSource(file)
        return
    descriptor = os.open(file, os.O_RDONLY)
    try:
        yield FileSource(descriptor)
    finally:
        os.close(descriptor)


class FileSource:
    """A file: the kernel reads ahead and keeps what was read."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def end(self, size: int) -> bytes:
        """Return the last `size` bytes."""
        start = max(0, os.fstat(self._descriptor).st_size - size)
        return os.pread(self._descriptor, size, start)

    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Do nothing."""

    def read_into(self, buffers: Sequence[Buffer], offset: int) -> int:
        """Fill the buffers without a copy."""
        return os.preadv(self._descriptor, buffers, offset)


class ObjectFile(io.RawIOBase):
    """An object as a file that is read at any place, each reading a request: what tables are opened through."""

    def __init__(self, file: ObjectPath) -> None:
        self._file, self._place = file, 0
        self._size = file.size()

    def readable(self) -> bool:
        """Say so."""
        return True

    def seekable(self) -> bool:
        """Say so."""
        return True

    def tell(self) -> int:
        """Return the place of the next reading."""
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = max(0, start + offset)
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, as far as the object goes."""
        wanted = memoryview(buffer).cast("B")
        stop = min(self._place + len(wanted), self._size)
        if stop <= self._place:
            return 0
        content = self._file.read_range(self._place, stop)
        wanted[: len(content)] = content
        self._place += len(content)
        return len(content)


class ObjectSource:
    """An object: every request costs a round trip, so that ranges are fetched once, joined where they are near."""

    def __init__(self, file: ObjectPath) -> None:
        self._file = file
        self._fetched: list[tuple[int, memoryview]] = []

    def end(self, size: int) -> bytes:
        """Return the last `size` bytes."""
        return self._file.read_range(-size, None)

    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Fetch them all."""
        spans: list[list[int]] = []
        for offset, size in sorted(ranges):
            if spans and offset - spans[-1][1] <= GAP_BYTES:
                spans[-1][1] = max(spans[-1][1], offset + size)
            else:
                spans.append([offset, offset + size])
        self._fetched = [(start, memoryview(self._file.read_range(start, stop))) for start, stop in spans]

    def read_into(self, buffers: Sequence[Buffer], offset: int) -> int:
        """Fill the buffers from what was fetched; nothing where it was not expected, or the object is cut off."""
        for start, content in self._fetched:
            if start <= offset < start + len(content):
                return _fill(buffers, content[offset - start :])
        return 0


def _fill(buffers: Sequence[Buffer], content: memoryview) -> int:
    read = 0
    for buffer in buffers:
        part = content[read : read + len(buffer)]
        buffer[: len(part)] = part
        read += len(part)
    return read
