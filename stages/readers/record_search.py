"""Finds the WFDB records of a folder and of all folders below it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from cache.errors import InputError
from stages.readers.paths import FOLLOW_LINKS, DataFolder, open_file
from stages.readers.wfdb.header import MAX_HEADER_BYTES, parse_header

_SEGMENTED = re.compile(rb"^[ \t]*[^\s/#]+/[0-9]", re.MULTILINE)
"""What the header of a record of segments has; other headers need not be parsed to know that they are none."""
_KEPT_BY_TOOLS = frozenset({".git", ".dvc", ".datalad", ".snapshot", "__MACOSX", ".Trashes", "$RECYCLE.BIN"})
"""Folders of version control and of file systems: git-annex keeps files in them under names that end in .hea."""
APPLE_DOUBLE = "._"
"""macOS keeps what a disk cannot hold of `a.hea` in `._a.hea`."""
N_LINKS_NAMED = 3
HEADER = ".hea"


def find_records(folder: DataFolder, notes: list[str]) -> list[str]:
    """Return the paths of all records below `folder`, without suffix, sorted.

    Links to folders are followed only where the study allows it; `notes` names them. A header that another one names as
    its segment is no record of its own: one ECG would count several times, and as several patients. `notes` gets a line
    where there are such.
    """
    found: list[str] = []
    skipped: list[str] = []
    for relative, names in _folders(folder, skipped):
        headers = (name for name in names if name.endswith(".hea") and not name.startswith(APPLE_DOUBLE))
        found += [name[:-4] if relative == "." else f"{Path(relative).as_posix()}/{name[:-4]}" for name in headers]
    segments = _segments(folder, found)
    if segments:
        notes.append(f"{len(segments)} headers are segments of other records and not listed by themselves")
    if skipped and found:
        notes.append(f"links to folders are not followed: {named_paths(skipped)}; {FOLLOW_LINKS} does")
    return sorted(set(found) - segments)


def files_below(folder: DataFolder, notes: list[str]) -> list[str]:
    """Return the paths of all files below `folder`, sorted; hidden ones and those of version control are left out.

    `notes` gets a line where links to folders are not followed.
    """
    found: list[str] = []
    skipped: list[str] = []
    for relative, names in _folders(folder, skipped):
        above = "" if relative == "." else f"{Path(relative).as_posix()}/"
        found += [above + name for name in names if not name.startswith(".")]
    if skipped:
        notes.append(f"links to folders are not followed: {named_paths(skipped)}; {FOLLOW_LINKS} does")
    return sorted(found)


def no_record(folder: DataFolder) -> InputError:
    """Return the error of a folder without a WFDB record, which names links that were not followed."""
    skipped: list[str] = []
    for _ in _folders(folder, skipped):
        pass
    links = f"; links to folders are not followed ({named_paths(skipped)}), {FOLLOW_LINKS} does" if skipped else ""
    return InputError(f"{folder.path}: holds no WFDB header (*.hea), nor does any folder below it{links}")


def _folders(folder: DataFolder, skipped: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Give each folder below one, as a path from there, and the names of its files; links not followed are named."""
    seen = {os.path.realpath(folder.path)}
    for above, folders, files in os.walk(folder.path, followlinks=folder.follow_links):
        relative = os.path.relpath(above, folder.path)
        kept = []
        for name in sorted(folders):
            path = os.path.join(above, name)
            if name in _KEPT_BY_TOOLS:
                continue
            if os.path.islink(path):
                # A link may lead back to a folder above it.
                if not folder.follow_links:
                    skipped.append(name if relative == "." else f"{relative}/{name}")
                if not folder.follow_links or os.path.realpath(path) in seen:
                    continue
                seen.add(os.path.realpath(path))
            kept.append(name)
        folders[:] = kept
        yield relative, files


def named_paths(paths: Sequence[str]) -> str:
    """Name the first of some paths, for a message."""
    more = f" and {len(paths) - N_LINKS_NAMED} more" if len(paths) > N_LINKS_NAMED else ""
    return ", ".join(f"'{path}'" for path in paths[:N_LINKS_NAMED]) + more


def _segments(folder: DataFolder, paths: list[str]) -> set[str]:
    """Return those of `paths` that others name as their segments, and that have none themselves."""
    named = {path: names for path in paths if (names := _named_segments(folder, path))}
    return {name for names in named.values() for name in names if name not in named}.intersection(paths)


def _named_segments(folder: DataFolder, path: str) -> list[str]:
    """Return the paths of a record's segments; none where it has none, or its header cannot be read."""
    try:
        descriptor, size = open_file(folder, f"{path}.hea")
        with os.fdopen(descriptor, "rb") as file:
            content = file.read(min(size, MAX_HEADER_BYTES + 1))
        header = parse_header(content) if _SEGMENTED.search(content) else None
    except (InputError, OSError):
        return []
    lines = header.signal_lines if header is not None and header.n_segments else ()
    above = path[: path.rfind("/") + 1]
    return [above + line.split()[0] for line in lines]
