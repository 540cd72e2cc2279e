"""embeddings/<expert>.zarr: per-layer vectors of one expert, written shard by shard (docs/store-format.md)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from cache.embedding_layout import VIEWS, Identity, Layout, Shard
from cache.errors import FingerprintError, StoreError
from cache.fingerprint import fingerprint
from cache.storage.clients import Entry
from cache.storage.locations import Location, location_of, name_within
from cache.storage.objects import ObjectPath
from cache.storage.writing import Guard, Part, write_all_durably
from cache.zarr_io.groups import ZARR_ERRORS, get_array, open_group, shard_file
from cache.zarr_io.shards import PlainShards, narrowed

__all__ = ["EmbeddingStore", "Identity", "Layout", "Shard", "open_embeddings"]

SCHEMA_VERSION = 1
LISTED_FROM = 4
"""Shards of objects that are asked for one by one; of more, the objects are listed."""
REQUESTS_AT_ONCE = 8
"""Shards of objects that are read at a time, each held in memory meanwhile."""


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
    views
        Name of each view that the store has (of `VIEWS`) -> zarr array.
    has_vector
        zarr array bool [record]: rows that have a vector; None in stores of other tools and of earlier versions.
    done
        zarr array bool [record]; written last, so that a row counts only when everything of it is on the disk.
    """

    def __init__(self, path: Location, group: zarr.Group) -> None:
        self.path = path
        self.group = group
        try:
            self.layers, self.embedding, self.done = (get_array(group, n) for n in ("layers", "embedding", "done"))
            self.output = get_array(group, "output") if "output" in group else None
            self.views = {name: get_array(group, name) for name in VIEWS if name in group}
            self.has_vector = get_array(group, "has_vector") if "has_vector" in group else None
            self.attributes: dict[str, Any] = dict(group.attrs)
            self.records_digest = str(self.attributes["records_digest"])
        except KeyError as error:
            raise StoreError(f"{path}: has no {error}; see docs/store-format.md") from error
        except ZARR_ERRORS as error:
            raise StoreError(f"{path}: an array cannot be opened ({_first_line(error)})") from error
        self._check_shapes()

    def _check_shapes(self) -> None:
        version = self.attributes.get("schema_version", SCHEMA_VERSION)
        if version != SCHEMA_VERSION:
            raise StoreError(f"{self.path}: has schema_version {version}; this program reads {SCHEMA_VERSION}")
        n = len(self)
        matrices = [array for array in self.data_arrays() if array.basename not in ("layers", "segments")]
        threefold = [self.layers, *(array for name, array in self.views.items() if name == "segments")]
        if any(array.ndim != 2 for array in matrices) or any(array.ndim != 3 for array in threefold):
            raise StoreError(f"{self.path}: an array has a wrong number of axes; see docs/store-format.md")
        if any(array.shape[0] != n for array in self.data_arrays()) or any(
            a.shape != (n,) for a in self._flag_arrays()
        ):
            raise StoreError(f"{self.path}: arrays disagree in length; see docs/store-format.md")
        names, dims = self.layer_names, self.layer_dims
        if len(names) != self.layers.shape[1] or len(dims) != len(names) or max(dims, default=0) > self.layers.shape[2]:
            raise StoreError(f"{self.path}: layer_names or layer_dims do not fit the {self.layers.shape[1]} layers")

    @cached_property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the layers; `layer_0` ... where the store gives none."""
        return tuple(self.attributes.get("layer_names") or (f"layer_{k}" for k in range(self.layers.shape[1])))

    @cached_property
    def layer_dims(self) -> tuple[int, ...]:
        """Width of each layer; the whole width where the store gives none."""
        return tuple(self.attributes.get("layer_dims") or (self.layers.shape[2],) * self.layers.shape[1])

    @cached_property
    def fingerprint(self) -> str:
        """What the vectors were made from; of a store that gives none, the digest of its content (read whole)."""
        return str(self.attributes.get("fingerprint") or self._content_fingerprint())

    def _content_fingerprint(self) -> str:
        """Return the digest of attributes and values, however they are cut and packed; an outer chunk at a time."""
        digests = {}
        for array in self.data_arrays():
            digest = hashlib.sha256(f"{array.dtype} {array.shape}".encode())
            rows = (array.shards or array.chunks)[0]
            for start in range(0, len(self), rows):
                digest.update(np.ascontiguousarray(self._read(array, slice(start, start + rows))).data)
            digests[array.basename] = digest.hexdigest()
        return fingerprint({**self.attributes, "content": digests})

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

    def data_arrays(self) -> list[zarr.Array[Any]]:
        """Return the arrays of vectors, without flags."""
        return [a for a in (self.layers, self.embedding, self.output, *self.views.values()) if a is not None]

    def _flag_arrays(self) -> list[zarr.Array[Any]]:
        return [a for a in (self.has_vector, self.done) if a is not None]

    def arrays(self) -> list[zarr.Array[Any]]:
        """Return every array; `done` last, which is the order of writing."""
        return [*self.data_arrays(), *self._flag_arrays()]

    @cached_property
    def _plain(self) -> dict[str, PlainShards]:
        """Where the bytes of each array lie; only of stores whose arrays all have the layout that we write."""
        found = {a.basename: PlainShards.of(self.path, a) for a in self.arrays()}
        return {
            name: plain
            for name, plain in found.items()
            if plain is not None and plain.shard_rows == self.shard_records and None not in found.values()
        }

    def shard_files(self, shard: int) -> list[Location]:
        """Return the files or objects of a shard, `done` last; none where another tool cut it in another way."""
        return [shard_file(self.path, a, shard) for a in self.arrays()] if self._plain else []

    def complete(self, shard: int) -> bool:
        """Whether a shard counts: all its files are there and its rows are marked done.

        Damaged flags do not count; whether the vectors read as written, only reading (or `verify`) tells.
        """
        if not self._plain:
            return bool(self._read(self.done, self.rows_of(shard)).all())
        *data, done = self.shard_files(shard)
        return self._marked(done, shard) and all(file.exists() for file in data)

    @cached_property
    def _flags(self) -> dict[tuple[int, bytes | str], bool]:
        """Bytes (or tags) of `done` shards seen so far: they are all alike, so that thousands need no decoding."""
        return {}

    def _marked(self, file: Location, shard: int) -> bool:
        rows = self.rows_of(shard)
        try:
            key = (rows.stop - rows.start, file.read_bytes())
        except OSError:
            return False
        if key not in self._flags:
            try:
                self._flags[key] = bool(self._read(self.done, rows).all())
            except StoreError:
                return False
        return self._flags[key]

    def pending(self, shards: Iterable[int] | None = None) -> list[int]:
        """Return which shards (of those named) are still to be written."""
        wanted = list(range(self.n_shards) if shards is None else shards)
        if isinstance(self.path, ObjectPath) and self._plain and len(wanted) > LISTED_FROM:
            return self._pending_of_listing(wanted, self.path.files())
        return [shard for shard in wanted if not self.complete(shard)]

    def _pending_of_listing(self, wanted: list[int], listing: dict[str, Entry]) -> list[int]:
        """Do as `complete` does with one listing: flags whose tags were seen before need not be read."""
        pending = []
        for shard in wanted:
            files = self.shard_files(shard)
            entries = [listing.get(name_within(self.path, file)) for file in files]
            done = entries[-1]
            if done is None or None in entries:
                pending.append(shard)
                continue
            rows = self.rows_of(shard)
            key = (rows.stop - rows.start, done.tag)
            if not done.tag or key not in self._flags:
                self._flags[key] = self._marked(files[-1], shard)
            if not self._flags[key]:
                pending.append(shard)
        return pending

    def write(self, shard: int, content: Shard, guard: Guard | None = None) -> None:
        """Write one whole shard; its `done` flags go last.

        Parameters
        ----------
        guard
            Called before the flags are written; raises where this process may no longer write (`Claims.confirm`).

        Raises
        ------
        StoreError
            Content of another shape, a value that does not fit, or a store of another tool's layout.
        OSError
            The disk refused; nothing of the shard counts then.
        """
        rows = self.rows_of(shard)
        n = rows.stop - rows.start
        if not self._plain:
            raise StoreError(f"{self.path}: was written by another tool and can only be read")
        given = content.arrays()
        parts = []
        for array in self.data_arrays():
            values = given.get(array.basename)
            if values is None or values.shape != (n, *array.shape[1:]):
                got = None if values is None else values.shape
                raise StoreError(
                    f"{self.path}: {array.basename} of shard {shard} is {got}, expected {(n, *array.shape[1:])}"
                )
            parts.append(self._part(array, shard, values))
        if self.has_vector is not None:
            parts.append(self._part(self.has_vector, shard, ~np.isnan(content.embedding).all(axis=1)))
        self._withdraw_flags(shard)
        write_all_durably(parts, guard)
        if guard is not None:
            guard()
        write_all_durably([self._part(self.done, shard, np.ones(n, dtype=bool))], guard)

    def _withdraw_flags(self, shard: int) -> None:
        """Remove flags that outlived a lost file: a killed write must not mix its rows with older ones that count."""
        file = shard_file(self.path, self.done, shard)
        if isinstance(file, Path):
            file.unlink(missing_ok=True)

    def _part(self, array: zarr.Array[Any], shard: int, values: np.ndarray) -> Part:
        plain = self._plain[array.basename]
        grouped = values.reshape(len(values), plain.groups, plain.width).transpose(1, 0, 2)
        narrow = narrowed(self.path, grouped, plain.dtype)
        return shard_file(self.path, array, shard), self.path / array.basename, plain.pieces(narrow)

    def read(self, name: str, rows: slice) -> np.ndarray:
        """Read contiguous rows of `layers`, `embedding`, `output`, a view or `done`, whole."""
        return self._read(get_array(self.group, name), rows)

    def drop(self, shard: int) -> None:
        """Remove a shard, its flags first, so that it is embedded again."""
        for file in reversed(self.shard_files(shard)):
            file.unlink(missing_ok=True)

    def _read(self, array: zarr.Array[Any], rows: slice, layer: int | None = None) -> np.ndarray:
        plain = self._plain.get(array.basename)
        selection = rows if layer is None else (rows, layer)
        try:
            return np.asarray(array[selection]) if plain is None else self._read_plain(array, plain, rows, layer)
        except ZARR_ERRORS as error:
            raise StoreError(
                f"{self.path}: {array.basename} is damaged ({_first_line(error)}); run `ensemble cache repair`, "
                "then embed again"
            ) from error

    def _read_plain(self, array: zarr.Array[Any], plain: PlainShards, rows: slice, layer: int | None) -> np.ndarray:
        start, stop, _ = rows.indices(len(self))
        out = np.empty((max(0, stop - start), plain.groups if layer is None else 1, plain.width), dtype=plain.dtype)
        size = plain.shard_rows

        def read(shard: int) -> None:
            low, high = max(start, shard * size), min(stop, (shard + 1) * size)
            inside = slice(low - shard * size, high - shard * size)
            try:
                plain.read(shard_file(self.path, array, shard), inside, layer, out[low - start : high - start])
            except (OSError, ValueError) as error:
                raise ValueError(f"shard {shard}: {getattr(error, 'strerror', None) or error}") from error

        shards = range(start // size, -(-stop // size)) if stop > start else range(0)
        if isinstance(self.path, ObjectPath) and len(shards) > 1:
            with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:  # a request waits for the network most of its time
                list(pool.map(read, shards))
        else:
            for shard in shards:
                read(shard)
        return out.reshape(len(out), *array.shape[1:]) if layer is None else out[:, 0]

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
        return self._read(self.layers, rows, index)[:, : self.layer_dims[index]]

    def read_view(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """Read a view of contiguous rows: `segments` [rows, second, dim], the others [rows, dim]."""
        if name not in self.views:
            has = ", ".join(self.views) or "none"
            raise StoreError(f"{self.path}: has no view '{name}' (it has: {has}); name it in experts.NAME.views")
        return self._read(self.views[name], rows)

    def read_output(self, rows: slice = slice(None)) -> np.ndarray:
        """Read the expert's own head output, [rows, output_dim]."""
        if self.output is None:
            raise StoreError(f"{self.path}: expert '{self.attributes.get('expert')}' has no output of its own")
        return self._read(self.output, rows)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def open_embeddings(path: str | Location, mode: str = "r") -> EmbeddingStore:
    """Open one expert's store, a folder or a URL such as `s3://bucket/x.zarr`; read-only unless `mode` is "r+"."""
    path = location_of(path)
    return EmbeddingStore(path, open_group(path, made_by=f"ensemble embed --expert {path.stem}", mode=mode))
