"""Single columns of records.parquet as arrays of a few bytes a row: texts as numbers of names, labels as numbers.

Lives here: what a column of the file becomes. Not here: the file (`cache.record_rows`), the whole table
(`cache.records`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cache.errors import InputError
from cache.records import Target


@dataclass(frozen=True)
class Texts:
    """A column of texts, of which each different one is kept once.

    Attributes
    ----------
    codes
        int32 [n]: each row's place in `names`, -1 where it has no text. Codes are ordered as their texts are.
    names
        The different texts, ascending.

    Examples
    --------
    >>> Texts.of(["b", "a", None, "b"]).codes.tolist()
    [1, 0, -1, 1]
    """

    codes: np.ndarray
    names: pa.Array

    @classmethod
    def of(cls, texts: pa.ChunkedArray | Sequence[str | None]) -> Self:
        """Encode texts, or a column of them that Arrow may have encoded already."""
        column = texts if isinstance(texts, pa.ChunkedArray) else pa.chunked_array([pa.array(texts, pa.string())])
        if not pa.types.is_dictionary(column.type):
            column = column.dictionary_encode()
        column = column.unify_dictionaries()
        if not column.num_chunks:
            return cls(np.empty(0, np.int32), pa.array([], pa.string()))
        names = column.chunk(0).dictionary
        order = pc.sort_indices(names)
        place = np.empty(len(names) + 1, np.int32)
        place[order.to_numpy()] = np.arange(len(names), dtype=np.int32)
        place[-1] = -1  # of a row without text
        codes = [place[pc.fill_null(chunk.indices, len(names)).to_numpy(False)] for chunk in column.chunks]
        return cls(np.concatenate(codes), names.take(order))

    def __len__(self) -> int:
        return len(self.codes)

    def equal(self, text: str) -> np.ndarray:
        """Mark, bool [n], the rows of this text."""
        code = pc.index(self.names, pa.scalar(text, self.names.type)).as_py()
        return self.codes == code if code >= 0 else np.zeros(len(self), bool)

    def name(self, code: int) -> str:
        """Return the text of a code."""
        return str(self.names[int(code)].as_py())

    def spelt(self, codes: np.ndarray) -> list[str | None]:
        """Return the texts of some codes; None of -1."""
        known = pa.array(codes, mask=np.asarray(codes) < 0)
        return self.names.take(known).to_pylist()


def label_array(column: pa.ChunkedArray, target: Target) -> np.ndarray:
    """Return labels as `cache.target_array` does, in as few bytes as hold them exactly.

    Returns
    -------
    float64 [n] for regression and survival, float32 [n] for binary (missing = NaN), int32 [n] for multiclass (missing =
    -1), float32 [n, classes] of 0, 1 or NaN for multilabel.

    Raises
    ------
    InputError
        A class that the target does not have.
    """
    if target.kind == "multilabel":
        return _multi_hot(column, target)
    values = pc.fill_null(column.cast(pa.float64()), np.nan).to_numpy()
    if target.kind == "multiclass":
        return np.where(np.isnan(values), -1, values).astype(np.int32)
    return values.astype(np.float32) if target.kind == "binary" else values


def empty_labels(n_records: int, target: Target) -> np.ndarray:
    """Return room for the labels of so many records, as `label_array` gives them."""
    if target.kind == "multilabel":
        return np.empty((n_records, len(target.classes)), np.float32)
    dtypes = {"binary": np.float32, "multiclass": np.int32}
    return np.empty(n_records, dtypes.get(target.kind, np.float64))


def _multi_hot(column: pa.ChunkedArray, target: Target) -> np.ndarray:
    hot = np.zeros((len(column), len(target.classes)), np.float32)
    start = 0
    for cells in column.chunks:
        named = pc.list_flatten(cells)
        code = pc.index_in(named, pa.array(target.classes, pa.string()))
        if code.null_count:
            unknown = named.filter(code.is_null())[0].as_py()
            raise InputError(f"task '{target.name}': '{unknown}' is none of its classes ({', '.join(target.classes)})")
        rows = pc.list_parent_indices(cells).to_numpy(False)
        hot[start + rows, code.to_numpy(False)] = 1
        hot[start + np.flatnonzero(cells.is_null().to_numpy(False))] = np.nan
        start += len(cells)
    return hot
