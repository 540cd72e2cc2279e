"""Paths from manifests and headers are untrusted: only what really lies inside the cohort's folder is opened."""

from __future__ import annotations

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
    if not relative or "\0" in relative or len(relative) > 4096:
        raise InputError(f"path {relative[:80]!r} is empty or not a path")
    parts = relative.replace("\\", "/").split("/")
    if os.path.isabs(relative) or ".." in parts:
        raise InputError(f"path '{relative}' leaves the cohort's folder")
    base = str(folder)
    path = os.path.join(base, relative)
    above = os.path.dirname(path)
    if not (_plain(above, base) and not _is_link(path)) and not _really_inside(path, base):
        raise InputError(f"path '{relative}' leaves the cohort's folder through a link")
    return path


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
