"""predictions.parquet: one row per record, task, method and class; every number we report is computed from it.

Lives here: its layout, the writer that takes whole blocks, the reader that gives `blocks`. Not here: metrics.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cache.errors import InputError, MissingFileError, StoreError, UsageError
from cache.files import replacing
from cache.follow_up import status_at
from cache.record_columns import Texts, all_differ
from cache.records import SPLITS, Target
from stages.scoring.blocks import PredictionBlock

_TEXT = pa.dictionary(pa.int32(), pa.string())
COLUMNS: dict[str, tuple[pa.DataType, str]] = {
    "record_id": (_TEXT, "as in records.parquet"),
    "patient_id": (_TEXT, "the unit of the bootstrap"),
    "task": (_TEXT, "name of the target column"),
    "class": (_TEXT, "null for regression and binary; else every class, or answer of survival, has a row of its own"),
    "method": (_TEXT, "gate, expert:NAME, mean, concat, stacking, trivial, ..."),
    "split": (_TEXT, "train, val or test, seen from the fit that made the prediction"),
    "fold": (pa.int16(), "the fit that made the prediction: its held-out fold, 0 where there is one fit only"),
    "y_true": (
        pa.float64(),
        "value in the task's unit, or 0/1 for the class; null where the label is missing; survival: the time (minus "
        "where censored), or whether the event had not come by the horizon",
    ),
    "y_pred": (
        pa.float32(),
        "value in the task's unit, or the probability of the class (binary: of class 1); survival: the log-hazard, or "
        "the probability that the event has not come by the horizon",
    ),
}
TextArray: TypeAlias = Sequence[str] | np.ndarray | pa.Array | pa.ChunkedArray
_TASKS_KEY = b"ensemble.tasks"
_ROWS_PER_GROUP = 1 << 20


class PredictionWriter:
    """Appends blocks to an open predictions.parquet; use it through `writing_predictions`."""

    def __init__(self, sink: pq.ParquetWriter, schema: pa.Schema, tasks: Mapping[str, Target]) -> None:
        self._sink, self._schema, self._tasks = sink, schema, tasks

    def add(
        self,
        task: str,
        method: str,
        split: str,
        fold: int,
        *,
        record_ids: TextArray,
        patient_ids: TextArray,
        y_true: np.ndarray,
        y_pred: np.ndarray,
    ) -> None:
        """Append one method's predictions for one task, split and fold.

        Parameters
        ----------
        y_true
            As `cache.target_array` gives it: missing is NaN, or -1 for multiclass.
        y_pred
            As in `PredictionBlock`. Leave a record out where a method has no prediction.

        Raises
        ------
        UsageError
            An unknown task or split.
        InputError
            Shapes that do not fit, a record twice, or a prediction that is not finite.
        """
        if task not in self._tasks:
            raise UsageError(f"task '{task}' is not one of this table's: {', '.join(self._tasks)}")
        if split not in SPLITS:
            raise UsageError(f"split '{split}' of method '{method}' is none of {', '.join(SPLITS)}")
        target = self._tasks[task]
        records, patients = _texts(record_ids), _texts(patient_ids)
        truth, predicted = truth_columns(target, y_true), np.asarray(y_pred, dtype=np.float32)
        predicted = predicted if predicted.ndim == 2 else predicted[:, None]
        what, answers = f"task '{task}', method '{method}'", target.answers
        _check_shapes(what, (len(records), len(answers) or 1), truth, predicted)
        _check_rows(what, records, patients, predicted)
        if len(records):
            labels = {"task": task, "method": method, "split": split, "fold": fold}
            self._sink.write_table(
                _long_table(self._schema, labels, (records, patients), answers or None, (truth, predicted)),
                row_group_size=_ROWS_PER_GROUP,
            )


def _texts(names: TextArray) -> pa.Array:
    """Return names as Arrow has them."""
    if isinstance(names, pa.ChunkedArray):
        names = names.combine_chunks()
    return names if isinstance(names, pa.Array) else pa.array(list(names), pa.string())


def truth_columns(target: Target, y_true: np.ndarray) -> np.ndarray:
    """Return what the column y_true holds, float64 [n, answers], NaN where it is not known.

    Parameters
    ----------
    y_true
        As `cache.target_array` gives it.
    """
    truth = np.asarray(y_true, dtype=np.float64)
    if target.kind == "multiclass":
        truth = np.where(truth[:, None] < 0, np.nan, truth[:, None] == np.arange(len(target.classes)))
    if target.kind == "survival":
        truth = np.column_stack([truth, status_at(truth, target.horizons)])
    return truth if truth.ndim == 2 else truth[:, None]


def _check_shapes(what: str, expected: tuple[int, int], truth: np.ndarray, predicted: np.ndarray) -> None:
    for name, shape in (("y_true", truth.shape), ("y_pred", predicted.shape)):
        if shape != expected:
            raise InputError(f"{what}: {name} has the shape {shape}, expected {expected} (records, classes)")


def _check_rows(what: str, records: pa.Array, patients: pa.Array, predicted: np.ndarray) -> None:
    if len(patients) != len(records):
        raise InputError(f"{what}: {len(patients)} patient_ids for {len(records)} record_ids")
    if patients.null_count:
        raise InputError(
            f"{what}: {patients.null_count} records have no patient_id; name each one's patient, or itself"
        )
    if not all_differ(records):
        counts = records.value_counts()
        twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))[0]
        raise InputError(f"{what}: record '{twice}' occurs twice in one split and fold")
    bad = ~np.isfinite(predicted).all(axis=1)
    if bad.any():
        raise InputError(
            f"{what}: record '{records[int(bad.argmax())]}' has a prediction that is not finite ({int(bad.sum())} "
            "such); leave out records without a prediction"
        )


def _long_table(
    schema: pa.Schema,
    labels: Mapping[str, Any],
    ids: tuple[pa.Array, pa.Array],
    classes: tuple[str, ...] | None,
    values: tuple[np.ndarray, np.ndarray],
) -> pa.Table:
    """Return the long rows, class after class, so that equal values lie together."""
    (records, patients), (truth, predicted) = ids, values
    n, width = predicted.shape
    known = patients.dictionary_encode()
    columns = {
        "record_id": coded(np.tile(np.arange(n, dtype=np.int32), width), records),
        "patient_id": coded(np.tile(known.indices.to_numpy(), width), known.dictionary),
        "class": coded(np.repeat(np.arange(width, dtype=np.int32), n), classes) if classes else pa.nulls(n, _TEXT),
        "y_true": pa.array(truth.T.ravel(), from_pandas=True),
        "y_pred": pa.array(predicted.T.ravel()),
        "fold": pa.array(np.full(n * width, labels["fold"], dtype=np.int16)),
    }
    for name in ("task", "method", "split"):
        columns[name] = coded(np.zeros(n * width, np.int32), [labels[name]])
    return pa.table([columns[name] for name in schema.names], schema=schema)


def coded(codes: np.ndarray, values: TextArray) -> pa.DictionaryArray:
    """Return texts [n] by their codes, int32 [n]."""
    return pa.DictionaryArray.from_arrays(codes, _texts(values))


@contextlib.contextmanager
def writing_predictions(path: str | Path, tasks: Mapping[str, Target]) -> Iterator[PredictionWriter]:
    """Open a new predictions.parquet; it appears, whole, when the block ends without an error.

    The same blocks in the same order give the same bytes. Memory is bounded by one block.

    Examples
    --------
    >>> with writing_predictions("predictions.parquet", tasks) as table:
    ...     table.add("age", "gate", "test", 0, record_ids=ids, patient_ids=patients, y_true=age, y_pred=guess)
    """
    fields = [pa.field(name, kind, metadata={"description": text}) for name, (kind, text) in COLUMNS.items()]
    described = json.dumps({name: _fields(target) for name, target in tasks.items()})
    schema = pa.schema(fields, metadata={_TASKS_KEY: described.encode()})
    text = [name for name, (kind, _) in COLUMNS.items() if kind == _TEXT]
    with (
        replacing(Path(path)) as temporary,
        pq.ParquetWriter(
            temporary,
            schema,
            compression="zstd",
            use_dictionary=[*text, "y_true"],
            column_encoding={"y_pred": "BYTE_STREAM_SPLIT"},
        ) as sink,
    ):
        yield PredictionWriter(sink, schema, tasks)


class Predictions:
    """Reader of predictions.parquet; open it with `open_predictions`.

    Attributes
    ----------
    tasks
        Name -> `Target` (kind, unit, classes), as stored in the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._metadata = pq.read_schema(path).metadata or {}
        except (pa.ArrowInvalid, OSError) as error:
            raise StoreError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from error
        if _TASKS_KEY not in self._metadata:
            raise StoreError(f"{path}: not a predictions table of this program; run `ensemble evaluate` to make one")
        stored = json.loads(self._metadata[_TASKS_KEY])
        self.tasks = {name: _target(fields) for name, fields in stored.items()}

    @cached_property
    def _pairs(self) -> list[tuple[str, str]]:
        """Each task and method, in the order they were written."""
        pairs: dict[tuple[str, str], None] = {}
        with pq.ParquetFile(self.path) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=["task", "method"])
                (task, tasks), (method, methods) = (_codes(table.column(name)) for name in ("task", "method"))
                _, first = np.unique(task.astype(np.int64) * (len(methods) + 1) + method, return_index=True)
                rows = np.sort(first)
                names = (words.take(pa.array(codes[rows])) for codes, words in ((task, tasks), (method, methods)))
                pairs |= dict.fromkeys(zip(*(words.to_pylist() for words in names), strict=True))
        return list(pairs)

    def methods(self, task: str) -> list[str]:
        """Return the methods that predict a task, in the order they were written."""
        return [method for name, method in self._pairs if name == task]

    def read(self, task: str, method: str, split: str | None = None) -> PredictionBlock:
        """Return what one method predicts for one task, in one split or in all."""
        return _block(self.tasks[task], self._rows(list(COLUMNS), task, method, split))

    def is_labelled(self, task: str, method: str, split: str) -> bool:
        """Whether a method predicts a record of a split that has a label."""
        y_true = self._rows(["y_true"], task, method, split).column("y_true")
        return y_true.null_count < len(y_true)

    def _rows(self, columns: list[str], task: str, method: str, split: str | None) -> pa.Table:
        """Read the rows of one task and method, a row group at a time."""
        wanted = {"task": task, "method": method} | ({"split": split} if split else {})
        parts = []
        with pq.ParquetFile(self.path) as file:
            schema = pa.schema([file.schema_arrow.field(name) for name in columns])
            for group in range(file.num_row_groups):
                if _may_hold(file.metadata.row_group(group), wanted):
                    table = file.read_row_group(group, columns=[*dict.fromkeys([*columns, *wanted])])
                    for name, value in wanted.items():
                        table = table.filter(pc.equal(table.column(name), value))
                    parts.append(table.select(columns))
        return pa.concat_tables(parts) if parts else schema.empty_table()


