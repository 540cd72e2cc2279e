"""Arrays: signals of one rate in one file, labels from a CSV with one row a record, in the same order.

The file is a .npy file or HDF5 dataset [record, lead, time] or [record, time, lead], or Parquet with a list per lead.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from cache.errors import InputError, UsageError
from cache.records import Target
from cache.signals import LEADS
from stages.cohorts._registry import register
from stages.cohorts.contract import Cohort, Entries
from stages.cohorts.labels.join import add_labels
from stages.cohorts.labels.options import LabelOptions
from stages.cohorts.labels.table import check_column, read_labels
from stages.readers import Recording, inside
from stages.readers.amplitude import Amplitude
from stages.readers.arrays.hdf5 import Stamp, check_size, dataset, stamp_of
from stages.readers.wfdb.limits import MAX_SAMPLES

MAX_RECORDS = 10_000_000
"""As many as a table of labels may have; a few bytes may promise any number."""
MAX_COLUMN_BYTES = 1 << 30
"""Of one lead in one row group of a Parquet file: what the longest of its lists can take."""
SAMPLE_BYTES = 8
PAGE_BYTES = 1 << 16
MILLIVOLTS = {"mV": 1.0, "uV": 1e-3, "V": 1e3, "z-score": 1.0}
"""Unit -> what one of it is stored as; z-scores are kept as they are, and the table says so."""


class ArrayOptions(LabelOptions):
    """Where the signals lie and what they are; the label options are those of the source `wfdb`."""

    file: str
    rate_hz: float = Field(gt=0, le=1e6, allow_inf_nan=False)
    leads: tuple[str, ...] = LEADS
    units: Literal["mV", "uV", "V", "z-score"] = "mV"
    dataset: str = "signals"


@register("arrays")
class Arrays(Cohort):
    """Signals of one rate in one file."""

    title = "arrays (a .npy, .h5 or .parquet file, and a CSV of labels)"
    options_type = ArrayOptions
    holds = ()
    options: ArrayOptions

    @property
    def amplitude(self) -> Amplitude:
        """As the option `units` says."""
        return "z-score" if self.options.units == "z-score" else "mV"

    def entries(self) -> Entries:
        """Count the records, and read the labels, row for row."""
        self.require(self.options.file)
        n_records = len(self._rows())
        if n_records > MAX_RECORDS:
            raise InputError(f"{self.options.file}: promises {n_records} records, more than {MAX_RECORDS}")
        numbers = [str(row) for row in range(n_records)]
        frame = pd.DataFrame({"record_id": numbers, "patient_id": None, "path": numbers})
        if self.options.labels is None:
            return Entries(frame, [], ["no labels: name a CSV file by the option 'labels'"])
        table, path, notes = read_labels(self.folder, self.options, row_for_row=True)
        if len(table) != n_records:
            head = "; has it no head? Name its columns by the option 'columns'" if len(table) == n_records - 1 else ""
            raise InputError(f"{path}: has {len(table)} rows for the {n_records} records of {self.options.file}{head}")
        if self.options.id is not None:
            check_column(table, path, self.options.id, "id")
            frame["record_id"] = table[self.options.id]
        targets: list[Target] = add_labels(frame, table, [[row] for row in range(n_records)], path, self.options, notes)
        return Entries(frame, targets, notes)

    def read(self, path: str) -> Recording:
        """Read one record; `path` is its row."""
        rows = self._rows()
        check_size(getattr(rows, "shape", (0,))[1:])
        samples = np.asarray(rows[int(path)], dtype=np.float64)
        n_leads = len(self.options.leads)
        if samples.ndim != 2 or n_leads not in samples.shape:
            raise InputError(
                f"its array is {samples.shape}; neither axis has the {n_leads} leads of the option 'leads'"
            )
        signals_mv = (samples if samples.shape[0] == n_leads else samples.T) * MILLIVOLTS[self.options.units]
        return Recording(signals_mv, self.options.leads, self.options.rate_hz, signals_mv.shape[1])

    def _rows(self) -> Any:
        path = inside(self.data, self.options.file)
        if path.endswith(".npy"):
            return _npy(path, stamp_of(path))
        if path.endswith((".h5", ".hdf5")):
            return dataset(path, self.options.dataset, 3)
        if path.endswith(".parquet"):
            return _parquet(path, self.options.leads, stamp_of(path))
        raise UsageError(f"option 'file': {self.options.file} is none of .npy, .h5, .hdf5, .parquet")


@lru_cache(maxsize=4)
def _npy(path: str, stamp: Stamp) -> np.ndarray:  # noqa: ARG001
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    # Of a damaged head numpy says whatever Python's parser does.
    except Exception as error:
        raise InputError(f"{path}: not a .npy file of numbers") from error
    if rows.ndim != 3 or rows.dtype.kind not in "fiu":
        raise InputError(f"{path}: holds {rows.dtype} {rows.shape}; expected numbers [record, lead, time]")
    return rows


class _Lists:
    """Rows of a Parquet file with one list column a lead, read forwards; one row is held at a time."""

    def __init__(self, path: str, leads: tuple[str, ...]) -> None:
        self._leads = leads
        try:
            # Pages are read one by one: a whole column of a row group may not fit the memory.
            self._file = pq.ParquetFile(path, buffer_size=PAGE_BYTES, pre_buffer=False)
            schema, metadata = self._file.schema_arrow, self._file.metadata
            sizes = [metadata.row_group(k).num_rows for k in range(metadata.num_row_groups)]
        except (pa.ArrowException, OSError, ValueError) as error:
            raise InputError(f"{path}: not a readable Parquet file") from error
        for name in leads:
            n_columns = schema.names.count(name)
            if n_columns != 1:
                has = "no column" if n_columns == 0 else f"{n_columns} columns"
                raise InputError(f"{Path(path).name}: has {has} '{name}' (option 'leads')")
            kind = schema.field(name).type
            if not _is_samples(kind):
                raise InputError(f"{Path(path).name}: column '{name}' holds {kind}, not a list of samples a record")
        self._ends = np.cumsum(sizes, dtype=np.int64)
        self._group, self._next, self._columns = -1, 0, list[Iterator[pa.RecordBatch]]()
        self._held: list[Any] = []  # of each lead its samples, or None
        self._damage: dict[int, int] = {}
        """Row group -> the first of its rows that cannot be read."""

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def __getitem__(self, row: int) -> np.ndarray:
        group = int(np.searchsorted(self._ends, row, side="right"))
        self._go_to(group, row - (int(self._ends[group - 1]) if group else 0))
        if any(values is None for values in self._held) or len(set(map(len, self._held))) != 1:
            raise InputError("its leads are not equally long")
        return np.array([values.to_numpy(zero_copy_only=False) for values in self._held], dtype=np.float64)

    def _go_to(self, group: int, row: int) -> None:
        """Read on up to a row of a group, from the group's beginning if the row lies before."""
        if group != self._group or row < self._next - 1:
            self._group, self._next, self._columns, self._held = -1, 0, [], []
            self._check_group(group)
            self._group = group
        if row >= self._damage.get(group, row + 1):
            raise InputError("its row group is damaged, or has a list that is too long, here or before")
        if not self._columns:
            self._columns = [
                self._file.iter_batches(batch_size=1, row_groups=[group], columns=[name], use_threads=False)
                for name in self._leads
            ]
        while self._next <= row:
            self._held = []
            try:
                for column in self._columns:
                    values = next(column).column(0)[0].values
                    check_size((len(self._leads), 0 if values is None else len(values)))
                    self._held.append(values)
            # A reader keeps the room of its longest list, so that of twelve too long ones only one may be read.
            except (pa.ArrowException, OSError, ValueError, StopIteration) as error:
                self._damage[group], self._group, self._columns, self._held = self._next, -1, [], []
                raise error if isinstance(error, InputError) else InputError("its row group is damaged") from error
            self._next += 1

    def _check_group(self, group: int) -> None:
        """Refuse a row group whose lists may be too long to be held; a few packed bytes may stand for any number."""
        row_group = self._file.metadata.row_group(group)
        columns = [row_group.column(k) for k in range(row_group.num_columns)]
        for lead in self._leads:
            ours = [c for c in columns if c.path_in_schema.startswith(f"{lead}.")]
            n_values = sum(c.num_values for c in ours)
            unpacked = max(sum(c.total_uncompressed_size for c in ours), n_values * SAMPLE_BYTES)
            if unpacked > MAX_COLUMN_BYTES or n_values > row_group.num_rows * MAX_SAMPLES:
                raise InputError(f"its row group unpacks to {unpacked >> 20} MB a lead; write groups of fewer records")


def _is_samples(kind: pa.DataType) -> bool:
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return lists and (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type))


@lru_cache(maxsize=4)
def _parquet(path: str, leads: tuple[str, ...], stamp: Stamp) -> _Lists:  # noqa: ARG001
    return _Lists(path, leads)
