"""Arrays: signals of one rate in one file, labels from a CSV with one row a record, in the same order.

The file is a .npy file or HDF5 dataset [record, lead, time] or [record, time, lead], or Parquet with a list per lead.
"""

from __future__ import annotations

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
from stages.cohorts._base import Cohort, Entries, register
from stages.cohorts._hdf5 import Stamp, check_size, dataset, stamp_of
from stages.cohorts.wfdb_folder import LabelOptions, add_labels, check_column, read_labels
from stages.readers import Recording, inside
from stages.readers.wfdb_record import MAX_SAMPLES

MAX_GROUP_BYTES = 1 << 30
SAMPLE_BYTES = 8
MILLIVOLTS = {"mV": 1.0, "uV": 1e-3, "V": 1e3}


class ArrayOptions(LabelOptions):
    """Where the signals lie and what they are; the label options are those of the source `wfdb`."""

    file: str
    rate_hz: float = Field(gt=0, le=1e6, allow_inf_nan=False)
    leads: tuple[str, ...] = LEADS
    units: Literal["mV", "uV", "V"] = "mV"
    dataset: str = "signals"


@register("arrays")
class Arrays(Cohort):
    """Signals of one rate in one file."""

    title = "arrays (a .npy, .h5 or .parquet file, and a CSV of labels)"
    options_type = ArrayOptions
    options: ArrayOptions

    def entries(self) -> Entries:
        """Count the records, and read the labels, row for row."""
        self.require(self.options.file)
        n_records = len(self._rows())
        numbers = [str(row) for row in range(n_records)]
        frame = pd.DataFrame({"record_id": numbers, "patient_id": None, "path": numbers})
        if self.options.labels is None:
            return Entries(frame, [], ["no labels: name a CSV file by the option 'labels'"])
        table, path, notes = read_labels(self.folder, self.options, row_for_row=True)
        if len(table) != n_records:
            raise InputError(f"{path}: has {len(table)} rows for the {n_records} records of {self.options.file}")
        if self.options.id is not None:
            check_column(table, path, self.options.id, "id")
            frame["record_id"] = table[self.options.id]
        targets: list[Target] = add_labels(frame, table, list(range(n_records)), path, self.options, notes)
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
        path = inside(self.folder, self.options.file)
        if path.endswith(".npy"):
            return _npy(path, stamp_of(path))
        if path.endswith((".h5", ".hdf5")):
            return dataset(path, self.options.dataset, 3)
        if path.endswith(".parquet"):
            return _parquet(path, self.options.leads, stamp_of(path))
        raise UsageError(f"option 'file': {self.options.file} is none of .npy, .h5, .hdf5, .parquet")


@lru_cache(maxsize=4)
def _npy(path: str, stamp: Stamp) -> np.ndarray:
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path}: not a .npy file of numbers") from error
    if rows.ndim != 3 or rows.dtype.kind not in "fiu":
        raise InputError(f"{path}: holds {rows.dtype} {rows.shape}; expected numbers [record, lead, time]")
    return rows


class _Lists:
    """Rows of a Parquet file with one list column a lead; one row group is held at a time."""

    def __init__(self, path: str, leads: tuple[str, ...]) -> None:
        try:
            self._file = pq.ParquetFile(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{path}: not a readable Parquet file") from error
        absent = [name for name in leads if name not in self._file.schema_arrow.names]
        if absent:
            raise InputError(f"{Path(path).name}: has no column '{absent[0]}' (option 'leads')")
        for name in leads:
            kind = self._file.schema_arrow.field(name).type
            if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
                raise InputError(f"{Path(path).name}: column '{name}' holds {kind}, not a list of samples a record")
        self._leads = leads
        sizes = [self._file.metadata.row_group(k).num_rows for k in range(self._file.num_row_groups)]
        self._ends = np.cumsum(sizes)
        self._held: tuple[int, Any] = (-1, None)

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def __getitem__(self, row: int) -> np.ndarray:
        group = int(np.searchsorted(self._ends, row, side="right"))
        if self._held[0] != group:
            self._held = (-1, None)  # never two in memory
            self._check_group(group)
            self._held = (group, self._file.read_row_group(group, columns=list(self._leads)))
        first = int(self._ends[group - 1]) if group else 0
        lists = [self._held[1][name][row - first].values for name in self._leads]
        if any(values is None for values in lists) or len({len(values) for values in lists}) != 1:
            raise InputError("its leads are not equally long")
        check_size((len(lists), len(lists[0])))
        return np.array([values.to_numpy(zero_copy_only=False) for values in lists], dtype=np.float64)

    def _check_group(self, group: int) -> None:
        """Refuse a row group too large to be held; a few packed bytes may stand for any number of samples."""
        told = self._file.metadata.row_group(group)
        columns = [told.column(k) for k in range(told.num_columns)]
        n_values = sum(c.num_values for c in columns if c.path_in_schema.split(".")[0] in self._leads)
        unpacked = max(told.total_byte_size, n_values * SAMPLE_BYTES)
        if unpacked > MAX_GROUP_BYTES or n_values > told.num_rows * MAX_SAMPLES:
            raise InputError(f"its row group unpacks to {unpacked >> 20} MB; write groups of fewer records")


@lru_cache(maxsize=4)
def _parquet(path: str, leads: tuple[str, ...], stamp: Stamp) -> _Lists:
    return _Lists(path, leads)
