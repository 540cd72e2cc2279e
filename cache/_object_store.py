"""Objects as zarr reads them: what stores are opened through whose shards are packed, or laid out by another tool."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import Any

from zarr.storage import FsspecStore

from cache.objects import ObjectPath, file_system, storage_error


class ReadOnlyObjects(FsspecStore):
    """zarr's own store over fsspec, whose errors say what is wrong with the storage."""

    where: ObjectPath

    @classmethod
    def of(cls, path: ObjectPath) -> ReadOnlyObjects:
        """Open everything below a name."""
        files = file_system(path.protocol, os.getpid(), asynchronous=True)
        if not files.async_impl:
            from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

            files = AsyncFileSystemWrapper(files, asynchronous=True)
        made = cls(files, read_only=True, path=files._strip_protocol(path.url), allowed_exceptions=(FileNotFoundError,))
        made.where = path
        return made

    def with_read_only(self, read_only: bool = False) -> ReadOnlyObjects:
        """Return itself: it is never written to."""
        if not read_only:
            raise ValueError(f"{self.where}: is read-only")
        return self

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        """Read an object or a part of it."""
        with self._told():
            return await super().get(key, prototype, byte_range)

    async def get_partial_values(self, prototype: Any, key_ranges: Iterable[tuple[str, Any]]) -> Any:
        """Read parts of objects."""
        with self._told():
            return await super().get_partial_values(prototype, key_ranges)

    async def exists(self, key: str) -> bool:
        """Whether there is an object."""
        with self._told():
            return await super().exists(key)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            told = storage_error(self.where, error)
            if told is None:
                raise
            raise told from error
