"""Writing whole files and objects so that a reader sees the old one or the new one, also after a crash. Used by stores.

Small files of this machine alone: `cache.files`.
"""

from __future__ import annotations

import contextlib
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from cache.files import replacing, sync, write_text
from cache.storage.direct_io import write_pieces
from cache.storage.locations import Location
from cache.storage.objects import ObjectPath

Pieces = Iterable[np.ndarray | bytes]
Part = tuple[Location, Location, Pieces]
"""A file or object, the folder up to which names are flushed, and what it is to hold."""
Guard = Callable[[], None]
"""Raises where this process may no longer write (`Claims.confirm`)."""


def write_durably(file: Location, top: Location, pieces: Pieces, guard: Guard | None = None) -> None:
    """Write a file all or nothing and flush it, its name and the folders up to `top` to the disk; or put an object.

    What a killed writer left beside it is removed first.
    """
    write_all_durably([(file, top, pieces)], guard)


def write_all_durably(parts: Sequence[Part], guard: Guard | None = None) -> None:
    """Do what `write_durably` does for several files; the folders are flushed together, which is most of the cost."""
    folders: dict[Path, None] = {}
    for file, top, pieces in parts:
        if isinstance(file, ObjectPath):
            put(file, b"".join(piece if isinstance(piece, bytes) else piece.data for piece in pieces), guard)
            continue
        for left in file.parent.glob(f"{file.name}.*.partial"):
            left.unlink(missing_ok=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        _write_and_rename(file, pieces)
        folder = file.parent
        while folder != top:
            folders[folder] = None
            folder = folder.parent
    for folder in folders:
        sync(folder)


def put(file: ObjectPath, content: bytes, guard: Guard | None = None) -> None:
    """Put an object so that a process whose claim was taken over cannot put it over what its successor has put.

    Where there is none of this name it is made; where there is one, it is replaced if it is still the one that stood
    there before `guard` last found the claim to be valid. Both are single requests that the storage does or refuses.
    """
    while not file.create(content):
        tag = file.tag()
        if guard is not None:
            guard()
        if tag and file.replace(content, tag):
            return


@contextlib.contextmanager
def replacing_at(file: Location, guard: Guard | None = None) -> Iterator[Path]:
    """Give a temporary path of this machine; on success what was written there replaces a file or object, whole."""
    if not isinstance(file, ObjectPath):
        with replacing(file) as temporary:
            yield temporary
        return
    with tempfile.TemporaryDirectory(prefix="ensemble-") as folder:
        temporary = Path(folder) / file.name
        yield temporary
        put(file, temporary.read_bytes(), guard)


def store_text(file: Location, text: str, guard: Guard | None = None) -> None:
    """Write a small text as UTF-8, all or nothing."""
    if isinstance(file, ObjectPath):
        put(file, text.encode(), guard)
    else:
        write_text(file, text)


def _write_and_rename(file: Path, pieces: Pieces) -> None:
    temporary = file.with_name(f"{file.name}.{uuid.uuid4().hex}.partial")
    try:
        with temporary.open("wb", buffering=0) as handle:
            write_pieces(handle.fileno(), pieces)
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
