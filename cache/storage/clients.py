"""What stores ask of a client of an object storage: the seam between `cache.storage.objects` and the packages.

The clients: `fsspec_client` (S3, and whatever else fsspec reads) and `obstore_client` (Google Cloud Storage, Azure).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True)
class Entry:
    """One object as a listing tells it; `tag` changes with the content ("" where the storage has none)."""

    size: int
    tag: str


@dataclass(frozen=True)
class Tagged:
    """An object's content with what the storage says of it.

    Attributes
    ----------
    content
        All bytes.
    tag
        What `ObjectClient.replace` takes: it names this very content.
    written
        When it was put, by the storage's clock, in whole seconds.
    answered
        When the storage answered, by the same clock; None where the client does not pass that on.
    """

    content: bytes
    tag: str
    written: datetime
    answered: datetime | None = None


class ReadingClient(Protocol):
    """A client for one kind of URL (`s3://`, `gs://` ...). Every operation is one request, or as many as it names.

    What it raises is FileNotFoundError where there is no such object, and otherwise anything that `advice` knows.
    """

    def read(self, url: str, start: int, stop: int | None) -> bytes:
        """Return bytes from `start` (negative: from the end) to `stop`; fewer where the object is shorter."""

    def head(self, url: str) -> Entry | None:
        """Return size and tag, the one that `replace` takes; None where there is no such object."""

    def below(self, url: str) -> dict[str, Entry]:
        """Return all objects below a name, by their names from there on."""

    def children(self, url: str) -> Sequence[str]:
        """Return the last parts of the names right below one, of objects or not."""

    def advice(self, error: Exception) -> str | None:
        """Return what is wrong and how it is put right; None for a missing object, and for a fault of ours."""


class ObjectClient(ReadingClient, Protocol):
    """A client that writes too: it does conditional requests."""

    unused_tag: str
    """A tag that no object has, in the form that the storage understands."""
    rewrite_pause_s: float
    """Seconds that the storage wants between two writes of one object; 0 where it does not mind."""

    def create(self, url: str, content: bytes) -> str:
        """Put the object if there is none of this name; returns its tag, or "" if there is one."""

    def replace(self, url: str, content: bytes, tag: str) -> str:
        """Put the object if the one there has this tag; returns its new tag, or "" if it has another, or is gone."""

    def read_tagged(self, url: str) -> Tagged:
        """Return the object with what the storage says of it."""

    def delete(self, url: str) -> None:
        """Delete the object."""

    def delete_all(self, urls: Sequence[str]) -> None:
        """Delete objects of one bucket; those that are gone already are no error."""

    def copy(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Copy objects within one bucket, from the first name of each pair to the second."""
