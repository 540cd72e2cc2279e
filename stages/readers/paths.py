"""Paths from manifests and headers are untrusted: only what really lies inside the cohort's folder is opened."""

from __future__ import annotations

import errno
import os
import stat
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from cache.errors import InputError

FOLLOW_LINKS = "cohort.options: {follow_links: true} (predict: --follow-links)"


class DataFolder(NamedTuple):
    """A cohort's folder, and whether links in it may lead out of it (a study's own decision, never a manifest's)."""

    path: str
    follow_links: bool = False


def inside(folder: str | Path | DataFolder, relative: str) -> str:
    """Return the path of `relative` below `folder`, which must not leave it: no `..`, not absolute, no link out of it.

    Raises
    ------
    InputError
        If it leaves the folder or is no path at all. Whether the file exists is not looked at.
    """
    _check(relative)
    base, follow_links = _folder(folder)
    path = os.path.join(base, relative)
    plain = follow_links or (_plain(os.path.dirname(path), base) and not _is_link(path))
    if not plain and not _really_inside(path, base):
        raise InputError(
            f"path '{relative}' leaves the cohort's folder through {_link_of(relative, base)}; {FOLLOW_LINKS} allows it"
        )
    return path


def open_file(folder: str | Path | DataFolder, relative: str) -> tuple[int, int]:
    """Open a file below `folder` for reading, as `inside` allows it.

    Returns
    -------
    Its descriptor, which the caller closes, and its size in bytes.

    Raises
    ------
    InputError
        It leaves the folder, does not exist, is no file or cannot be opened.
    """
    _check(relative)
    try:
        descriptor = _open(DataFolder(*_folder(folder)), relative)
    except FileNotFoundError:
        raise InputError(f"{os.path.basename(relative)} does not exist{_lost_link(folder, relative)}") from None
    except OSError as error:
        raise InputError(f"{os.path.basename(relative)} cannot be read ({error.strerror})") from error
    held = os.fstat(descriptor)
    if not stat.S_ISREG(held.st_mode):
        os.close(descriptor)
        raise InputError(f"{os.path.basename(relative)} is not a file")
    return descriptor, held.st_size


def _check(relative: str) -> None:
    if not relative or "\0" in relative or len(relative) > 4096:
        raise InputError(f"path {relative[:80]!r} is empty or not a path")
    if relative[0] == "/" or (".." in relative and ".." in relative.replace("\\", "/").split("/")):
        raise InputError(f"path '{relative}' leaves the cohort's folder")


def _folder(folder: str | Path | DataFolder) -> tuple[str, bool]:
    return folder if isinstance(folder, DataFolder) else (str(folder), False)


def _link_of(relative: str, base: str) -> str:
    """Name the first link on the way to a path."""
    parts = relative.split("/")
    ways = ("/".join(parts[: k + 1]) for k in range(len(parts)))
    link = next((way for way in ways if _is_link(f"{base}/{way}")), relative)
    return f"a link to a folder, '{link}'" if os.path.isdir(f"{base}/{link}") else "a link"


def _lost_link(folder: str | Path | DataFolder, relative: str) -> str:
    """Say of a file that is a link to nothing what it may be."""
    path = os.path.join(_folder(folder)[0], relative)
    return ", it is a link to a file that is not here (`datalad get`, `dvc pull`?)" if _is_link(path) else ""


def _open(folder: DataFolder, relative: str) -> int:
    base = folder.path
    above, _, name = relative.rpartition("/")
    # Without O_NONBLOCK a named pipe would be waited for.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    if not folder.follow_links and name not in ("", ".") and _plain(f"{base}/{above}" if above else base, base):
        # The kernel itself refuses a link here, which spares looking first; millions of files are opened this way.
        try:
            return os.open(f"{base}/{relative}", flags | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
    return os.open(inside(folder, relative), flags)


@lru_cache(maxsize=65536)
def _plain(directory: str, base: str) -> bool:
    """Whether no component between `base` and `directory` is a link; the answers are kept, records share folders."""
    if len(directory) <= len(base):
        return True
    return _plain(os.path.dirname(directory), base) and not _is_link(directory)


def _is_link(path: str) -> bool:
    try:
        return stat.S_ISLNK(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def _really_inside(path: str, base: str) -> bool:
    root = os.path.realpath(base)
    return os.path.commonpath([os.path.realpath(path), root]) == root
