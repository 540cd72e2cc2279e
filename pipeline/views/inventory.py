"""What `ensemble cache` prints and does: which stores there are, whether they are current, whole, used by anything."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from cache.claims import AnyClaims, claims_on
from cache.embeddings import EmbeddingStore, open_embeddings
from cache.errors import EnsembleError, StoreError, UsageError
from cache.record_rows import RecordRows
from cache.records import open_records
from cache.signals import open_signals
from cache.storage.locations import Location, half_made_in, n_bytes, remove, store_exists, stores_in
from cache.upkeep.checks import embedding_faults, repair_embeddings, repair_signals, signal_faults
from cache.upkeep.exchange import IMPORTED, import_vectors, read_ids, read_vectors
from cache.upkeep.kept import kept_stores, replaced_by
from cache.upkeep.resume import difference, grew_from
from cache.zarr_io.groups import leftovers
from pipeline.study.folder import Study
from pipeline.study.markers import write_marker

if TYPE_CHECKING:
    from rich.table import Table


def stores_table(study: Study) -> Table:
    """Return one row a store: expert, rows done, bytes, fingerprint, current or stale."""
    from rich.table import Table

    table = Table("expert", "records", "done", "size", "fingerprint", "state")
    cohort = _Cohort(study)
    for path in _stores(study):
        try:
            store = open_embeddings(path)
        except EnsembleError as error:
            table.add_row(path.stem, "", "", _size(path), "", f"damaged: {error}")
            continue
        done = len(store) - sum(r.stop - r.start for s in store.pending() for r in [store.rows_of(s)])
        state = _state(study, store, cohort)
        stated = str(store.attributes.get("fingerprint") or "none given")  # the content's would be read for
        table.add_row(path.stem, str(len(store)), str(done), _size(path), stated[:12], state)
    return table


@dataclass(frozen=True)
class _Cohort:
    """The records and signals that stores are compared with; read once, when first asked for."""

    study: Study

    @cached_property
    def rows(self) -> RecordRows:
        return RecordRows(self.study.records)

    @cached_property
    def digests(self) -> tuple[str, str]:
        return self.of_first(len(self.rows))

    def of_first(self, n: int) -> tuple[str, str]:
        return open_signals(self.study.signals).content_digest(n), self.rows.digest(n)


def _state(study: Study, store: EmbeddingStore, cohort: _Cohort) -> str:
    """Whether the store is what params.yaml asks for now."""
    from pipeline.compute.embedding import embed_settings
    from stages.embed import identity_of

    name = store.path.stem
    try:
        if store.attributes.get("version") == IMPORTED:
            same = store.records_digest == cohort.digests[1]
            return "imported" if same else "stale: imported for other records"
        if name not in study.params.experts:
            return "not in params.yaml"
        settings = embed_settings(study, name, device="cpu", accept_licence=True)
        identity = identity_of(settings, *cohort.digests)
        if identity.fingerprint == store.fingerprint:
            return "current"
        if grew_from(store, identity, len(cohort.rows), cohort.of_first):
            return f"stale: {len(cohort.rows) - len(store)} records were added since"
    except EnsembleError as error:
        return f"unknown: {error}"
    return f"stale: {difference(store, identity)}"


def verify(study: Study, *, unwritten: bool = True) -> Iterator[str]:
    """Read every shard of every store; give one line for each that does not read as it was written.

    Parameters
    ----------
    unwritten
        Also name the shards that were never written.
    """
    for path in [study.signals] if store_exists(study.signals) else []:
        yield from (str(fault) for fault in signal_faults(path) if unwritten or not fault.missing)
    for path in _stores(study):
        yield from (str(fault) for fault in embedding_faults(path) if unwritten or not fault.missing)


def repair(study: Study) -> Iterator[str]:
    """Restore metadata, drop bad shards; one line for each thing done.

    Raises
    ------
    StoreError
        Another process works in a store.
    """
    if store_exists(study.signals):
        yield from repair_signals(study.signals)
    for path in _stores(study):
        with _owning(study, path) as claims:
            yield from repair_embeddings(path, claims.confirm)


def _owning(study: Study, path: Location) -> closing[AnyClaims]:
    claims = claims_on(path, study.state)
    if not claims.try_acquire():
        claims.close()
        raise StoreError(f"{path}: another process works in it; wait for it to end, or stop it")
    return closing(claims)


@dataclass(frozen=True)
class Unused:
    """A folder that nothing refers to."""

    path: Location
    why: str

    def __str__(self) -> str:
        return f"{self.path} ({_size(self.path)}): {self.why}"


def unused(study: Study) -> list[Unused]:
    """Return the stores that neither params.yaml nor a fit in heads/ names, and what killed runs left beside stores."""
    used = {*study.params.experts, *_fitted(study)}
    stores = _stores(study)
    found = [Unused(p, "neither params.yaml nor heads/ names it") for p in stores if p.stem not in used]
    left = [*half_made_in(study.embeddings), *(each for path in [study.signals, *stores] for each in leftovers(path))]
    replaced = [
        Unused(path, f"kept when {replaced_by(path).name} was made anew") for path in kept_stores(study.embeddings)
    ]
    return found + replaced + [Unused(path, "left by a killed run") for path in left]


def _fitted(study: Study) -> list[str]:
    config = study.heads / "config.json"
    try:
        return list(json.loads(config.read_text(encoding="utf-8"))["experts"]) if config.is_file() else []
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{config}: cannot be read, so that it is not known what it needs; fit the heads again"
        ) from error


def collect(study: Study) -> Iterator[str]:
    """Delete what `unused` finds; one line for each folder.

    Raises
    ------
    StoreError
        Another process works in a store.
    """
    for found in unused(study):
        line = f"deleted {found}"
        store = next((p for p in _stores(study) if found.path in (p, *leftovers(p))), replaced_by(found.path))
        with _owning(study, store):
            remove(found.path)
        yield line


def import_file(
    study: Study,
    file: Path,
    expert: str,
    ids: Path | None,
    id_column: str,
    dtype: str,
    replace: bool,
    layer_names: list[str] | None = None,
) -> str:
    """Make a store of another tool's vectors; returns the line that says so.

    Raises
    ------
    UsageError
        A name or a number format that cannot be used, no record ids, or a store that would be lost.
    InputError
        Vectors and ids that do not fit the records.
    """
    from stages.experts import list_experts

    target = study.embedding(expert)
    if expert in list_experts() or not expert.replace("-", "").replace("_", "").isalnum():
        raise UsageError(f"--expert {expert}: give another name, of letters and digits, that no expert of ours has")
    if dtype not in ("float16", "float32"):
        raise UsageError(f"--dtype {dtype}: expected float16 or float32")
    if store_exists(target) and not replace:
        raise UsageError(f"{target} exists; say --replace, or give another --expert")
    records = open_records(study.records, columns=["record_id", "status"])
    arrays, ids_of_file = read_vectors(file.expanduser(), id_column)
    names = read_ids(ids.expanduser(), id_column) if ids else ids_of_file
    if names is None:
        raise UsageError(f"{file} holds no column '{id_column}'; give a file with the record ids as --ids")
    size = study.params.embed.shard_records
    store = import_vectors(
        target,
        arrays,
        names,
        records,
        state=study.state,
        layer_names=layer_names,
        dtype=dtype,
        shard_records=size,
    )
    write_marker(study, expert)
    return f"{len(names)} vectors, {len(store.layer_names)} layer(s) -> {target}; name '{expert}' under `experts`"


def _stores(study: Study) -> list[Location]:
    return stores_in(study.embeddings)


def _size(path: Location) -> str:
    return f"{n_bytes(path) / 1e6:.1f} MB"
