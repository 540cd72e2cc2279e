"""What a worker or a learner needs of records.parquet, without the table in memory.

Here: the number of rows, the digest of the first ones, a few columns of some rows, and single columns of all rows in a
few bytes each. The whole table is in `cache.records`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cache.errors import MissingFileError, StoreError
from cache.fingerprint import text_digest
from cache.record_columns import Texts, empty_labels, label_array
from cache.records import BASE_COLUMNS, ROWS_KEY, Target, parquet_source, targets_of
from cache.storage.locations import Location, file_exists, location_of

_COLUMNS = ("record_id", "status", "reason")
_BATCH_ROWS = 8_192


@dataclass(frozen=True)
class Row:
    """One record's name, and why its signal cannot be read ("" where it can)."""

    record_id: str
    unreadable: str


class RecordRows:
    """The rows of records.parquet, with one of its row groups (65,536 rows of a few columns) in memory.

    Parameters
    ----------
    columns
        What is held of a row; `read` needs the three of the default.
    optional
        Columns that a table need not have; null where it has none.
    every_target
        The targets as well.

    Raises
    ------
    MissingFileError, StoreError
        As `open_records`.
    """

    def __init__(
        self,
        path: str | Location,
        columns: Sequence[str] = _COLUMNS,
        optional: Sequence[str] = (),
        *,
        every_target: bool = False,
    ) -> None:
        self.path = location_of(path)
        if not file_exists(self.path):
            raise MissingFileError(f"{path} does not exist; run `ensemble ingest` first")
        with self._open() as file:
            names = set(file.schema_arrow.names)
            self.targets: dict[str, Target] = targets_of(file.schema_arrow)
            """Name -> target, of all that the table has."""
            absent = [name for name in (*BASE_COLUMNS, *columns) if name not in names]
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        if absent:
            raise StoreError(f"{path}: lacks the columns {', '.join(absent)}; was it written by `ensemble ingest`?")
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        columns = [*columns, *(self.targets if every_target else ())]
        self._columns = [*columns, *(name for name in optional if name in names)]
        self._lacking = [name for name in optional if name not in names]
        self._held: tuple[int, pa.Table] | None = None

    def __len__(self) -> int:
        return int(self._starts[-1])

    @cached_property
    def row_options(self) -> dict[str, Any]:
        """How the rows of signals.zarr were made, as `open_records` has it."""
        with self._open() as file:
            return json.loads((file.schema_arrow.metadata or {}).get(ROWS_KEY, b"{}"))

    def sources(self) -> list[str]:
        """Return the names of the sources that the records come from, sorted."""
        with self._open() as file:
            batches = file.iter_batches(batch_size=_BATCH_ROWS, columns=["source"])
            return sorted({name for batch in batches for name in batch.column(0).unique().to_pylist()})

    def digest(self, n_records: int | None = None) -> str:
        """Return the `records_digest` of the first `n_records` rows (None: of all)."""
        return text_digest(islice(self._record_ids(), n_records))

    def _record_ids(self) -> Iterator[str]:
        with self._open() as file:
            for batch in file.iter_batches(_BATCH_ROWS, columns=["record_id"]):
                yield from batch.column(0).to_pylist()

    def read(self, rows: slice) -> list[Row]:
        """Read contiguous rows."""
        found = self.take(rows)
        return list(map(_row, *(found[name] for name in _COLUMNS)))

    def take(self, rows: slice) -> dict[str, list[Any]]:
        """Read the columns of contiguous rows."""
        start, stop, _ = rows.indices(len(self))
        found: dict[str, list[Any]] = {name: [] for name in self._columns}
        n_rows = max(0, stop - start)
        while start < stop:
            group = int(np.searchsorted(self._starts, start, side="right")) - 1
            first, end = int(self._starts[group]), min(stop, int(self._starts[group + 1]))
            part = self._group(group).slice(start - first, end - start).to_pydict()
            for name, values in part.items():
                found[name] += values
            start = end
        return found | {name: [None] * n_rows for name in self._lacking}

    def equal(self, column: str, value: str) -> np.ndarray:
        """Mark, bool [n], the rows whose text in a column is this one; reads that column alone, a part at a time."""
        with self._open() as file:
            batches = file.iter_batches(batch_size=_BATCH_ROWS, columns=[column])
            return np.concatenate(
                [
                    np.zeros(0, bool),
                    *(pc.fill_null(pc.equal(b.column(0), value), False).to_numpy(False) for b in batches),
                ]
            )

    def texts(self, column: str) -> Texts:
        """Read a column of texts; each different one is in memory once."""
        with self._open(encoded=[column]) as file:
            return Texts.of(file.read(columns=[column]).column(0))

    def numbers(self, column: str) -> np.ndarray:
        """Read a column of numbers without gaps, in the file's own type."""
        with self._open() as file:
            return file.read(columns=[column]).column(0).to_numpy()

    def parts(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Read columns, those that the table has, a row group at a time."""
        with self._open() as file:
            wanted = [name for name in columns if name in file.schema_arrow.names]
            for group in range(file.num_row_groups):
                yield file.read_row_group(group, columns=wanted)

    def picked(self, column: str, rows: np.ndarray) -> pa.ChunkedArray:
        """Read a column of some rows, given in ascending order; a row group of it is in memory beside them."""
        edges = np.searchsorted(rows, self._starts)
        found = []
        with self._open() as file:
            for group, (low, high) in enumerate(pairwise(edges.tolist())):
                if high > low:
                    whole = file.read_row_group(group, columns=[column]).column(0)
                    found.append(whole.take(pa.array(rows[low:high] - self._starts[group])).combine_chunks())
        return pa.chunked_array(found, file.schema_arrow.field(column).type)

    def labels(self, target: Target) -> np.ndarray:
        """Read a target, a row group at a time, as `label_array` gives it."""
        found = empty_labels(len(self), target)
        with self._open() as file:
            for group, (start, stop) in enumerate(pairwise(self._starts.tolist())):
                found[start:stop] = label_array(file.read_row_group(group, columns=[target.name]).column(0), target)
        return found

    def find(self, record_id: str) -> int | None:
        """Return the row of a record; None where there is none of this id."""
        rows = np.flatnonzero(self.equal("record_id", record_id))
        return int(rows[0]) if len(rows) else None

    def _group(self, group: int) -> pa.Table:
        if self._held is None or self._held[0] != group:
            with self._open() as file:
                self._held = group, file.read_row_group(group, columns=self._columns)
        return self._held[1]

    @contextlib.contextmanager
    def _open(self, encoded: Sequence[str] = ()) -> Iterator[pq.ParquetFile]:
        try:
            with pq.ParquetFile(parquet_source(self.path), read_dictionary=list(encoded)) as file:
                yield file
        except (pa.ArrowInvalid, OSError) as error:
            message = str(error).splitlines()[0]
            raise StoreError(f"{self.path}: not a readable Parquet file ({message})") from error


def _row(record_id: str, status: str, reason: str | None) -> Row:
    return Row(record_id, "" if status == "ok" else str(reason))
