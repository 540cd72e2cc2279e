"""Which record of whom it is and where it belongs: what training and judging read besides labels, 13 bytes a record.

Not here: folds (`stages.learning.membership`), the columns themselves (`cache.record_rows`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import pyarrow as pa

from cache.errors import InputError
from cache.fingerprint import text_digest
from cache.patients import People
from cache.record_columns import Texts
from cache.record_rows import RecordRows
from cache.records import Target
from cache.storage.locations import Location


@dataclass(frozen=True)
class RecordMembers:
    """Patient, source and split of each record, row for row with records.parquet, and whether it can be read.

    Attributes
    ----------
    table
        For who needs names of some records, or labels.
    readable
        bool [n].
    """

    table: RecordRows
    people: People
    split: Texts
    readable: np.ndarray

    @classmethod
    def read(cls, path: str | Location) -> Self:
        """Read the four columns, one after the other.

        Raises
        ------
        MissingFileError, StoreError
            As `RecordRows`.
        """
        table = RecordRows(path)
        people = People(table.texts("source"), table.texts("patient_id"))
        return cls(table, people, table.texts("split"), table.equal("status", "ok"))

    def __len__(self) -> int:
        return len(self.readable)

    def training_rows(self, split: str = "train") -> np.ndarray:
        """Return the rows of a split whose signals could be read.

        Raises
        ------
        InputError
            None of them.
        """
        rows = np.flatnonzero(self.split.equal(split) & self.readable)
        if not len(rows):
            raise InputError(f"no readable record has split '{split}'; run `ensemble ingest` with more records")
        return rows

    def ids(self, rows: np.ndarray) -> pa.Array:
        """Return the names of some records, given by their rows in any order."""
        chosen, place = np.unique(rows, return_inverse=True)
        found = self.table.picked("record_id", chosen).take(pa.array(place))
        return pa.concat_arrays(found.chunks) if found.num_chunks else pa.array([], found.type)

    def patients(self, rows: np.ndarray) -> pa.Array:
        """Return the names of some records' patients."""
        return self.people.patient.arrow(self.people.patient.codes[rows])

    def labels(self, target: Target) -> np.ndarray:
        """Return all records' labels as `RecordRows.labels` gives them."""
        return self.table.labels(target)

    def facts(self, rows: np.ndarray) -> dict[str, Any]:
        """Say which records these are, ready for JSON: cohorts, counts, and the digest of the split of all records."""
        chosen = self.people.take(rows)
        return {
            "sources": chosen.source.used().names.to_pylist(),
            "n_records": len(chosen),
            "n_patients": chosen.patient.n_used,
            "split_digest": self._split_digest,
        }

    @cached_property
    def _split_digest(self) -> str:
        return text_digest(f"{name}\t{split}" for name, split in self._splits())

    def _splits(self) -> Iterator[tuple[str, str]]:
        for part in self.table.parts(("record_id", "split")):
            yield from zip(part.column("record_id").to_pylist(), part.column("split").to_pylist(), strict=True)
