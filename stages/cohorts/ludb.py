"""LUDB, the Lobachevsky University Database (Kalyakulina et al.; PhysioNet 1.0.1): 200 records, one a person."""

from __future__ import annotations

import numpy as np
import pandas as pd

from cache.records import Target
from stages.cohorts._registry import register
from stages.cohorts.contract import Cohort, Entries, check_not_empty, is_file
from stages.cohorts.labels.ages import age_of
from stages.readers.tables import read_table

# Target -> column of ludb.csv; a cell holds one entry a line. Every heart has these states: an empty cell is unknown.
STATES = {"rhythm": "Rhythms", "axis": "Electric axis of the heart"}
# Here an empty cell says that nothing was found.
FINDINGS = {
    "conduction": "Conduction abnormalities",
    "extrasystoles": "Extrasystolies",
    "hypertrophy": "Hypertrophies",
    "pacing": "Cardiac pacing",
    "ischemia": "Ischemia",
    "repolarization": "Non-specific repolarization abnormalities",
}


@register("ludb")
class Ludb(Cohort):
    """LUDB in PhysioNet's layout; rows of ludb.csv whose record is not there are left out."""

    title = "LUDB (ludb.csv, data/)"
    licence = "ODC-By 1.0"

    def entries(self) -> Entries:
        """Read ludb.csv."""
        path = self.require("ludb.csv")
        table, notes = read_table(path, ["ID", "Sex", "Age", *STATES.values(), *FINDINGS.values()])
        table = table.dropna(subset=["ID"])
        present = [name.isdigit() and is_file(self.folder / "data" / f"{name}.hea") for name in table["ID"]]
        if not all(present):
            notes.append(f"{present.count(False)} rows of ludb.csv have no record in data/ and are left out")
        table = table[present].reset_index(drop=True)
        check_not_empty(table, path)
        frame = pd.DataFrame({"record_id": table["ID"], "patient_id": table["ID"], "path": "data/" + table["ID"]})
        frame["age"] = [_age(cell) for cell in table["Age"]]
        frame["sex"] = table["Sex"].map({"M": 0.0, "F": 1.0}).astype(float)
        capped = int((frame["age"].isna() & table["Age"].notna()).sum())
        if capped:
            notes.append(f"age: {capped} are no number (over 89 is written >89) and become null")
        targets = [_add_findings(frame, name, table[column], None) for name, column in STATES.items()]
        targets += [_add_findings(frame, name, table[column], []) for name, column in FINDINGS.items()]
        targets.append(Target("age", "regression", unit="years"))
        targets.append(Target("sex", "binary", classes=("male", "female"), description="0 male, 1 female"))
        return Entries(frame, targets, notes)


def _age(cell: str | None) -> float:
    return np.nan if cell is None else age_of(cell)


def _add_findings(frame: pd.DataFrame, name: str, column: pd.Series, empty: list[str] | None) -> Target:
    """Add a multilabel column; `empty` is what an empty cell means."""
    cells = [empty if cell is None else sorted({x.strip() for x in cell.splitlines()} - {""}) for cell in column]
    frame[name] = cells
    classes = tuple(sorted({finding for found in cells for finding in found or ()}))
    return Target(name, "multilabel", classes=classes, description=f"ludb.csv, {column.name}")
