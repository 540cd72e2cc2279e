"""Texts of a list of records as Arrow keeps them: 4 bytes and their letters each, where Python's take 60 bytes more.

Not here: what the texts must be (record_table.py).
"""

from __future__ import annotations

from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

PACKED = pd.ArrowDtype(pa.string())


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


def all_differ(column: pd.Series) -> bool:
    """Whether packed texts are all there and all different."""
    texts = pa.array(column)
    return not texts.null_count and pc.count_distinct(texts).as_py() == len(texts)


def named_patients(patients: pd.Series, records: pd.Series) -> pd.Series:
    """Name a patient of its own for each record without one; both packed."""
    given = pa.array(patients)
    if not given.null_count:
        return patients
    alone = pc.binary_join_element_wise("record:", pa.array(records), "")
    return as_column(pc.coalesce(given, alone), patients.index)
