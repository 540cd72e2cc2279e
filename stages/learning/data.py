"""Cached embeddings as a learner takes them: rows joined with records.parquet, tasks, folds.

What `fit-heads`, `evaluate` and `predict` share. Not here: learning (`stages.heads`), the stores (`cache`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from cache.embeddings import EmbeddingStore, open_embeddings
from cache.errors import InputError, UsageError
from cache.fingerprint import fingerprint
from cache.patients import patients_taught
from cache.record_rows import RecordRows
from cache.records import Target
from cache.storage.locations import Location
from stages.heads import TaskSpec
from stages.heads.inputs.expert_features import ExpertFeatures
from stages.heads.inputs.lazy_rows import LazyRows
from stages.learning.membership import Membership


@dataclass(frozen=True)
class Data:
    """One cohort's records, features and targets, row for row.

    Attributes
    ----------
    membership
        Patient, source, split and fold of each record.
    features
        Expert -> {"embedding": [n, dim], "layers": [n, L, dim], "embed": [n, dim]}, in the stores' dtype: arrays, or
        `LazyRows` where they do not fit the memory; views that the store has (`segments` [n, second, dim], `std`,
        `max`, `last` [n, dim]) always as `LazyRows`: only some methods read them.
    targets
        Task -> array as `RecordRows.labels` gives it.
    fingerprints
        Expert -> that of its store.
    """

    records_path: Location
    membership: Membership
    row_options: dict[str, Any]
    """How the rows of signals.zarr were made."""
    features: dict[str, dict[str, Any]]
    targets: dict[str, np.ndarray]
    tasks: tuple[Target, ...]
    every_target: Mapping[str, Target]
    """Name -> target, of all that the table has."""
    fingerprints: dict[str, str]
    identities: dict[str, str]
    """Expert -> digest of the expert alone: weights, version, preprocessing, precision, whatever the records."""
    dtypes: dict[str, str]
    """Expert -> number format of its store."""
    seen: dict[str, np.ndarray]
    """Expert -> mask [n] of the records whose labels have trained it; those alone that have seen some."""
    taught: dict[str, int]
    """The same experts -> how many patients' labels have trained them, these or others, as far as stores list them."""

    @property
    def rows(self) -> RecordRows:
        """The table on disk, for who needs more of it."""
        return RecordRows(self.records_path)

    def patient_ids(self, rows: np.ndarray) -> pa.Array:
        """Return the ids of some records' patients."""
        return self.membership.patient.arrow(self.membership.patient.codes[rows])

    @property
    def usable(self) -> np.ndarray:
        """Mask [n] of the rows that at least one expert has a vector for."""
        return np.any([ExpertFeatures(parts["embedding"]).present for parts in self.features.values()], axis=0)


class RecordIds:
    """Ids of those records of a table that are predicted; of the others none is in memory.

    Parameters
    ----------
    parts
        Rows, of which any may be asked for.
    """

    def __init__(self, table: RecordRows, parts: Iterable[np.ndarray]) -> None:
        wanted = np.zeros(len(table), bool)
        for rows in parts:
            wanted[rows] = True
        self._rows = np.flatnonzero(wanted)
        self._ids = table.picked("record_id", self._rows)

    def of(self, rows: np.ndarray) -> pa.ChunkedArray:
        """Return the ids of some of these records."""
        return self._ids.take(pa.array(np.searchsorted(self._rows, rows)))


def read_data(
    records_path: Location,
    stores: Mapping[str, Location],
    tasks: Sequence[str] | None = None,
    memory_gb: float | str = "auto",
) -> Data:
    """Read the stores and targets of one cohort.

    Parameters
    ----------
    memory_gb
        Vectors that fit half of it are read; the others stay on disk, and are read by rows.

    Raises
    ------
    StoreError, FingerprintError
        A store that is incomplete, or whose rows are other records.
    UsageError
        A task that records.parquet has no target for.
    """
    rows = RecordRows(records_path)
    digest = rows.digest()
    opened = {name: _checked(path, digest) for name, path in stores.items()}
    if not opened:
        raise UsageError("no experts: name at least one under `experts` in params.yaml")
    chosen, lazy = _targets(rows.targets, tasks), not fits(opened.values(), memory_gb)
    membership = Membership.read(rows)
    masks = {name: membership.seen_by(store.attributes) for name, store in opened.items()}
    return Data(
        records_path=rows.path,
        membership=membership,
        row_options=rows.row_options,
        features={name: expert_parts(store, lazy=lazy) for name, store in opened.items()},
        targets={target.name: rows.labels(target) for target in chosen},
        tasks=chosen,
        every_target=rows.targets,
        fingerprints={name: store.fingerprint for name, store in opened.items()},
        identities={name: expert_identity(store.attributes) for name, store in opened.items()},
        dtypes={name: str(store.embedding.dtype) for name, store in opened.items()},
        seen={name: mask for name, mask in masks.items() if mask.any()},
        taught={name: patients_taught(store.attributes) for name, store in opened.items() if masks[name].any()},
    )


