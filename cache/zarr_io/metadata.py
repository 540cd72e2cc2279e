"""A store's metadata, kept twice: the group `spare` holds a copy of every other zarr.json, and its digest.

Chunks carry checksums, zarr.json files do not: a flipped bit there would change a layer's name or a shape unseen, and a
lost one would cost every shard. With the copy both are found, and put right.
"""

from __future__ import annotations

import json
from pathlib import Path

from cache.fingerprint import text_digest
from cache.storage.locations import METADATA, Location
from cache.storage.objects import ObjectPath
from cache.storage.writing import Guard, store_text

SPARE = "spare"


def _texts(path: Location) -> dict[str, str]:
    """Return the text of every zarr.json of a store but the spare one, by its path within the store."""
    folders = path.children() if isinstance(path, ObjectPath) else sorted(p for p in path.glob("*") if p.is_dir())
    names = [METADATA, *(f"{folder.name}/{METADATA}" for folder in folders if folder.name not in (SPARE, METADATA))]
    found = {name: _text(path / name) for name in names}
    return {name: text for name, text in found.items() if text is not None}


def _text(file: Location) -> str | None:
    try:
        return file.read_bytes().decode("utf-8", "replace")
    except (FileNotFoundError, IsADirectoryError):
        return None


def _digest(texts: dict[str, str]) -> str:
    return text_digest(item for name in sorted(texts) for item in (name, texts[name]))


def seal(path: Location, guard: Guard | None = None) -> None:
    """Copy a store's metadata as they are now; to be called whenever they were changed on purpose."""
    _write_spare(path, _texts(path), guard)


def _write_spare(path: Location, texts: dict[str, str], guard: Guard | None, **more: bool) -> None:
    attributes = {"files": texts, "sha256": _digest(texts), **more}
    content = {"attributes": attributes, "zarr_format": 3, "node_type": "group"}
    store_text(path / SPARE / METADATA, json.dumps(content, indent=2), guard)


def announce_growth(path: ObjectPath, fresh: Path, guard: Guard | None) -> None:
    """Write the copies of a store that is to be extended, before its metadata: from here on `finish_growth` can do it.

    Parameters
    ----------
    fresh
        A folder with the new metadata.
    """
    _write_spare(path, _texts(fresh), guard, growing=True)


def is_growing(path: ObjectPath) -> bool:
    """Whether an extension was announced and is not finished."""
    content = _text(path / SPARE / METADATA)
    return content is not None and '"growing": true' in content and _spare(path) is not None


def finish_growth(path: ObjectPath, guard: Guard | None) -> None:
    """Write the metadata that an extension has announced, if there is one."""
    texts = _spare(path) if is_growing(path) else None
    if texts is None:
        return
    for name in sorted(texts):
        store_text(path / name, texts[name], guard)
    _write_spare(path, texts, guard)


def _spare(path: Location) -> dict[str, str] | None:
    """Return the copies if they are intact."""
    try:
        content = json.loads((path / SPARE / METADATA).read_bytes())
        files, digest = content["attributes"]["files"], content["attributes"]["sha256"]
        intact = (content["zarr_format"], content["node_type"]) == (3, "group") and len(content) == 3
        if not intact or _digest(files) != digest:
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return dict(files)


def metadata_faults(path: Location) -> list[str]:
    """Return the metadata files of a store that are not as they were written; none of a store without copies."""
    if not _has_spare(path):
        return []
    spare = _spare(path)
    if spare is None:
        return [f"{SPARE}/{METADATA}"]
    now = _texts(path)
    return sorted(name for name in spare.keys() | now.keys() if spare.get(name) != now.get(name))


def _has_spare(path: Location) -> bool:
    return path / SPARE in path.children() if isinstance(path, ObjectPath) else (path / SPARE).exists()


def restore_metadata(path: Location, guard: Guard | None = None) -> list[str]:
    """Put right what `metadata_faults` finds, from whichever copy is intact, and return those files."""
    faults = metadata_faults(path)
    if not faults:
        return []
    if isinstance(path, ObjectPath) and is_growing(path):
        finish_growth(path, guard)
        return faults
    spare = _spare(path)
    if spare is None:
        seal(path, guard)
        return faults
    for name in faults:
        if name in spare:
            store_text(path / name, spare[name], guard)
        else:
            (path / name).unlink()
    return faults
