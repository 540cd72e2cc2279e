"""Label columns of what the files themselves say: measurements, statements and filters of carts, age and sex.

Statements are kept only where two patients have them and none of them holds a word of a patient's name: what one person
has typed for one patient is no label.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pandas as pd

from cache.records import Target
from stages.readers.files import MEASUREMENTS, Facts

PREFIX = "cart_"
SEXES = ("male", "female")
LONGEST_STATEMENT = 120


def add_cart_columns(frame: pd.DataFrame, facts: Sequence[Facts], taken: set[str], notes: list[str]) -> list[Target]:
    """Add one column for each thing that some file says; a label of the table of that name stays."""
    targets = []
    for name, unit in MEASUREMENTS.items():
        column = PREFIX + name
        values = np.array([one.measurements.get(name, np.nan) for one in facts], dtype=np.float64)
        if column not in taken and np.isfinite(values).any():
            frame[column] = values
            targets.append(Target(column, "regression", unit=unit, description="as the file states it"))
    sex = [None if one.sex is None else SEXES.index(one.sex) for one in facts]
    if f"{PREFIX}sex" not in taken and any(value is not None for value in sex):
        frame[f"{PREFIX}sex"] = pd.array(sex, dtype="Int16")
        targets.append(Target(f"{PREFIX}sex", "binary", classes=SEXES, description="as the file states it"))
    return targets + _statements(frame, facts, taken, notes)


def _statements(frame: pd.DataFrame, facts: Sequence[Facts], taken: set[str], notes: list[str]) -> list[Target]:
    column = f"{PREFIX}statements"
    private = {word.casefold() for one in facts for word in one.private}
    patients: dict[str, set[str]] = defaultdict(set)
    for patient, record, one in zip(frame["patient_id"], frame["record_id"], facts, strict=True):
        for statement in one.statements:
            patients[statement].add(str(record if patient is None else patient))
    kept = {
        statement
        for statement, who in patients.items()
        if len(who) > 1 and len(statement) <= LONGEST_STATEMENT and private.isdisjoint(statement.casefold().split())
    }
    if column in taken or not kept:
        return []
    if len(kept) < len(patients):
        notes.append(f"{column}: {len(patients) - len(kept)} statements of single patients are left out")
    frame[column] = [sorted(kept.intersection(one.statements)) if one.statements else None for one in facts]
    return [Target(column, "multilabel", classes=tuple(sorted(kept)), description="the machine's own statements")]