def read_outputs(stores: Mapping[str, Location]) -> dict[str, np.ndarray]:
    """Expert -> output of its own head [n, width], of those that have one."""
    opened = {name: open_embeddings(path) for name, path in stores.items()}
    return {name: store.read_output() for name, store in opened.items() if store.output is not None}


IDENTITY_KEYS = (
    "expert",
    "version",
    "weights_sha256",
    "config",
    "preprocessing",
    "preprocessing_options",
    "precision",
    "dtype",
)


def expert_identity(attributes: Mapping[str, Any]) -> str:
    """Return the digest of what an expert's vectors depend on besides the records."""
    return fingerprint({key: attributes.get(key) for key in IDENTITY_KEYS})


def _checked(path: Location, digest: str) -> EmbeddingStore:
    store = open_embeddings(path)
    store.require_records(digest)
    store.require_complete()
    return store


class StoredRows(LazyRows):
    """Rows of a store, read when they are asked for."""

    def __init__(self, read: Callable[[slice], np.ndarray], shape: tuple[int, ...], dtype: np.dtype) -> None:
        self._read, self.shape, self.dtype = read, shape, np.dtype(dtype)

    def read(self, rows: slice) -> np.ndarray:
        """Return contiguous rows."""
        return self._read(rows)


class _Layers(StoredRows):
    """All layers of a store, of which some may be asked for: `layers[:, [1, 2], :768]`, `layers[:, 0, :768]`."""

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, tuple):
            return super().__getitem__(key)
        _, layers, width = key
        some = np.arange(self.shape[1])[layers]
        shape = (len(self), *some.shape, len(np.arange(self.shape[2])[width]))
        return StoredRows(lambda rows: self.read(rows)[:, layers, width], shape, self.dtype)


def expert_parts(store: EmbeddingStore, *, lazy: bool = False) -> dict[str, Any]:
    """Return a store's arrays as heads take them; layers only where blocks of one width can be mixed.

    Parameters
    ----------
    lazy
        Leave them on disk: `LazyRows` instead of arrays.
    """
    if not lazy:
        read = layer_parts(store.read_embedding(), store.layer_names, store.layer_dims, store.read_layers)
        return read | view_parts(store)
    embedding = StoredRows(store.read_embedding, store.embedding.shape, store.embedding.dtype)
    layers = _Layers(store.read_layers, store.layers.shape, store.layers.dtype)
    return layer_parts(embedding, store.layer_names, store.layer_dims, lambda: layers) | view_parts(store)


def view_parts(store: EmbeddingStore) -> dict[str, StoredRows]:
    """Return the views of the tokens that a store has, left on disk."""
    return {
        name: StoredRows(partial(store.read_view, name), array.shape, array.dtype)
        for name, array in store.views.items()
    }


def fits(stores: Iterable[EmbeddingStore], memory_gb: float | str) -> bool:
    """Whether the vectors of these stores take at most half of the memory that may be used (see `EnsembleHeads`)."""
    from torch import device

    from stages.heads.blockwise.blocks import memory_bytes

    needed = sum(a.nbytes for s in stores for a in (s.embedding, s.layers))
    return needed <= 0.5 * memory_bytes(memory_gb, device("cpu"))


def layer_parts(embedding: Any, names: Sequence[str], dims: Sequence[int], read_layers: Any) -> dict[str, Any]:
    """Name the parts of an expert's vectors: the embedding, the blocks' means, the tokens before the first block.

    An expert of one layer only repeats its embedding there; blocks of several widths cannot be averaged.
    """
    parts = {"embedding": embedding}
    blocks = [k for k, name in enumerate(names) if name != "embed"]
    if len(blocks) > 1 and len({dims[k] for k in blocks}) == 1:
        layers = read_layers()
        parts["layers"] = layers[:, blocks, : dims[blocks[0]]]
        if "embed" in names and dims[names.index("embed")] == dims[blocks[0]]:
            parts["embed"] = layers[:, list(names).index("embed"), : dims[blocks[0]]]
    return parts


def _targets(known: Mapping[str, Target], tasks: Sequence[str] | None) -> tuple[Target, ...]:
    unknown = [name for name in tasks or () if name not in known]
    if unknown:
        raise UsageError(f"task '{unknown[0]}' is no target of records.parquet; it has: {', '.join(known) or 'none'}")
    if not known:
        raise InputError("records.parquet has no target column; give labels to `ensemble ingest`")
    return tuple(known[name] for name in tasks or known)


def task_specs(targets: Sequence[Target]) -> list[TaskSpec]:
    """Return what heads call a task."""
    return [TaskSpec(t.name, t.kind, t.classes, t.unit, t.horizons, t.parents) for t in targets]
