"""Objects as zarr reads them: what stores are opened through whose shards are packed, or laid out by another tool.

Written anew, and not taken from zarr, so that there is one client a process, whose errors say what is wrong with the
storage: zarr's own takes a second client, and a refusal for a missing chunk.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from cache.storage.objects import ObjectPath


class ReadOnlyObjects(Store):
    """Everything below a name, for reading."""

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(self, path: ObjectPath) -> None:
        super().__init__(read_only=True)
        self.path = path

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ReadOnlyObjects) and other.path == self.path

    def __hash__(self) -> int:
        return hash(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def with_read_only(self, read_only: bool = False) -> Store:
        """Return itself: it is never written to."""
        if not read_only:
            raise ValueError(f"{self.path} is read-only")
        return self

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Read an object or a part of it; None where there is none."""
        try:
            content = await asyncio.to_thread(self.path.joinpath(key).read_range, *_limits(byte_range))
        except FileNotFoundError:
            return None
        return prototype.buffer.from_bytes(content)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Read parts of objects, several at a time."""
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def exists(self, key: str) -> bool:
        """Whether there is an object of that name."""
        return await asyncio.to_thread(self.path.joinpath(key).exists)

    async def set(self, key: str, value: Buffer) -> None:  # noqa: ARG002
        """Refuse."""
        raise ValueError(f"{self.path} is read-only")

    async def delete(self, key: str) -> None:  # noqa: ARG002
        """Refuse."""
        raise ValueError(f"{self.path} is read-only")

    async def list(self) -> AsyncIterator[str]:
        """Give all names."""
        for name in await asyncio.to_thread(self.path.files):
            yield name

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Give all names that begin so."""
        async for name in self.list():
            if name.startswith(prefix):
                yield name

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Give the names right below one."""
        folder = self.path.joinpath(prefix.strip("/")) if prefix.strip("/") else self.path
        for path in await asyncio.to_thread(folder.children):
            yield path.name


def _limits(part: ByteRequest | None) -> tuple[int, int | None]:
    """Return a request's first byte (from the end, where negative) and the one after its last."""
    if isinstance(part, RangeByteRequest):
        return part.start, part.end
    if isinstance(part, OffsetByteRequest):
        return part.offset, None
    return (-part.suffix, None) if isinstance(part, SuffixByteRequest) else (0, None)
