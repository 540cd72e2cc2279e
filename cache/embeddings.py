"""embeddings/<expert>.zarr: per-layer vectors of one expert, written shard by shard (docs/store-format.md)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from cache._zarr import ZARR_ERRORS, add_array, create_group, open_group, shard_file, write_shard
from cache.errors import FingerprintError, StoreError
from cache.fingerprint import fingerprint

SCHEMA_VERSION = 1
SHARD_RECORDS = 1024
CHUNK_RECORDS = 256


@dataclass(frozen=True)
class Layout:
    """Shapes of one expert's store.

    Attributes
    ----------
    layer_names, layer_dims
        One entry a layer; narrower layers are padded with NaN up to the widest.
    output_dim
        Width of the expert's own head output; 0 where it has none.
    """

    n_records: int
    layer_names: tuple[str, ...]
    layer_dims: tuple[int, ...]
    embedding_dim: int
    output_dim: int = 0
    dtype: str = "float16"
    shard_records: int = SHARD_RECORDS


@dataclass(frozen=True)
class Shard:
    """One shard's worth of rows in memory; a row of NaN is a record the expert could not embed."""

    layers: np.ndarray
    embedding: np.ndarray
    output: np.ndarray | None = None


@dataclass(frozen=True)
class Identity:
    """What the vectors were made from.

    Attributes
    ----------
    expert
        Everything that changes the numbers but the records: expert, version, weights, preprocessing, precision.
    signals_digest, records_digest
        Content of signals.zarr and row order of records.parquet, over the store's own rows.
    facts
        Kept for the reader, without effect on reuse (licence, where the weights came from, ...).
    """

    expert: dict[str, Any]
    signals_digest: str
    records_digest: str
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """sha256 over everything that changes the numbers, rows included."""
        return fingerprint({**self.expert, "signals": self.signals_digest, "records": self.records_digest})


