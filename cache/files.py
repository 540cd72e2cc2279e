"""Writing single files so that a reader sees the old one or the whole new one, also after a crash or a power cut."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path


def sync(path: Path) -> None:
    """Flush a file's bytes (or a folder's entries) to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success it durably replaces `path`, on an error it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def staged(paths: Iterable[Path]) -> Iterator[dict[Path, Path]]:
    """Give a draft for every path; on success the drafts replace the paths in their order, on an error none does.

    A crash between two replacements leaves new files before old ones: put last the one that names the others.

    Examples
    --------
    >>> with staged([Path("a.json"), Path("b.json")]) as drafts:
    ...     drafts[Path("a.json")].write_text("{}")
    ...     drafts[Path("b.json")].write_text("{}")
    """
    with contextlib.ExitStack() as stack:
        drafts = {}
        for path in reversed(list(paths)):  # an exit stack closes what was opened last first
            drafts[path] = stack.enter_context(replacing(path))
        yield dict(reversed(drafts.items()))


def link_or_copy(file: Path, target: Path) -> None:
    """Give a file a second name, or a copy where the disk has no links; makes the folders above `target`.

    Only for files that are replaced and never written into.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, target)
    except OSError:
        shutil.copy2(file, target)


def write_text(path: Path, text: str) -> None:
    """Write a text file as UTF-8, all or nothing."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
