"""Files that stand in a study for what lies in a bucket, so that DVC has something local to watch and to compare."""

from __future__ import annotations

import json

from cache.embeddings import open_embeddings
from cache.files import write_text
from cache.fingerprint import file_digest, text_digest
from cache.record_rows import RecordRows
from cache.signals import open_signals
from cache.storage.objects import ObjectPath
from pipeline.study.folder import Study
from pipeline.study.params import INGESTED


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


def write_ingested(study: Study) -> None:
    """Say what `ingest` has put into a bucket; nothing is written where records.parquet and signals.zarr lie here.

    The same content gives the same bytes, wherever it lies and whenever it was written.
    """
    content: dict[str, object] = {}
    if isinstance(study.records, ObjectPath):
        content["records"] = {
            "at": str(study.records),
            "rows": len(RecordRows(study.records)),
            "sha256": file_digest(study.records),
        }
    if isinstance(study.signals, ObjectPath):
        store = open_signals(study.signals)
        content["signals"] = {"at": str(study.signals), "rows": len(store), "content_sha256": store.content_digest()}
    if content:
        write_text(study.folder / INGESTED, json.dumps(content, indent=2) + "\n")
