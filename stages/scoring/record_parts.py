"""What judging reads of records.parquet, a row group at a time: labels counted by split, records found by their ids.

Lives here: the passes over the table. Not here: which groups there are and what is measured in them (`subgroups`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cache.record_columns import label_array
from cache.record_rows import RecordRows
from cache.records import Target
from stages.scoring.blocks import has_label

Records: TypeAlias = RecordRows | pd.DataFrame
"""records.parquet, on disk or as `cache.open_records` reads it."""


def targets_in(records: Records) -> Mapping[str, Target]:
    """Return the targets of a table by their names."""
    return records.targets if isinstance(records, RecordRows) else records.attrs.get("targets", {})


def row_options_in(records: Records) -> Mapping[str, Any]:
    """Return how the rows of signals.zarr were made, empty where a table does not say it."""
    return records.row_options if isinstance(records, RecordRows) else records.attrs.get("row_options") or {}


def record_parts(records: Records, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Give these columns, those that the table has, some rows at a time."""
    if isinstance(records, RecordRows):
        yield from records.parts(columns)
    else:
        known = [name for name in columns if name in records]
        yield pa.table({name: pa.array(records[name], from_pandas=True) for name in known})


def labelled_records(
    records: Records, targets: Mapping[str, Target], splits: Sequence[str]
) -> dict[str, dict[str, int]]:
    """Count, task -> split -> readable records with a label; a target that the table lacks is left out."""
    names = [*targets]
    found: dict[str, dict[str, int]] = {}
    for part in record_parts(records, ["split", "status", *names]):
        readable = pc.fill_null(pc.not_equal(part.column("status"), "bad"), True).to_numpy()
        of_split = {split: pc.fill_null(pc.equal(part.column("split"), split), False).to_numpy() for split in splits}
        for name in names:
            if name in part.column_names:
                known = has_label(label_array(part.column(name), targets[name])) & readable
                counts = found.setdefault(name, dict.fromkeys(splits, 0))
                for split, rows in of_split.items():
                    counts[split] += int((known & rows).sum())
    return found


def rows_by_id(records: Records, ids: pa.Array) -> np.ndarray:
    """Return the rows of the records with these ids, int64 [ids], in the order of the ids; those that are there."""
    found, start = np.full(len(ids), -1), 0
    for part in record_parts(records, ["record_id"]):
        rows, place = places(part, ids)
        found[place] = start + rows
        start += part.num_rows
    return found[found >= 0]


def rows_by_name(records: Records, ids: pa.Array) -> dict[str, int]:
    """Return id -> row of those records that are there: of a subset of many."""
    found: dict[str, int] = {}
    start = 0
    for part in record_parts(records, ["record_id"]):
        rows, place = places(part, ids)
        found |= zip(ids.take(pa.array(place)).to_pylist(), (start + rows).tolist(), strict=True)
        start += part.num_rows
    return found


def places(part: pa.Table, ids: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return which rows of a part are among some record ids, and each one's place there."""
    place = pc.index_in(part.column("record_id"), ids)
    rows = np.flatnonzero(place.is_valid().to_numpy())
    return rows, place.take(pa.array(rows)).to_numpy()
