"""Vectors from and to other tools: .npy, .npz and .parquet files in, .npy and .parquet files out.

Rows are joined by record id, never by position: what the ids file does not name is never guessed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cache.claims import claims_on
from cache.embedding_layout import VIEWS, Identity, Layout, Shard
from cache.embeddings import EmbeddingStore, open_embeddings
from cache.errors import InputError, MissingFileError, StoreError, UsageError
from cache.files import replacing
from cache.records import records_digest
from cache.storage.locations import Location
from cache.upkeep.kept import set_aside
from cache.upkeep.resume import create_embeddings

IMPORTED = "imported"
"""What stands in an imported store's attributes for how the vectors were made: only their digest is known."""
ID_COLUMN = "record_id"
AXES = {"embedding": 2, "layers": 3, "output": 2, **{name: 3 if name == "segments" else 2 for name in VIEWS}}
"""Arrays that a store may have, and their axes."""
ROWS_AT_ONCE = 4096
"""Rows that are looked at together before anything is written."""


def read_vectors(path: Path, id_column: str = ID_COLUMN) -> tuple[dict[str, np.ndarray], list[str] | None]:
    """Read vectors of another tool.

    Parameters
    ----------
    path
        Of floats or whole numbers: .npy [record, dim] or [record, layer, dim]; .npz with `embedding` and, if there are
        any, `layers`, `output`, views (`segments`, `std`, `max`, `last`) and `record_id`; .parquet with the id column
        and a list column `embedding`, or one number column a dimension.

    Returns
    -------
    Arrays `embedding` [record, dim], `layers` [record, layer, dim], perhaps `output` and views; and the record ids
    where the file holds them.
    """
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist")
    readers = {".npy": _read_npy, ".npz": _read_npz, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise UsageError(f"{path}: expected a file .npy, .npz or .parquet")
    try:
        arrays, ids = readers[path.suffix](path, id_column)
    except (ValueError, OSError, EOFError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read ({(str(error).splitlines() or ['empty'])[0]})") from error
    return _completed(path, arrays), ids


def _read_npy(path: Path, _: str) -> tuple[dict[str, np.ndarray], list[str] | None]:
    values = np.load(path, mmap_mode="r", allow_pickle=False)
    return {"layers" if values.ndim == 3 else "embedding": values}, None


def _read_npz(path: Path, id_column: str) -> tuple[dict[str, np.ndarray], list[str] | None]:
    with np.load(path, allow_pickle=False) as content:
        arrays = {name: content[name] for name in AXES if name in content}
        ids = [str(value) for value in content[id_column]] if id_column in content else None
    return arrays, ids


def _read_parquet(path: Path, id_column: str) -> tuple[dict[str, np.ndarray], list[str] | None]:
    table = pq.read_table(path)
    ids = table[id_column].cast(pa.string()).to_pylist() if id_column in table.column_names else None
    if "embedding" in table.column_names:
        return {"embedding": _stacked(path, table["embedding"], ids)}, ids
    columns = [name for name in table.column_names if name != id_column]
    text = [name for name in columns if not _is_number(table[name].type)]
    if text:
        raise InputError(f"{path}: column '{text[0]}' does not hold numbers; leave it out")
    return {"embedding": np.column_stack([table[name].to_numpy() for name in columns])}, ids


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _stacked(path: Path, column: pa.ChunkedArray, ids: list[str] | None) -> np.ndarray:
    """Return lists of one length as [record, dim]; a number that is null becomes NaN.

    Raises
    ------
    InputError
        No lists of numbers, a null list or one of another length than the first; names the first such row.
    """
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        held = str(kind).removeprefix("large_")  # how pandas 3.1 writes the same
        raise InputError(f"{path}: column 'embedding' holds {held}; expected a list of numbers for each record")
    if not _is_number(kind.value_type):
        held = str(kind.value_type).removeprefix("large_")
        raise InputError(f"{path}: column 'embedding' holds lists of {held}; expected lists of numbers")
    lengths = pc.list_value_length(column).to_numpy()  # NaN for a null
    known = lengths[np.isfinite(lengths)]
    wrong = np.flatnonzero(lengths != (known[0] if len(known) else -1))
    if len(wrong):
        row = int(wrong[0])
        record = f" (record '{ids[row]}')" if ids is not None else ""
        what = f"{lengths[row]:.0f} numbers, others {known[0]:.0f}" if np.isfinite(lengths[row]) else "no list (null)"
        raise InputError(
            f"{path}: row {row}{record} of column 'embedding' has {what}; leave that record out, or give it a list of "
            "NaN where it could not be embedded"
        )
    width = int(known[0]) if len(known) else 0
    return np.asarray(pc.list_flatten(column).to_numpy()).reshape(len(column), width)


def _completed(path: Path, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Check the shapes; vectors without layers are their own only layer, layers alone are averaged."""
    if "embedding" not in arrays and "layers" not in arrays:
        raise InputError(f"{path}: holds neither `embedding` nor `layers`")
    arrays.setdefault("embedding", arrays["layers"].mean(axis=1) if "layers" in arrays else np.empty(0))
    arrays.setdefault("layers", arrays["embedding"][:, None])
    for name, axes in AXES.items():
        values = arrays.get(name)
        if values is None:
            continue
        if values.ndim != axes or values.dtype.kind not in "fiu":
            raise InputError(f"{path}: {name} is {values.dtype} {values.shape}; expected numbers with {axes} axes")
        if len(values) != len(arrays["embedding"]):
            raise InputError(f"{path}: {name} has {len(values)} rows, embedding {len(arrays['embedding'])}")
    return arrays


def read_ids(path: Path, id_column: str = ID_COLUMN) -> list[str]:
    """Read the record ids, in the order of the vectors, from one column of a CSV or Parquet file."""
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist")
    try:
        frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, dtype=str)
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from error
    if id_column not in frame:
        raise InputError(f"{path}: has no column '{id_column}'; it has: {', '.join(map(str, frame.columns))}")
    return [str(value) for value in frame[id_column]]


def place_rows(ids: Sequence[str], records: pd.DataFrame) -> np.ndarray:
    """Return for each row of records.parquet its row among `ids`; -1 for unreadable records that `ids` leaves out.

    Raises
    ------
    InputError
        An id twice, one that records.parquet does not have, or a readable record without one.
    """
    where = pd.Index(ids)
    if where.has_duplicates:
        raise InputError(f"record id '{where[where.duplicated()][0]}' occurs more than once")
    known = pd.Index(records["record_id"])
    unknown = where.difference(known)
    if len(unknown):
        raise InputError(
            f"{len(unknown)} record ids are not in records.parquet, such as '{unknown[0]}'; leave those rows out"
        )
    rows = where.get_indexer(known)
    lost = known[(rows < 0) & (records["status"] == "ok").to_numpy()]
    if len(lost):
        raise InputError(f"{len(lost)} records have no vector, such as '{lost[0]}'; every readable record needs one")
    return np.asarray(rows)


def import_vectors(
    store: Location,
    arrays: dict[str, np.ndarray],
    ids: Sequence[str],
    records: pd.DataFrame,
    *,
    state: Path,
    signals_digest: str = "",
    layer_names: Sequence[str] | None = None,
    dtype: str = "float16",
    shard_records: int = 1024,
) -> EmbeddingStore:
    """Write vectors of another tool as a store, row for row with records.parquet.

    Raises
    ------
    InputError
        Ids that do not fit the records or the vectors.
    StoreError
        A value that does not fit `dtype`, or a store that another process works in.
    """
    if len(ids) != len(arrays["embedding"]):
        raise InputError(f"{len(ids)} record ids for {len(arrays['embedding'])} vectors: there must be one each")
    rows = place_rows(ids, records)
    names = tuple(layer_names or (f"layer_{k}" for k in range(arrays["layers"].shape[1])))
    if len(names) != arrays["layers"].shape[1]:
        raise UsageError(f"{len(names)} layer names ({', '.join(names)}) for {arrays['layers'].shape[1]} layers")
    if len(set(names)) < len(names) or {"", *AXES} & set(names):
        raise UsageError(f"layer names {', '.join(names)}: each must differ, and none be {', '.join(AXES)}")
    layout = Layout(
        n_records=len(records),
        layer_names=names,
        layer_dims=(arrays["layers"].shape[2],) * len(names),
        embedding_dim=arrays["embedding"].shape[1],
        output_dim=arrays["output"].shape[1] if "output" in arrays else 0,
        dtype=dtype,
        shard_records=shard_records,
        views={name: arrays[name].shape[1:] for name in VIEWS if name in arrays},
    )
    _check_fits(arrays, ids, dtype)
    identity = Identity(_imported(store.stem, arrays, dtype), signals_digest, records_digest(records[ID_COLUMN]))
    claims = claims_on(store, state)
    try:
        if not claims.try_acquire():
            raise StoreError(f"{store}: another process works in it; wait for it to end")
        set_aside(store, identity.fingerprint, claims.confirm)
        made = create_embeddings(store, layout, identity, guard=claims.confirm)
        for shard in range(made.n_shards):
            taken = {name: _taken(values, rows[made.rows_of(shard)]) for name, values in arrays.items()}
            made.write(shard, Shard.of(taken), claims.confirm)
    finally:
        claims.close()
    return made


def _check_fits(arrays: dict[str, np.ndarray], ids: Sequence[str], dtype: str) -> None:
    """Look for values that the store's type cannot hold, before a store is made or replaced.

    Raises
    ------
    InputError
        Names the first such record.
    """
    for name, values in arrays.items():
        for start in range(0, len(values), ROWS_AT_ONCE):
            part = np.asarray(values[start : start + ROWS_AT_ONCE], dtype=np.float32)
            with np.errstate(over="ignore"):
                wrong = np.isinf(part.astype(dtype)).reshape(len(part), -1)
            if wrong.any():
                row, column = (int(index) for index in np.argwhere(wrong)[0])
                found = part.reshape(len(part), -1)[row, column]
                fix = "say --dtype float32" if np.isfinite(found) else "leave that record out, or give it NaN"
                raise InputError(
                    f"{name} of record '{ids[start + row]}' holds {found:g}, which does not fit {dtype}; {fix}"
                )


def _imported(expert: str, arrays: dict[str, np.ndarray], dtype: str) -> dict[str, Any]:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    how = {"version": IMPORTED, "weights_sha256": digest.hexdigest(), "config": {}}
    return {"expert": expert, **how, "preprocessing": IMPORTED, "precision": IMPORTED, "dtype": dtype}


def _taken(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    taken = np.asarray(values[np.maximum(rows, 0)], dtype=np.float32)
    taken[rows < 0] = np.nan
    return taken


def export_vectors(store: Location, records: pd.DataFrame, target: Path, what: str = "embedding") -> None:
    """Write vectors for other tools: .npy (row order of records.parquet) or .parquet (record_id, patient_id, list).

    Parameters
    ----------
    what
        `embedding`, `output`, `layers` or `segments` (.npy only), another view, or the name of one layer.

    Raises
    ------
    StoreError
        A store that is incomplete, or has no such layer or output.
    """
    opened = open_embeddings(store)
    opened.require_records(records_digest(records[ID_COLUMN]))
    opened.require_complete()
    if target.suffix == ".npy":
        _export_npy(opened, what, target)
    elif target.suffix == ".parquet" and what not in ("layers", "segments"):
        _export_parquet(opened, what, records, target)
    else:
        raise UsageError(f"{target}: expected .npy, or .parquet for one vector a record ({what} is asked for)")


def _read(store: EmbeddingStore, what: str, rows: slice) -> np.ndarray:
    readers = {"embedding": store.read_embedding, "output": store.read_output, "layers": store.read_layers}
    if what in VIEWS and what not in store.layer_names:
        return store.read_view(what, rows)
    return readers[what](rows) if what in readers else store.read_layer(what, rows)


def _export_npy(store: EmbeddingStore, what: str, target: Path) -> None:
    first = _read(store, what, slice(0, 1))
    with replacing(target) as temporary:
        shape = (len(store), *first.shape[1:])
        out = np.lib.format.open_memmap(temporary, mode="w+", dtype=first.dtype, shape=shape)
        for shard in range(store.n_shards):
            out[store.rows_of(shard)] = _read(store, what, store.rows_of(shard))
        out.flush()


def _export_parquet(store: EmbeddingStore, what: str, records: pd.DataFrame, target: Path) -> None:
    width = _read(store, what, slice(0, 1)).shape[1]
    kind = pa.list_(pa.float32(), width)
    schema = pa.schema([(ID_COLUMN, pa.string()), ("patient_id", pa.string()), ("embedding", kind)])
    with replacing(target) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for shard in range(store.n_shards):
            rows = store.rows_of(shard)
            flat = pa.array(_read(store, what, rows).astype(np.float32).reshape(-1))
            columns = [pa.array(records[name].iloc[rows], pa.string()) for name in (ID_COLUMN, "patient_id")]
            writer.write_table(pa.table([*columns, pa.FixedSizeListArray.from_arrays(flat, type=kind)], schema=schema))
