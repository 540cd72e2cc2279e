"""Single columns of records.parquet as arrays of a few bytes a row: texts as numbers of names, labels as numbers.

Lives here: what a column of the file becomes. Not here: the file (`cache.record_rows`), the whole table
(`cache.records`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
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
        codes = [pc.fill_null(chunk.indices, -1).to_numpy(False) for chunk in column.chunks]
        return cls.numbered(np.concatenate(codes), names)

    @classmethod
    def numbered(cls, codes: np.ndarray, names: pa.Array) -> Self:
        """Order names that differ, and the codes [n] that number them (-1: no text) with them."""
        order = pc.sort_indices(names)
        place = np.empty(len(names) + 1, np.int32)
        place[order.to_numpy()] = np.arange(len(names), dtype=np.int32)
        place[-1] = -1  # of a row without text
        return cls(place[codes], names.take(order))

    def __len__(self) -> int:
        return len(self.codes)

    def take(self, rows: np.ndarray) -> Self:
        """Return the rows of an index or a mask; the names stay."""
        return replace(self, codes=self.codes[rows])

    def used(self) -> Self:
        """Leave out the names that no row has."""
        counts = np.bincount(self.codes + 1, minlength=len(self.names) + 1)[1:]
        present = counts > 0
        if present.all():
            return self
        place = np.append(np.cumsum(present, dtype=np.int32) - 1, np.int32(-1)).astype(np.int32)
        return replace(self, codes=place[self.codes], names=self.names.filter(pa.array(present)))

    @property
    def n_used(self) -> int:
        """How many different texts the rows have."""
        return int((np.bincount(self.codes + 1, minlength=1)[1:] > 0).sum())

    def within(self, names: pa.Array) -> np.ndarray:
        """Return each row's place, int32 [n], in other names that ascend; -1 of a text that is not among them."""
        if self.names is names:
            return self.codes
        place = pc.fill_null(pc.index_in(self.names, names), -1).to_numpy(False)
        return np.append(place, np.int32(-1))[self.codes]

    def same_as(self, other: Texts) -> bool:
        """Whether both have the same texts, row for row."""
        if len(self) != len(other):
            return False
        if self.names is other.names:
            return np.array_equal(self.codes, other.codes)
        first, second = self.used(), other.used()
        return np.array_equal(first.codes, second.codes) and first.names.equals(second.names)

    def equal(self, text: str) -> np.ndarray:
        """Mark, bool [n], the rows of this text."""
        code = pc.index(self.names, pa.scalar(text, self.names.type)).as_py()
        return self.codes == code if code >= 0 else np.zeros(len(self), bool)

    def name(self, code: int) -> str:
        """Return the text of a code."""
        return str(self.names[int(code)].as_py())

    def arrow(self, codes: np.ndarray | None = None) -> pa.Array:
        """Return the texts of some codes (None: of all rows) as Arrow has them; null of -1."""
        chosen = self.codes if codes is None else np.asarray(codes)
        return self.names.take(pa.array(chosen, mask=chosen < 0))

    def spelt(self, codes: np.ndarray) -> list[str | None]:
        """Return the texts of some codes; None of -1."""
        return self.arrow(codes).to_pylist()


def all_differ(texts: pa.Array) -> bool:
    """Whether no text occurs twice; takes what a copy of them takes, where a table of hashes would take thrice that."""
    ordered = texts.take(pc.sort_indices(texts))
    return not pc.any(pc.equal(ordered[1:], ordered[:-1])).as_py()


def names_of(columns: Iterable[Texts]) -> pa.Array:
    """Return the texts that rows of any of these columns have, ascending."""
    held: dict[int, tuple[pa.Array, np.ndarray]] = {}
    for column in columns:
        names, present = held.get(id(column.names), (column.names, np.zeros(len(column.names), bool)))
        present[column.codes[column.codes >= 0]] = True
        held[id(names)] = names, present
    parts = [names if present.all() else names.filter(pa.array(present)) for names, present in held.values()]
    if len(parts) == 1:
        return parts[0]
    together = pa.chunked_array(parts, pa.string()).unique()
    return together.take(pc.sort_indices(together))


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


def as_target_array(labels: np.ndarray, target: Target) -> np.ndarray:
    """Return labels as `label_array` gives them in the types of `cache.target_array`."""
    return labels.astype(np.int64 if target.kind == "multiclass" else np.float64)


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