def open_predictions(path: str | Path = "predictions.parquet") -> Predictions:
    """Open predictions.parquet for reading."""
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist; run `ensemble evaluate` first")
    return Predictions(path)


def _fields(target: Target) -> dict[str, Any]:
    """Return what `_target` reads; parents only where there are some."""
    return {name: value for name, value in dataclasses.asdict(target).items() if value or name != "parents"}


def _target(fields: Mapping[str, Any]) -> Target:
    listed = {name: tuple(fields.get(name, ())) for name in ("classes", "horizons")}
    parents = tuple((child, task, parent) for child, task, parent in fields.get("parents", ()))
    return Target(**{**fields, **listed, "parents": parents})


def _may_hold(group: pq.RowGroupMetaData, wanted: Mapping[str, str]) -> bool:
    """Whether a row group's statistics allow rows with the wanted texts; without statistics they do."""
    for k in range(group.num_columns):
        column = group.column(k)
        value, known = wanted.get(column.path_in_schema), column.statistics
        if value is not None and known is not None and known.has_min_max and not known.min <= value <= known.max:
            return False
    return True


def _codes(column: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    """Return codes, int32 [n], and their texts, in order of first appearance; null is code -1."""
    merged = column.cast(_TEXT).unify_dictionaries()
    if not merged.num_chunks:
        return np.empty(0, np.int32), pa.array([], pa.string())
    codes = [pc.fill_null(chunk.indices, -1).to_numpy(zero_copy_only=False) for chunk in merged.chunks]
    return np.concatenate(codes), merged.chunk(0).dictionary


def _block(target: Target, table: pa.Table) -> PredictionBlock:
    """Turn long rows, in whatever order, into arrays with one row per record, split and fold."""
    coded = {name: _codes(table.column(name)) for name in ("record_id", "patient_id", "split", "class")}
    fold, width = table.column("fold").to_numpy(), len(target.answers)
    first, row = _rows_of(coded["split"][0], coded["record_id"][0], fold)
    column = _class_positions(target, *coded["class"]) if width else 0
    y_true = np.full((len(first), width or 1), np.nan)
    y_pred = np.full(y_true.shape, np.nan, dtype=np.float32)
    y_true[row, column] = table.column("y_true").to_numpy()
    y_pred[row, column] = table.column("y_pred").to_numpy()
    records, patients, splits = (
        Texts.numbered(coded[name][0][first], coded[name][1]) for name in ("record_id", "patient_id", "split")
    )
    return PredictionBlock(records, patients, splits, fold[first], *_kind_arrays(target, y_true, y_pred))


def _rows_of(split: np.ndarray, record: np.ndarray, fold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first long row of each record, split and fold, in order, and the place of each row's among them."""
    key = split.astype(np.int64) * (int(fold.max(initial=0)) + 2) + fold + 1
    key *= int(record.max(initial=0)) + 2
    key += record
    if (key[1:] > key[:-1]).all():
        return np.arange(len(key)), np.arange(len(key))
    _, first, row = np.unique(key, return_index=True, return_inverse=True)
    return first, row


def _class_positions(target: Target, codes: np.ndarray, names: pa.Array) -> np.ndarray:
    order = {name: k for k, name in enumerate(target.answers)}
    positions = np.array([*(order.get(name, -1) for name in names.to_pylist()), -1], dtype=np.int64)[codes]
    if (positions < 0).any():
        wrong = codes[positions < 0][0]
        name = "null" if wrong < 0 else f"'{names[wrong]}'"
        raise StoreError(f"task '{target.name}' has predictions for the class {name}, which is none of its classes")
    return positions


def _kind_arrays(target: Target, y_true: np.ndarray, y_pred: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if target.kind == "multilabel":
        return y_true, y_pred
    if target.kind == "survival":
        return y_true[:, 0], y_pred
    if target.kind == "multiclass":
        missing = np.isnan(y_true).any(axis=1)
        return np.where(missing, -1, np.argmax(y_true, axis=1)), y_pred
    return y_true[:, 0], y_pred[:, 0]
