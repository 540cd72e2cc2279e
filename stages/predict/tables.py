"""The files that `predict --out` writes: answers, gate weights and warnings, long; first part by part, then as one.

Lives here: layout and bytes. Not here: which parts there are and who makes them (parts.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cache.errors import StoreError, UsageError
from cache.files import replacing, staged
from cache.records import Target
from stages.heads import EnsembleHeads
from stages.heads.predictor import Answers
from stages.heads.targets.tasks import TaskSpec
from stages.predict.answering import known_rows
from stages.predict.batches import RecordBatch

_TEXT = pa.dictionary(pa.int32(), pa.string())
UNREADABLE, WARNING = "unreadable", "warning"
METHOD = "gate"
COLUMNS: dict[str, dict[str, tuple[pa.DataType, str]]] = {
    "predictions": {
        "record_id": (_TEXT, "as the manifest or the study says; else the path that was named or found"),
        "patient_id": (_TEXT, "as the manifest or the study says; else null"),
        "task": (_TEXT, "as in predictions.parquet"),
        "class": (
            _TEXT,
            "null for regression and binary; else every class, or answer of survival, has a row of its own",
        ),
        "method": (_TEXT, "gate"),
        "y_pred": (
            pa.float32(),
            "value in the task's unit, or the probability (binary: of class 1); survival: as in predictions.parquet",
        ),
        "low": (pa.float32(), "lower end of the interval of a value; null for classes"),
        "high": (pa.float32(), "upper end"),
        "above_threshold": (pa.bool_(), "whether the probability reaches the fit's operating point; null without one"),
        "in_set": (pa.bool_(), "whether the conformal set holds the class (binary: class 1); null without one"),
        "uncertain": (pa.bool_(), "whether that set holds another number of classes than one"),
    },
    "gate_weights": {
        "record_id": (_TEXT, "as in the predictions"),
        "task": (_TEXT, ""),
        "expert": (_TEXT, ""),
        "weight": (pa.float32(), "those of a record and task sum to 1"),
    },
    "warnings": {
        "record_id": (_TEXT, "as in the predictions"),
        "kind": (_TEXT, f"{UNREADABLE}: the record has no prediction; {WARNING}: it has, or some"),
        "message": (_TEXT, "why, or what to beware of"),
    },
}
ROWS_PER_GROUP = 1 << 15
"""What merging holds in memory."""
TASKS_KEY, FIT_KEY, IDENTITY_KEY = b"ensemble.tasks", b"ensemble.fit", b"ensemble.identity"
COVERAGE_KEY = b"ensemble.coverage"


class PartTables(NamedTuple):
    """What one part says, in the order of `COLUMNS`."""

    predictions: pa.Table
    gate_weights: pa.Table
    warnings: pa.Table


Answered = tuple[RecordBatch, Answers]


def out_files(out: Path) -> dict[str, Path]:
    """Return the file of each table: FILE.parquet, FILE.gate_weights.parquet, FILE.warnings.parquet."""
    return {name: out if name == "predictions" else out.with_suffix(f".{name}.parquet") for name in COLUMNS}


def part_tables(batches: Sequence[Answered], heads: EnsembleHeads) -> PartTables:
    """Return the rows of a part: task after task and class after class, so that equal values lie together."""
    names = [name for batch, _ in batches for name in batch.names]
    patients = [patient for batch, _ in batches for patient in batch.patients]
    predictions, weights = [], []
    for task in heads.tasks_:
        means = np.concatenate([answers.means[task.name] for _, answers in batches])
        known = np.flatnonzero(known_rows(means))
        ids = _chosen(names, known)
        wide, of_patients = means.ndim == 2, _chosen(patients, known)
        target = Target(task.name, task.kind, task.unit, task.classes, horizons=task.horizons)
        names_of_columns, beside = target.answers, _decided(heads, task, means[known])
        if task.kind == "regression":
            ends = np.concatenate([answers.intervals[task.name] for _, answers in batches])[known]
            beside |= {"low": ends[:, :1], "high": ends[:, 1:]}
        for number, values in enumerate(means[known].reshape(len(known), -1).T):
            labels = {"task": task.name, "class": names_of_columns[number] if wide else None, "method": METHOD}
            found = {"record_id": ids, "patient_id": of_patients, **labels, "y_pred": values}
            found |= {name: columns[:, number] for name, columns in beside.items()}
            predictions.append(_table("predictions", len(known), found))
        gate = np.concatenate([answers.gate_weights[task.name] for _, answers in batches])[known]
        for number, expert in enumerate(heads.experts_):
            found = {"record_id": ids, "task": task.name, "expert": expert, "weight": gate[:, number]}
            weights.append(_table("gate_weights", len(known), found))
    return PartTables(_joined(predictions), _joined(weights), _warnings(batches))


def _decided(heads: EnsembleHeads, task: TaskSpec, means: np.ndarray) -> dict[str, np.ndarray]:
    """Return the columns that thresholds and conformal sets give, each [n, classes]; what a fit does not hold, not."""
    found: dict[str, np.ndarray] = {}
    above = None if task.kind in ("regression", "survival") else heads.decisions_.points.above(task.name, means)
    if above is not None:
        found["above_threshold"] = above.reshape(len(means), -1)
    members = heads.decisions_.conformal.sets(task.name, means)
    if members is not None:
        n_held = members.sum(axis=-1)
        held = members if task.kind == "multiclass" else members[..., 1]
        found["in_set"] = held.reshape(len(means), -1)
        shape = found["in_set"].shape
        found["uncertain"] = np.broadcast_to((n_held != 1).reshape(len(means), -1), shape)
    return found


def _warnings(batches: Sequence[Answered]) -> pa.Table:
    rows = [
        row
        for batch, _ in batches
        for position, name in enumerate(batch.names)
        for row in (
            [(name, UNREADABLE, batch.unreadable[position])]
            if position in batch.unreadable
            else [(name, WARNING, text) for text in batch.warnings[position]]
        )
    ]
    columns = {name: [row[k] for row in rows] for k, name in enumerate(COLUMNS["warnings"])}
    return _table("warnings", len(rows), columns)


def _chosen(values: Sequence[Any], rows: np.ndarray) -> list[Any]:
    return [values[row] for row in rows.tolist()]


def _table(name: str, n: int, values: Mapping[str, Any]) -> pa.Table:
    """Return `n` rows; a column that is not given is null, a text stands for all of them."""
    schema = _schema(name)
    return pa.table([_column(values.get(field.name), n, field.type) for field in schema], schema=schema)


def _column(values: Any, n: int, kind: pa.DataType) -> pa.Array:
    if values is None:
        return pa.nulls(n, kind)
    if isinstance(values, str):
        return pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), pa.array([values]))
    if kind == _TEXT:
        return pa.array(values, pa.string()).dictionary_encode()
    numbers = np.asarray(values)
    if kind == pa.bool_():  # an undecided one is NaN
        return pa.array(numbers.astype(bool), mask=np.isnan(numbers.astype(np.float64)))
    return pa.array(numbers.astype(kind.to_pandas_dtype()), kind)


def _schema(name: str, metadata: Mapping[bytes, bytes] | None = None) -> pa.Schema:
    fields = [pa.field(column, kind, metadata={"description": text}) for column, (kind, text) in COLUMNS[name].items()]
    return pa.schema(fields, metadata=dict(metadata) if metadata else None)


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables).unify_dictionaries().combine_chunks()


# ---- parts on the disk -----------------------------------------------------------------------------------------------


def write_part(tables: PartTables, path: Path) -> None:
    """Write a part as one file, all or nothing: three Arrow streams, one behind the other."""
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with replacing(path) as temporary, temporary.open("wb") as file:
        for table in tables:
            with pa.ipc.new_stream(file, table.schema, options=options) as sink:
                sink.write_table(table)


def read_part(path: Path) -> PartTables:
    """Read a part.

    Raises
    ------
    StoreError
        It is damaged.
    """
    try:
        with pa.OSFile(str(path)) as file:
            return PartTables(*(pa.ipc.open_stream(file).read_all() for _ in COLUMNS))
    except (pa.ArrowInvalid, OSError, EOFError) as error:
        raise StoreError(f"{path} is damaged; remove it, and the same command makes it again") from error


class _Sink:
    """One file of the outcome, written in row groups of one size, whatever the parts' sizes."""

    def __init__(self, name: str, path: Path, metadata: Mapping[bytes, bytes], stack: ExitStack) -> None:
        schema = _schema(name, metadata)
        texts = [field.name for field in schema if field.type == _TEXT]
        numbers = [field.name for field in schema if pa.types.is_floating(field.type)]
        self._writer = stack.enter_context(
            pq.ParquetWriter(
                path,
                schema,
                compression="zstd",
                use_dictionary=texts,
                column_encoding=dict.fromkeys(numbers, "BYTE_STREAM_SPLIT"),
            )
        )
        self._schema, self._held, self._n_held = schema, list[pa.Table](), 0

    def add(self, table: pa.Table) -> None:
        self._held.append(table.replace_schema_metadata(self._schema.metadata))
        self._n_held += len(table)
        while self._n_held >= ROWS_PER_GROUP:
            self._write(ROWS_PER_GROUP)

    def end(self) -> None:
        self._write(self._n_held)

    def _write(self, n: int) -> None:
        if not n:
            return
        held = pa.concat_tables(self._held)
        self._writer.write_table(_joined([held.slice(0, n)]), row_group_size=ROWS_PER_GROUP)
        rest = held.slice(n)
        self._held, self._n_held = [rest], len(rest)


