"""A store's metadata, kept twice: the group `spare` holds a copy of every other zarr.json, and its digest.

Chunks carry checksums, zarr.json files do not: a flipped bit there would change a layer's name or a shape unseen, and a
lost one would cost every shard. With the copy both are found, and put right.
"""

from __future__ import annotations

import json
from pathlib import Path

from cache.files import write_text
from cache.fingerprint import text_digest

SPARE = "spare"
METADATA = "zarr.json"


def _texts(path: Path) -> dict[str, str]:
    """Return the text of every zarr.json of a store but the spare one, by its path within the store."""
    files = [path / METADATA, *sorted(path.glob(f"*/{METADATA}"))]
    return {
        str(file.relative_to(path)): file.read_bytes().decode("utf-8", "replace")
        for file in files
        if file.is_file() and file.parent.name != SPARE
    }


def _digest(texts: dict[str, str]) -> str:
    return text_digest(item for name in sorted(texts) for item in (name, texts[name]))


def seal(path: Path) -> None:
    """Copy a store's metadata as they are now; to be called whenever they were changed on purpose."""
    texts = _texts(path)
    content = {"attributes": {"files": texts, "sha256": _digest(texts)}, "zarr_format": 3, "node_type": "group"}
    write_text(path / SPARE / METADATA, json.dumps(content, indent=2))


def _spare(path: Path) -> dict[str, str] | None:
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


def metadata_faults(path: Path) -> list[str]:
    """Return the metadata files of a store that are not as they were written; none of a store without copies."""
    if not (path / SPARE).exists():
        return []
    spare = _spare(path)
    if spare is None:
        return [f"{SPARE}/{METADATA}"]
    now = _texts(path)
    return sorted(name for name in spare.keys() | now.keys() if spare.get(name) != now.get(name))


def restore_metadata(path: Path) -> list[str]:
    """Put right what `metadata_faults` finds, from whichever copy is intact, and return those files."""
    faults = metadata_faults(path)
    if not faults:
        return []
    spare = _spare(path)
    if spare is None:
        seal(path)
        return faults
    for name in faults:
        if name in spare:
            write_text(path / name, spare[name])
        else:
            (path / name).unlink()
    return faults
