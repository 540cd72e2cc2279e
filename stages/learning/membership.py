"""Which patient, source, split and fold each record belongs to, in some 14 bytes a record.

Not here: dealing folds (`stages.ingest.folds`), choosing rows by them (`folds`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from cache.patients import LABELLED_TRAINING, People, records_seen
from cache.record_columns import Texts
from cache.record_rows import RecordRows


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
        people, person = People(self.source, self.patient).different()
        seen = [records_seen(attributes, part) for part in people.frames()]
        return np.concatenate(seen)[person] if seen else np.zeros(len(self), bool)