def merge(parts: Iterable[Path], out: Path, heads: EnsembleHeads, *, fit: str, identity: str) -> None:
    """Write the files of all parts, in their order; they appear together, the predictions last."""
    tasks = {task.name: task.to_dict() for task in heads.tasks_}
    metadata = {
        TASKS_KEY: json.dumps(tasks).encode(),
        FIT_KEY: fit.encode(),
        IDENTITY_KEY: identity.encode(),
        COVERAGE_KEY: json.dumps(heads.decisions_.conformal.coverage).encode(),
    }
    files = out_files(out)
    order = [files["gate_weights"], files["warnings"], files["predictions"]]
    with staged(order) as drafts, ExitStack() as stack:
        sinks = {name: _Sink(name, drafts[files[name]], metadata, stack) for name in COLUMNS}
        for part in parts:
            for name, table in zip(COLUMNS, read_part(part), strict=True):
                sinks[name].add(table)
        for sink in sinks.values():
            sink.end()


def unreadable_of(out: Path, n_named: int) -> tuple[int, list[str]]:
    """Return how many records an outcome has no prediction of because they cannot be read, and why the first ones."""
    n, lines = 0, list[str]()
    with pq.ParquetFile(out_files(out)["warnings"]) as file:
        for batch in file.iter_batches(columns=["kind", "message"]):
            kinds, messages = (batch.column(k).cast(pa.string()).to_pylist() for k in range(2))
            failed = [text for kind, text in zip(kinds, messages, strict=True) if kind == UNREADABLE]
            n += len(failed)
            lines += failed[: n_named - len(lines)]
    return n, lines


def check_out(out: Path) -> None:
    """Refuse a name that is no Parquet file's, or of a file that `predict` did not write.

    Raises
    ------
    UsageError
        One line that says what to name instead.
    """
    if out.suffix != ".parquet":
        raise UsageError(f"--out {out}: name a file that ends in .parquet")
    for file in out_files(out).values():
        if file.exists() and identity_of(file) is None:
            raise UsageError(f"--out {out}: {file} is there and no output of `ensemble predict`; name another file")


def identity_of(file: Path) -> str | None:
    """Return what an output was made from; None of a file that is none."""
    try:
        metadata = pq.read_schema(file).metadata or {}
    except (pa.ArrowInvalid, OSError):
        return None
    found = metadata.get(IDENTITY_KEY)
    return None if found is None else found.decode()
