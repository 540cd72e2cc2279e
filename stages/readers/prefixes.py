"""Finds files of a list whose paths begin elsewhere: a folder more or less before them than on this disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

N_TRIED = 20
"""Paths of a list that are looked for; a collection may be there in part."""
MOST_FOLDERS = 8


def relocated(folder: Path, paths: pd.Series, suffix: str, notes: list[str]) -> pd.Series:
    """Return a list's paths as they are below `folder`; as they stand where some are there, or none is anywhere.

    Paths with backslashes, absolute ones and those with other folders before them are cut from the left, or a folder of
    `folder` is put before them; `notes` says so.

    Parameters
    ----------
    suffix
        Of the file that each path names, `.hea` of a WFDB record.
    """
    given = [path for path in paths if isinstance(path, str) and path]
    tried = _tried(given)
    if not tried or _any_exists(folder, tried, suffix):
        return paths
    for before, n_cut in _ways(folder, tried):
        if _any_exists(folder, [_moved(path, before, n_cut) for path in tried], suffix):
            notes.append(
                f"paths of the list are taken from elsewhere: '{given[0][:80]}' is '{_moved(given[0], before, n_cut)}'"
            )
            moved = [_moved(path, before, n_cut) if isinstance(path, str) else path for path in paths]
            return pd.Series(moved, index=paths.index, dtype=object)
    return paths


def some_exist(folder: Path, paths: pd.Series, suffix: str) -> bool:
    """Whether some files of a list are there."""
    return _any_exists(folder, _tried([path for path in paths if isinstance(path, str) and path]), suffix)


def _tried(given: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(given[:: max(len(given) // N_TRIED, 1)]))[:N_TRIED]


def _ways(folder: Path, tried: Sequence[str]) -> list[tuple[str, int]]:
    """Return (folder to put before, folders to cut off), those first that change least."""
    deepest = max(len(_parts(path)) for path in tried)
    below = sorted(name for name in os.listdir(folder) if (folder / name).is_dir() and name[0] != ".")
    cuts = range(min(deepest, MOST_FOLDERS))
    return [("", n_cut) for n_cut in cuts] + [(name, n_cut) for n_cut in cuts for name in below[:MOST_FOLDERS]]


def _any_exists(folder: Path, tried: Sequence[str], suffix: str) -> bool:
    inside = (path for path in tried if not path.startswith("/") and ".." not in path.split("/"))
    return any(_is_file(folder / f"{path}{suffix}") for path in inside)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _parts(path: str) -> list[str]:
    return [part for part in path.replace("\\", "/").split("/") if part not in ("", ".")]


def _moved(path: str, before: str, n_cut: int) -> str:
    parts = _parts(path)
    return "/".join([*([before] if before else []), *parts[min(n_cut, len(parts) - 1) :]])
