"""Paths from manifests and headers are untrusted: only what really lies inside the cohort's folder is opened."""

from __future__ import annotations

import errno
import os
import stat
from functools import lru_cache
from pathlib import Path

from cache.errors import InputError


def inside(folder: str | Path, relative: str) -> str:
    """Return the path of `relative` below `folder`, which must not leave it: no `..`, not absolute, no link out of it.

    Raises
    ------
    InputError
        If it leaves the folder or is no path at all. Whether the file exists is not looked at.
    """
    _check(relative)
    base = str(folder)
    path = os.path.join(base, relative)
    if not (_plain(os.path.dirname(path), base) and not _is_link(path)) and not _really_inside(path, base):
        raise InputError(f"path '{relative}' leaves the cohort's folder through a link")
    return path


def open_file(folder: str | Path, relative: str) -> tuple[int, int]:
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
        descriptor = _open(str(folder), relative)
    except FileNotFoundError:
        raise InputError(f"{os.path.basename(relative)} does not exist") from None
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


def _open(base: str, relative: str) -> int:
    above, _, name = relative.rpartition("/")
    # Without O_NONBLOCK a named pipe would be waited for.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    if name not in ("", ".") and _plain(f"{base}/{above}" if above else base, base):
        # The kernel itself refuses a link here, which spares looking first; millions of files are opened this way.
        try:
            return os.open(f"{base}/{relative}", flags | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
    return os.open(inside(base, relative), flags)


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
