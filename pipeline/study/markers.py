"""The file that stands in a study for a store of objects, so that DVC has something local to watch and to compare."""

from __future__ import annotations

import json

from cache.embeddings import open_embeddings
from cache.files import write_text
from cache.fingerprint import text_digest
from cache.storage.objects import ObjectPath
from pipeline.study.folder import Study


def write_marker(study: Study, expert: str) -> None:
    """Say what a store of objects holds; nothing is written for a store in a folder, which DVC watches itself.

    The same store gives the same bytes. `objects_sha256` is over the names, sizes and tags of all objects, and changes
    with any of them.
    """
    path = study.embedding(expert)
    if not isinstance(path, ObjectPath):
        return
    store, objects = open_embeddings(path), path.files()
    listed = (part for name in sorted(objects) for part in (name, str(objects[name].size), objects[name].tag))
    content = {
        "store": str(path),
        "fingerprint": store.fingerprint,
        "records": len(store),
        "objects": len(objects),
        "bytes": sum(entry.size for entry in objects.values()),
        "objects_sha256": text_digest(listed),
    }
    write_text(study.marker(expert), json.dumps(content, indent=2) + "\n")
