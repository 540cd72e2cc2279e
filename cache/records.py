"""records.parquet: one row per ECG, with quality columns and the targets. Row order is that of every other store."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cache.errors import InputError, MissingFileError, StoreError
from cache.fingerprint import text_digest
from cache.storage.locations import Location, file_exists, location_of
from cache.storage.objects import ObjectPath
from cache.storage.sources import ObjectFile
from cache.storage.writing import Guard, replacing_at

Kind = Literal["regression", "binary", "multiclass", "multilabel", "survival"]
CellKind = Literal["regression", "binary", "multiclass", "multilabel"]
"""What one cell of a table of labels can be; a survival target needs two, a time and an event."""
KINDS: tuple[Kind, ...] = ("regression", "binary", "multiclass", "multilabel", "survival")
SPLITS = ("train", "val", "test")
ROW_GROUP_RECORDS = 65_536
"""What who reads only some rows holds in memory."""
CELLS_AT_ONCE = 16_384

BASE_COLUMNS: dict[str, tuple[pa.DataType, str]] = {
    "record_id": (pa.string(), "unique name of the ECG"),
    "patient_id": (pa.string(), "whom it was taken from; splits and bootstraps are by patient"),
    "source": (pa.string(), "cohort"),
    "path": (pa.string(), "file within the cohort's folder"),
    "sampling_rate_hz": (pa.float64(), "of the original file"),
    "n_samples": (pa.int64(), "of the original file"),
    "fold": (pa.int16(), "patient-disjoint fold, from 0"),
    "split": (pa.string(), "train, val or test"),
    "nan_fraction": (pa.float64(), "share of missing samples over the leads that are there"),
    "flat_leads": (pa.list_(pa.string()), "leads that never change"),
    "missing_leads": (pa.list_(pa.string()), "standard leads the file does not have"),
    "clipped_fraction": (pa.float64(), "share of samples at the converter's limit or beyond +-32.767 mV"),
    "status": (pa.string(), "ok, or bad: then the signal could not be read"),
    "reason": (pa.string(), "why it is bad; null otherwise"),
}


@dataclass(frozen=True)
class Target:
    """One target column: what a task learns.

    Attributes
    ----------
    kind
        regression (float), binary (0/1), multiclass (index into `classes`), multilabel (list of classes) or survival
        (float: the time of the event, or minus the time of censoring; `cache.follow_up`).
    unit
        Of a regression target, or of a survival target's times.
    horizons
        Times, ascending, until which probabilities of a survival target are predicted.
    parents
        (class, another target, the class of it that this one is a kind of); of multilabel and binary targets.
    """

    name: str
    kind: Kind
    unit: str = ""
    classes: tuple[str, ...] = ()
    description: str = ""
    horizons: tuple[float, ...] = ()
    parents: tuple[tuple[str, str, str], ...] = ()

    @property
    def answers(self) -> tuple[str, ...]:
        """Names of what is predicted, where that is more than one number: classes, or log-hazard and probabilities."""
        if self.kind == "survival":
            return ("log_hazard", *(f"survival_{horizon:g}" for horizon in self.horizons))
        return self.classes if self.kind in ("multiclass", "multilabel") else ()

    def arrow_type(self) -> pa.DataType:
        """Return the column type that holds this kind."""
        types = {k: pa.float64() for k in ("regression", "survival")} | {"binary": pa.int8(), "multiclass": pa.int16()}
        return types.get(self.kind) or pa.list_(pa.string())

    def metadata(self) -> dict[str, str]:
        """Return what is stored in the column's field metadata."""
        stored = {
            "kind": self.kind,
            "unit": self.unit,
            "classes": json.dumps(self.classes),
            "description": self.description,
        }
        rare = {"horizons": self.horizons, "parents": self.parents}
        return stored | {name: json.dumps(value) for name, value in rare.items() if value}


def _schema(targets: Sequence[Target], extra: dict[str, pa.DataType]) -> pa.Schema:
    base = [pa.field(name, kind, metadata={"description": text}) for name, (kind, text) in BASE_COLUMNS.items()]
    more = [pa.field(name, kind) for name, kind in extra.items()]
    return pa.schema(base + more + [pa.field(t.name, t.arrow_type(), metadata=t.metadata()) for t in targets])


