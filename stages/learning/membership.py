"""Which patient, source, split and fold each record belongs to, in some 14 bytes a record.

Not here: dealing folds (`stages.ingest.folds`), choosing rows by them (`folds`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd

from cache.patients import LABELLED_TRAINING, records_seen
from cache.record_columns import Texts
from cache.record_rows import RecordRows

PEOPLE_AT_ONCE = 65_536


@dataclass(frozen=True)
class Membership:
    """Patient, source, split and fold of each record, row for row with records.parquet.

    Attributes
    ----------
    fold
        int16 [n].
    """

    patient: Texts
    source: Texts
    split: Texts
    fold: np.ndarray

    @classmethod
    def read(cls, rows: RecordRows) -> Self:
        """Read the four columns."""
        return cls(rows.texts("patient_id"), rows.texts("source"), rows.texts("split"), rows.numbers("fold"))

    def __len__(self) -> int:
        return len(self.fold)

    def seen_by(self, attributes: Mapping[str, Any]) -> np.ndarray:
        """Mark, bool [n], the records whose patients' labels have trained the expert of a store with these attributes.

        Raises
        ------
        StoreError
            An attribute that cannot be read.
        """
        if not attributes.get(LABELLED_TRAINING):
            return np.zeros(len(self), bool)
        n_patients = len(self.patient.names) + 1
        people, person = np.unique(
            self.source.codes.astype(np.int64) * n_patients + self.patient.codes, return_inverse=True
        )
        seen = [records_seen(attributes, part) for part in self._people(people // n_patients, people % n_patients)]
        return np.concatenate(seen)[person] if seen else np.zeros(len(self), bool)

    def _people(self, source: np.ndarray, patient: np.ndarray) -> Iterator[pd.DataFrame]:
        """Spell the names of people, some at a time."""
        for start in range(0, len(source), PEOPLE_AT_ONCE):
            part = slice(start, start + PEOPLE_AT_ONCE)
            names = {"source": self.source.spelt(source[part]), "patient_id": self.patient.spelt(patient[part])}
            yield pd.DataFrame(names)
