"""Reading parts of one file or object, at places that the reader chooses: what shards are read through."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Protocol

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
