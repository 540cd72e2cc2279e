"""What `ensemble cache` prints: which stores there are, whether they are current, and whether they read as written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cache.embeddings import EmbeddingStore, open_embeddings
from cache.errors import EnsembleError
from pipeline.study import Study

if TYPE_CHECKING:
    from rich.table import Table


def stores_table(study: Study) -> Table:
    """Return one row a store: expert, rows done, bytes, fingerprint, current or stale."""
    from rich.table import Table

    table = Table("expert", "records", "done", "size", "fingerprint", "state")
    for path in _stores(study):
        try:
            store = open_embeddings(path)
        except EnsembleError as error:
            table.add_row(path.stem, "", "", _size(path), "", f"damaged: {error}")
            continue
        done = sum(r.stop - r.start for s in range(store.n_shards) if store.complete(s) for r in [store.rows_of(s)])
        table.add_row(path.stem, str(len(store)), str(done), _size(path), store.fingerprint[:12], _state(study, store))
    return table


def verify(study: Study) -> Iterator[str]:
    """Read every shard of every store; give one line for each that does not read as it was written."""
    for path in _stores(study):
        try:
            store = open_embeddings(path)
        except EnsembleError as error:
            yield str(error)
            continue
        for shard in range(store.n_shards):
            yield from _verify_shard(store, shard)


def _verify_shard(store: EmbeddingStore, shard: int) -> Iterator[str]:
    rows = store.rows_of(shard)
    try:
        if not store.complete(shard):
            yield f"{store.path}: shard {shard} (records {rows.start}..{rows.stop}) is missing"
            return
        store.read_layers(rows)
        store.read_embedding(rows)
        if store.output is not None:
            store.read_output(rows)
    except EnsembleError as error:
        yield f"shard {shard}: {error}"


def _stores(study: Study) -> list[Path]:
    return sorted(study.embeddings.glob("*.zarr")) if study.embeddings.is_dir() else []


def _state(study: Study, store: EmbeddingStore) -> str:
    """Whether the store is what params.yaml asks for now."""
    from pipeline.commands.run import embed_settings
    from stages.embed import Embedder, EmbedPaths

    name = store.path.stem
    try:
        if name not in study.params.experts:
            return "not in params.yaml"
        settings = embed_settings(study, name, device="cpu", accept_license=True)
        paths = EmbedPaths(study.records, study.signals, store.path, study.state)
        current = Embedder(settings, paths).identity.fingerprint == store.fingerprint
    except EnsembleError as error:
        return f"unknown: {error}"
    return "current" if current else "stale"


def _size(path: Path) -> str:
    n_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return f"{n_bytes / 1e6:.1f} MB"