def check_records(frame: pd.DataFrame) -> None:
    """Refuse a record_id that occurs twice, and a patient in two folds or splits.

    Parameters
    ----------
    frame
        The columns record_id, patient_id, fold and split of all rows.

    Raises
    ------
    InputError
        Naming the record or the patient.
    """
    ids = pa.array(frame["record_id"], pa.string(), from_pandas=True)
    ordered = ids.take(pc.sort_indices(ids))
    if pc.any(pc.equal(ordered[1:], ordered[:-1])).as_py():
        twice = frame["record_id"][frame["record_id"].duplicated()]
        raise InputError(f"record_id '{twice.iloc[0]}' occurs more than once ({len(twice)} repeated rows)")
    if frame["patient_id"].isna().any():
        frame = frame.loc[frame["patient_id"].notna(), ["patient_id", "fold", "split"]]
    encoded = pa.array(frame["patient_id"], pa.string()).dictionary_encode()
    person, names = encoded.indices.to_numpy(), encoded.dictionary
    leaking = np.zeros(len(names), bool)
    for column in ("fold", "split"):
        part = pd.factorize(frame[column])[0]
        usual = np.empty(len(names), part.dtype)
        usual[person] = part
        leaking[person[part != usual[person]]] = True
    if leaking.any():
        first = pc.min(names.filter(pa.array(leaking)))
        raise InputError(f"patient '{first}' is in more than one fold or split ({leaking.sum()} such patients)")


ROWS_KEY = b"ensemble.rows"


def write_records(
    path: Location,
    frame: pd.DataFrame,
    targets: Sequence[Target],
    extra: dict[str, pa.DataType] | None = None,
    row_options: Mapping[str, Any] | None = None,
    guard: Guard | None = None,
) -> None:
    """Write the table, all or nothing, to a file or an object; the same content gives the same bytes.

    Parameters
    ----------
    frame
        Columns of `BASE_COLUMNS`, the targets and those named in `extra` (name -> arrow type).
    row_options
        How the rows of signals.zarr were made, which new records to predict have to repeat; ready for JSON.
    guard
        Raises where this process may no longer write (`Claims.confirm`).

    Raises
    ------
    InputError
        A record_id twice, or a patient in two folds or splits.
    """
    absent = [name for name in BASE_COLUMNS if name not in frame]
    if absent:
        raise StoreError(f"records table lacks the columns {', '.join(absent)}")
    check_records(frame)
    starts = range(0, max(1, len(frame)), ROW_GROUP_RECORDS)
    groups = (frame.iloc[start : start + ROW_GROUP_RECORDS] for start in starts)
    write_record_groups(path, groups, targets, extra, row_options, guard)


def write_record_groups(
    path: Location,
    groups: Iterable[pd.DataFrame],
    targets: Sequence[Target],
    extra: dict[str, pa.DataType] | None = None,
    row_options: Mapping[str, Any] | None = None,
    guard: Guard | None = None,
) -> None:
    """Do what `write_records` does with a table of which one row group at a time is in memory.

    Parameters
    ----------
    groups
        Frames of `ROW_GROUP_RECORDS` rows, the last one of fewer. What must hold of all rows together is for the caller
        to check (`check_records`).
    """
    schema = _schema(targets, extra or {})
    if row_options is not None:
        schema = schema.with_metadata({ROWS_KEY: json.dumps(dict(row_options), sort_keys=True)})
    with replacing_at(path, guard) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as sink:
        for group in groups:
            columns = group[schema.names].copy(deep=False)
            columns.attrs = {}  # open_records keeps the targets there; the schema has them
            sink.write_table(pa.Table.from_pandas(columns, schema=schema, preserve_index=False))


READING_COLUMNS = (
    "path",
    "n_samples",
    "nan_fraction",
    "flat_leads",
    "missing_leads",
    "clipped_fraction",
    "reason",
    "derived_leads",
    "limb_swap",
    "pace_spikes",
    "notes",
)
"""What reading each file showed: most of the table's memory, and nothing that a learner or a judge needs."""


def open_records(
    path: str | Location = "records.parquet",
    *,
    columns: Sequence[str] | None = None,
    without: Sequence[str] = (),
    rows: np.ndarray | None = None,
) -> pd.DataFrame:
    """Read records.parquet as a DataFrame.

    A worker that needs some rows at a time takes `cache.record_rows` instead.

    Parameters
    ----------
    columns, without
        Only these columns, or all but these (`READING_COLUMNS`, say); a name that the table lacks is passed over.
    rows
        Only these rows, by their numbers in ascending order; one row group more is in memory.

    `frame.attrs["targets"]` maps each target's name to its `Target`; `frame.attrs["row_options"]` says how the rows of
    signals.zarr were made, empty where the table does not say it.
    """
    path = location_of(path)
    if not file_exists(path):
        raise MissingFileError(f"{path} does not exist; run `ensemble ingest` first")
    try:
        schema = pq.read_schema(parquet_source(path))
        wanted = [name for name in schema.names if (columns is None or name in columns) and name not in without]
        table = pq.read_table(parquet_source(path), columns=wanted) if rows is None else _some(path, wanted, rows)
    except (pa.ArrowInvalid, OSError) as error:
        raise StoreError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from error
    absent = [name for name in BASE_COLUMNS if name not in schema.names]
    if absent:
        raise StoreError(f"{path}: lacks the columns {', '.join(absent)}; was it written by `ensemble ingest`?")
    lists = [name for name in wanted if pa.types.is_list(schema.field(name).type)]
    cells = {name: _cells(table.column(name)) for name in lists}
    n_rows, table = len(table), table.drop_columns(lists)
    # A column's Arrow memory goes when it is a frame's.
    frame = table.to_pandas(split_blocks=True, self_destruct=True) if table.num_columns else _rows_alone(n_rows)
    for name, column in cells.items():
        frame.insert(wanted.index(name), name, column)
    frame.attrs["targets"] = {name: target for name, target in targets_of(schema).items() if name in wanted}
    frame.attrs["row_options"] = json.loads((schema.metadata or {}).get(ROWS_KEY, b"{}"))
    return frame