class EmbeddingStore:
    """One expert's vectors, row for row with records.parquet.

    Attributes
    ----------
    layers
        zarr array [record, layer, dim]; `layer_names` and `layer_dims` say what is in it.
    embedding
        zarr array [record, dim]: the authors' own pooled output.
    output
        zarr array [record, output_dim], or None.
    done
        zarr array bool [record]; written last, so that a row counts only when everything of it is on the disk.
    """

    def __init__(self, path: Path, group: zarr.Group) -> None:
        self.path = path
        self.group = group
        try:
            self.layers, self.embedding, self.done = (_array(group, n) for n in ("layers", "embedding", "done"))
            self.output = _array(group, "output") if "output" in group else None
            self.attributes: dict[str, Any] = dict(group.attrs)
            self.layer_names: tuple[str, ...] = tuple(self.attributes["layer_names"])
            self.layer_dims: tuple[int, ...] = tuple(self.attributes["layer_dims"])
            self.fingerprint = str(self.attributes["fingerprint"])
            self.records_digest = str(self.attributes["records_digest"])
        except KeyError as error:
            raise StoreError(f"{path}: has no {error}; see docs/store-format.md") from error
        if self.layers.shape[:2] != (len(self), len(self.layer_names)) or self.done.shape != (len(self),):
            raise StoreError(f"{path}: arrays disagree in length; see docs/store-format.md")

    def __len__(self) -> int:
        return int(self.embedding.shape[0])

    @property
    def shard_records(self) -> int:
        """Rows a shard holds."""
        return int((self.done.shards or self.done.chunks)[0])

    @property
    def n_shards(self) -> int:
        """Number of shards; the last may be partly filled."""
        return -(-len(self) // self.shard_records)

    def rows_of(self, shard: int) -> slice:
        """Return the rows that a shard holds."""
        start = shard * self.shard_records
        return slice(start, min(start + self.shard_records, len(self)))

    def _data_arrays(self) -> list[zarr.Array]:
        return [a for a in (self.layers, self.embedding, self.output) if a is not None]

    def complete(self, shard: int) -> bool:
        """Whether a shard is whole: all its files are there and its rows are marked done."""
        files = (shard_file(self.path, a, shard) for a in (*self._data_arrays(), self.done))
        return all(f.exists() for f in files) and bool(self._read(self.done, self.rows_of(shard)).all())

    def pending(self) -> list[int]:
        """Return the shards that are still to be written."""
        return [shard for shard in range(self.n_shards) if not self.complete(shard)]

    def write(self, shard: int, content: Shard) -> None:
        """Write one whole shard; its `done` flags go last."""
        rows = self.rows_of(shard)
        n = rows.stop - rows.start
        parts: list[tuple[zarr.Array, np.ndarray | None]] = [
            (self.layers, content.layers),
            (self.embedding, content.embedding),
        ]
        if self.output is not None:
            parts.append((self.output, content.output))
        for array, values in parts:
            if values is None or values.shape != (n, *array.shape[1:]):
                got = None if values is None else values.shape
                raise StoreError(
                    f"{self.path}: {array.basename} of shard {shard} is {got}, expected {(n, *array.shape[1:])}"
                )
            write_shard(self.path, array, shard, self.shard_records, _narrow(self.path, values, array.dtype))
        write_shard(self.path, self.done, shard, self.shard_records, np.ones(n, dtype=bool))

    def _read(self, array: zarr.Array, selection: Any) -> np.ndarray:
        try:
            return np.asarray(array[selection])
        except ZARR_ERRORS as error:
            raise StoreError(
                f"{self.path}: {array.basename} is damaged ({str(error).splitlines()[0]}); embed it again"
            ) from error

    def require_complete(self) -> None:
        """Refuse a store with rows that were never written (they would read as NaN)."""
        pending = self.pending()
        if pending:
            expert = self.attributes.get("expert", "?")
            raise StoreError(
                f"{self.path}: {len(pending)} of {self.n_shards} shards missing; run `ensemble embed --expert {expert}`"
            )

    def require_records(self, digest: str) -> None:
        """Refuse a store whose rows are not those of this records table."""
        if digest != self.records_digest:
            expert = self.attributes.get("expert", "?")
            raise FingerprintError(
                f"{self.path}: was made for other records or another row order; run `ensemble embed --expert {expert}`"
            )

    def read_embedding(self, rows: slice = slice(None)) -> np.ndarray:
        """Read the authors' pooled output of contiguous rows, [rows, dim] in the store's dtype."""
        return self._read(self.embedding, rows)

    def read_layers(self, rows: slice = slice(None)) -> np.ndarray:
        """Read all layers of contiguous rows, [rows, layer, dim] in the store's dtype."""
        return self._read(self.layers, rows)

    def read_layer(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """Read one layer of contiguous rows, [rows, dim of that layer]."""
        if name not in self.layer_names:
            raise StoreError(f"{self.path}: has no layer '{name}'; it has: {', '.join(self.layer_names)}")
        index = self.layer_names.index(name)
        return self._read(self.layers, (rows, index, slice(0, self.layer_dims[index])))

    def read_output(self, rows: slice = slice(None)) -> np.ndarray:
        """Read the expert's own head output, [rows, output_dim]."""
        if self.output is None:
            raise StoreError(f"{self.path}: expert '{self.attributes.get('expert')}' has no output of its own")
        return self._read(self.output, rows)


def _array(group: zarr.Group, name: str) -> zarr.Array:
    found = group[name]
    if not isinstance(found, zarr.Array):
        raise KeyError(name)
    return found


def _narrow(path: Path, values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Cast to the store's dtype; refuses values that do not fit rather than writing infinity."""
    with np.errstate(over="ignore"):
        narrowed = values.astype(dtype)
    if np.isinf(narrowed).any():
        raise StoreError(f"{path}: a value does not fit {dtype}; set `dtype: float32` for this expert in params.yaml")
    return narrowed


def create_embeddings(path: str | Path, layout: Layout, identity: Identity) -> EmbeddingStore:
    """Make an empty store (replacing one that stands there)."""
    path = Path(path)
    attributes = {
        "schema_version": SCHEMA_VERSION,
        **identity.expert,
        **identity.facts,
        "layer_names": list(layout.layer_names),
        "layer_dims": list(layout.layer_dims),
        "signals_digest": identity.signals_digest,
        "records_digest": identity.records_digest,
        "fingerprint": identity.fingerprint,
    }
    n, shard = layout.n_records, layout.shard_records
    rows = min(CHUNK_RECORDS, shard)

    def fill(group: zarr.Group) -> None:
        width = max(layout.layer_dims)
        sizes = {"layers": (len(layout.layer_names), width), "embedding": (layout.embedding_dim,)}
        if layout.output_dim:
            sizes["output"] = (layout.output_dim,)
        for name, size in sizes.items():
            # One layer a chunk: reading one layer of every record touches only its bytes.
            chunks = (rows, 1, width) if name == "layers" else (rows, *size)
            add_array(group, name, (n, *size), chunks, shard_rows=shard, dtype=layout.dtype, fill_value=np.nan)
        add_array(group, "done", (n,), (shard,), shard_rows=shard, dtype="bool", fill_value=False)

    create_group(path, attributes, fill)
    return open_embeddings(path, mode="r+")


def open_embeddings(path: str | Path, mode: str = "r") -> EmbeddingStore:
    """Open one expert's store; read-only unless `mode` is "r+"."""
    path = Path(path)
    return EmbeddingStore(path, open_group(path, made_by=f"ensemble embed --expert {path.stem}", mode=mode))


def resume_or_create(path: str | Path, layout: Layout, identity: Identity) -> tuple[EmbeddingStore, str]:
    """Open the store where it stopped if it was made from the same things; otherwise start afresh.

    Returns
    -------
    The store, and why it was started afresh ("" when resumed).
    """
    path = Path(path)
    if not path.exists():
        return create_embeddings(path, layout, identity), "no store yet"
    try:
        store = open_embeddings(path, mode="r+")
    except StoreError as error:
        return create_embeddings(path, layout, identity), str(error)
    if store.fingerprint == identity.fingerprint and store.shard_records == layout.shard_records:
        return store, ""
    return create_embeddings(path, layout, identity), _difference(store, identity)


def _difference(store: EmbeddingStore, identity: Identity) -> str:
    wanted = {**identity.expert, "signals_digest": identity.signals_digest, "records_digest": identity.records_digest}
    changed = [name for name, value in wanted.items() if store.attributes.get(name) != value]
    return "changed: " + (", ".join(changed) or "shard size")
