"""Names of objects behind a URL, such as `s3://bucket/study/embeddings`, with the few operations stores need.

Not here: what a store is made of, claims on it (`cache.claims`), the clients that do the requests (`clients`).
A client's package is imported when a name is first touched. Credentials and endpoint come from where it looks for them
(the environment, its own files); nothing is taken as an argument, so that nothing can end up in a file of a study.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import cast

from cache.errors import EnsembleError, StorageError, UsageError
from cache.storage.clients import Entry, ObjectClient, ReadingClient, Tagged
from cache.storage.fsspec_client import S3, FsspecClient, S3Client
from cache.storage.obstore_client import AZURE, GOOGLE, AzureClient, GoogleClient

WRITABLE = (*S3, *GOOGLE, *AZURE)
"""Protocols whose storages do conditional requests."""


@dataclass(frozen=True, order=True)
class ObjectPath:
    """The name of an object, or of all objects below it; the counterpart of `pathlib.Path`, of which it has a part.

    A name alone is never looked at: making one costs nothing, and one can be sent to other processes.

    Raises
    ------
    StorageError
        On every access that fails for another reason than that there is no such object: a missing bucket or package,
        refused credentials, a server that does not answer.
    """

    url: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", self.url.rstrip("/"))

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str | Path) -> ObjectPath:
        return ObjectPath(f"{self.url}/{Path(name).as_posix()}")

    def joinpath(self, *names: str) -> ObjectPath:
        """Return the object below this one."""
        return ObjectPath("/".join((self.url, *names)))

    @property
    def name(self) -> str:
        """Last part of the name."""
        return self.url.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """Last part without its suffix."""
        return posixpath.splitext(self.name)[0]

    @property
    def parent(self) -> ObjectPath:
        """The name without its last part."""
        return ObjectPath(self.url.rpartition("/")[0])

    @property
    def protocol(self) -> str:
        """Such as `s3`."""
        return self.url.partition("://")[0]

    def absolute(self) -> ObjectPath:
        """Return itself: a URL is the same everywhere."""
        return self

    # ---- reading -----------------------------------------------------------------------------------------------------

    def read_bytes(self) -> bytes:
        """Read the whole object in one request; FileNotFoundError if there is none."""
        return self.read_range(0, None)

    def read_range(self, start: int, stop: int | None) -> bytes:
        """Read bytes from `start` (negative: from the end) to `stop`; fewer, or none, where the object is shorter."""
        if stop is not None and stop <= start:
            return b""  # no storage has a range without bytes
        with _client_of(self) as client:
            return client.read(self.url, start, stop)

    def size(self) -> int:
        """Return the bytes of the object; FileNotFoundError if there is none."""
        with _client_of(self) as client:
            entry = client.head(self.url)
        # Asked for an object alone, a storage does not say why it is not given: it may be the bucket that is missing.
        return len(self.read_bytes()) if entry is None else entry.size

    def exists(self) -> bool:
        """Whether there is an object of this very name."""
        with _client_of(self) as client:
            return client.head(self.url) is not None

    def files(self) -> dict[str, Entry]:
        """List all objects below this name, by their names from here on."""
        with _client_of(self) as client:
            return client.below(self.url)

    def children(self) -> list[ObjectPath]:
        """Return the names right below this one, objects or not, in order."""
        with _client_of(self) as client:
            return sorted(self / name for name in client.children(self.url))

    # ---- writing -----------------------------------------------------------------------------------------------------

    def require_writable(self) -> None:
        """Refuse a storage without conditional requests, which all writing rests on (`cache.claims.leases`).

        Raises
        ------
        UsageError
            Any protocol but those of S3, Google Cloud Storage and Azure.
        """
        if self.protocol not in WRITABLE:
            raise UsageError(
                f"{self}: can only be read; stores are written to s3://..., gs://..., az://... or to a folder"
            )

    def create(self, content: bytes) -> str:
        """Write the object, whole, if there is none of this name; gives its tag, or "" if there is one."""
        with _writing_client_of(self) as client:
            return client.create(self.url, content)

    def replace(self, content: bytes, tag: str) -> str:
        """Write the object, whole, if it is still the one that has this tag; gives its new tag, or "" if it is not."""
        with _writing_client_of(self) as client:
            return client.replace(self.url, content, tag)

    def tag(self) -> str:
        """Return what tells this content from another; "" if there is no such object."""
        with _writing_client_of(self) as client:
            entry = client.head(self.url)
        return "" if entry is None else entry.tag

    def read_tagged(self) -> Tagged:
        """Return the object with its tag and the storage's times; FileNotFoundError if there is none."""
        with _writing_client_of(self) as client:
            return client.read_tagged(self.url)

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the object."""
        with _writing_client_of(self) as client:
            try:
                client.delete(self.url)
            except FileNotFoundError:
                if not missing_ok:
                    raise

    def copy(self, names: list[str], target: ObjectPath) -> None:
        """Copy objects below this name to the same names below another of this storage; the last of them at the end."""
        pairs = [(str(self / name), str(target / name)) for name in names]
        for part in (pairs[:-1], pairs[-1:]):
            with _writing_client_of(self) as client:
                if part:
                    client.copy(part)

    def delete(self, names: list[str]) -> None:
        """Delete objects below this name, many at a time."""
        with _writing_client_of(self) as client:
            if names:
                client.delete_all([str(self / name) for name in names])

    @property
    def unused_tag(self) -> str:
        """A tag that no object of this storage has."""
        with _writing_client_of(self) as client:
            return client.unused_tag

    @property
    def rewrite_pause_s(self) -> float:
        """Seconds that this storage wants between two writes of one object."""
        with _writing_client_of(self) as client:
            return client.rewrite_pause_s


def is_url(location: str | Path | ObjectPath) -> bool:
    """Whether a location is behind fsspec, and no path of this machine."""
    return isinstance(location, ObjectPath) or "://" in str(location)


@lru_cache
def client_for(protocol: str, process: int) -> ReadingClient:
    """Return the client for one protocol; one a process, because its connections do not survive a fork."""
    del process
    if protocol in S3:
        return S3Client(protocol)
    if protocol in GOOGLE:
        return GoogleClient(protocol)
    return AzureClient(protocol) if protocol in AZURE else FsspecClient(protocol)


@contextlib.contextmanager
def _client_of(path: ObjectPath) -> Iterator[ReadingClient]:
    """Give the client, and turn what it raises into one line; FileNotFoundError stays for an object that is missing."""
    client = client_for(path.protocol, os.getpid())
    try:
        yield client
    except EnsembleError:
        raise
    except Exception as error:
        advice = client.advice(error)
        if advice is None:
            raise
        raise StorageError(f"{path}: {advice}") from error


@contextlib.contextmanager
def _writing_client_of(path: ObjectPath) -> Iterator[ObjectClient]:
    path.require_writable()
    with _client_of(path) as client:
        yield cast(ObjectClient, client)