def _some(path: Location, columns: list[str], rows: np.ndarray) -> pa.Table:
    """Read some rows, a row group at a time."""
    with pq.ParquetFile(parquet_source(path)) as file:
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        edges = np.searchsorted(rows, starts)
        parts = [
            file.read_row_group(group, columns=columns).take(pa.array(rows[low:high] - starts[group]))
            for group, (low, high) in enumerate(pairwise(edges.tolist()))
            if high > low
        ]
        empty = file.schema_arrow.empty_table().select(columns)
        return pa.concat_tables([empty, *parts])


def _rows_alone(n_rows: int) -> pd.DataFrame:
    return pd.DataFrame(index=pd.RangeIndex(n_rows))


def _cells(column: pa.ChunkedArray) -> np.ndarray:
    """Return lists as a frame's cells; equal ones are one array that cannot be written to, which saves 0.1 kB each."""
    found, lengths = np.full(len(column), None, dtype=object), pc.list_value_length(column).fill_null(-1).to_numpy()
    empty = _cell(())
    for row in np.flatnonzero(lengths == 0).tolist():
        found[row] = empty
    filled, shared = np.flatnonzero(lengths > 0), dict[tuple[str, ...], np.ndarray]()
    for start in range(0, len(filled), CELLS_AT_ONCE):
        rows = filled[start : start + CELLS_AT_ONCE]
        for row, names in zip(rows.tolist(), map(tuple, column.take(pa.array(rows)).to_pylist()), strict=True):
            if names not in shared:
                shared[names] = _cell(names)
            found[row] = shared[names]
    return found


def _cell(names: Sequence[str]) -> np.ndarray:
    cell = np.array(names, dtype=object)
    cell.setflags(write=False)
    return cell


def parquet_source(file: Location) -> Any:
    """Return what pyarrow reads a table through, only the parts that it needs: a path, or an object's ranges."""
    return pa.PythonFile(ObjectFile(file), mode="r") if isinstance(file, ObjectPath) else file


def targets_of(schema: pa.Schema) -> dict[str, Target]:
    """Return the targets that a table of this schema has, by their names."""
    return {target.name: target for target in map(_target_of, schema) if target}


def _target_of(column: pa.Field) -> Target | None:
    stored = {k.decode(): v.decode() for k, v in (column.metadata or {}).items()}
    if stored.get("kind") not in KINDS:
        return None
    classes, horizons = (tuple(json.loads(stored.pop(name, "[]"))) for name in ("classes", "horizons"))
    parents = tuple((child, target, parent) for child, target, parent in json.loads(stored.pop("parents", "[]")))
    return Target(name=column.name, classes=classes, horizons=horizons, parents=parents, **stored)


def records_digest(record_ids: Sequence[str]) -> str:
    """Return the digest of the row order; embedding stores carry it, so that rows are never joined by accident."""
    return text_digest(record_ids)


def target_array(frame: pd.DataFrame, target: Target) -> np.ndarray:
    """Return one target as an array a learner can use.

    Returns
    -------
    float64 [n] for regression, survival and binary (missing = NaN), int64 [n] for multiclass (missing = -1), float64
    [n, classes] of 0, 1 or NaN for multilabel.
    """
    if target.name not in frame:
        raise InputError(f"records.parquet has no column '{target.name}'; it has the targets: {_names(frame)}")
    column = frame[target.name]
    if target.kind == "multilabel":
        return _multi_hot(column.tolist(), target.classes)
    values = pd.to_numeric(column, errors="raise").to_numpy(dtype=np.float64, na_value=np.nan)
    return np.where(np.isnan(values), -1, values).astype(np.int64) if target.kind == "multiclass" else values


def _names(frame: pd.DataFrame) -> str:
    return ", ".join(frame.attrs.get("targets", {})) or "none"


def _multi_hot(rows: list[Any], classes: tuple[str, ...]) -> np.ndarray:
    index = {name: k for k, name in enumerate(classes)}
    hot = np.zeros((len(rows), len(classes)))
    for i, present in enumerate(rows):
        if present is None or (isinstance(present, float) and np.isnan(present)):
            hot[i] = np.nan
        else:
            hot[i, [index[name] for name in present]] = 1.0
    return hot
