"""The rows of records.parquet with what reading their files showed, a row group at a time.

Not here: which rows there are (record_table.py), writing them (outputs.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd

from cache.record_rows import RecordRows
from cache.records import BASE_COLUMNS, ROW_GROUP_RECORDS
from cache.storage.locations import Location
from stages.ingest.record_table import EXTRA, Rows
from stages.readers.rows import QUALITY

Columns = dict[str, list[Any]]
"""Columns of `QUALITY` of some rows."""


def row_groups(rows: Rows, new: Iterable[Columns], records_path: Location) -> Iterator[pd.DataFrame]:
    """Give the whole table in frames of `ROW_GROUP_RECORDS` rows, the last one of fewer.

    Parameters
    ----------
    new
        What reading the new rows showed, in their order, any number of rows at a time.
    records_path
        The table that the rows which stay are in.
    """
    columns = [*BASE_COLUMNS, *EXTRA, *(target.name for target in rows.targets)]
    start = 0
    for found in _cut(itertools.chain(_of_kept(rows.n_kept, records_path), new)):
        stop = start + len(found["status"])
        group = rows.frame.iloc[start:stop].reset_index(drop=True)
        yield group.assign(**{name: pd.Series(found[name], dtype=dtype) for name, dtype in QUALITY.items()})[columns]
        start = stop


def _of_kept(n_kept: int, records_path: Location) -> Iterator[Columns]:
    """Read what a table says of its first rows; null where it is older than a column."""
    table = RecordRows(records_path, (), tuple(QUALITY)) if n_kept else None
    for start in range(0, n_kept, ROW_GROUP_RECORDS):
        assert table is not None
        yield table.take(slice(start, min(start + ROW_GROUP_RECORDS, n_kept)))


def _cut(parts: Iterable[Columns]) -> Iterator[Columns]:
    """Put parts together, and cut them into row groups."""
    held: Columns = {name: [] for name in QUALITY}
    for part in parts:
        for name in QUALITY:
            held[name] += part[name]
        while len(held["status"]) >= ROW_GROUP_RECORDS:
            yield {name: values[:ROW_GROUP_RECORDS] for name, values in held.items()}
            held = {name: values[ROW_GROUP_RECORDS:] for name, values in held.items()}
    if held["status"]:
        yield held
