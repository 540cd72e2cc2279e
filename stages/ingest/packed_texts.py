"""Texts of a list of records as Arrow keeps them: 4 bytes and their letters each, where Python's take 60 bytes more.

Not here: what the texts must be (record_table.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cache.record_columns import all_differ

PACKED = pd.ArrowDtype(pa.string())


def pack(frame: pd.DataFrame, texts: tuple[str, ...], lists: list[str]) -> None:
    """Pack a list's texts in place, and keep equal lists of classes once; what they were before is let go."""
    for column in [name for name in frame if frame[name].dtype == object]:
        # pandas keeps columns of objects in one array, which lives as long as any of them does: each gets its own
        frame[column] = pd.Series(frame[column].to_numpy(copy=True), index=frame.index, dtype=object)
    for column in lists:
        frame[column] = _shared(frame[column])
    pack_texts(frame, texts)


def _shared(cells: pd.Series) -> pd.Series:
    """Keep equal lists once."""
    kept: dict[tuple[str, ...], Any] = {}
    shared = cells.to_numpy(copy=True)
    for row, cell in enumerate(shared):
        if isinstance(cell, list | tuple | np.ndarray):
            shared[row] = kept.setdefault(tuple(cell), cell)
    return pd.Series(shared, index=cells.index, dtype=object)


def pack_texts(frame: pd.DataFrame, columns: tuple[str, ...]) -> None:
    """Pack columns in place; one that holds what is no text (numbers, names of other bytes) stays as it is."""
    for column in columns:
        if column in frame and not is_packed(frame[column]):
            try:
                texts = pa.array(frame[column], pa.string(), from_pandas=True)
            except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError):
                continue
            frame[column] = as_column(texts, frame.index)


def is_packed(column: pd.Series) -> bool:
    """Whether a column's texts are packed."""
    return column.dtype == PACKED


def as_column(texts: Any, index: pd.Index) -> pd.Series:
    """Return Arrow's texts as a column."""
    return pd.Series(pd.array(texts, dtype=PACKED), index=index)


def longest(column: pd.Series) -> int:
    """Return the most characters that a packed text has."""
    return pc.max(pc.utf8_length(pa.array(column))).as_py() or 0


def all_named(column: pd.Series) -> bool:
    """Whether packed texts are all there and all different."""
    texts = pa.array(column)
    return not texts.null_count and all_differ(texts)


def named_patients(patients: pd.Series, records: pd.Series) -> pd.Series:
    """Name a patient of its own for each record without one; both packed."""
    given = pa.array(patients)
    if not given.null_count:
        return patients
    alone = pc.binary_join_element_wise("record:", pa.array(records), "")
    return as_column(pc.coalesce(given, alone), patients.index)
