"""SPH (Liu et al., Scientific Data 2022; figshare): one HDF5 file a record, AHA/ACC/HRS statements in metadata.csv.

`AHA_Code` is `60+310;147`: statements parted by semicolons, each a primary code with modifiers behind plus signs. No
statement of a record is its first one: the order tells nothing.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from cache.errors import InputError
from cache.records import Target
from cache.signals import LEADS
from stages.cohorts import Cohort, Entries, register
from stages.cohorts.contract import check_not_empty
from stages.cohorts.labels.ages import age_of
from stages.readers import Recording, inside
from stages.readers.arrays.hdf5 import dataset
from stages.readers.prefixes import relocated
from stages.readers.tables import read_table

RATE_HZ = 500.0
COLUMNS = ["ECG_ID", "AHA_Code", "Patient_ID", "Age", "Sex"]


@register("sph")
class Sph(Cohort):
    """SPH in its own layout, records.tar.gz unpacked."""

    title = "SPH (metadata.csv, code.csv, records/)"
    manifests = ("metadata.csv", "code.csv")
    licence = "CC BY 4.0"

    def entries(self) -> Entries:
        """Read metadata.csv, and the names of statements in code.csv."""
        path = self.require("metadata.csv")
        table, notes = read_table(path, COLUMNS)
        check_not_empty(table, path)
        names, more = read_table(self.require("code.csv"), ["Category", "Code", "Description"])
        notes += more
        frame = pd.DataFrame({"record_id": table["ECG_ID"], "patient_id": table["Patient_ID"]})
        listed = pd.Series([None if name is None else f"records/{name}" for name in table["ECG_ID"]], dtype=object)
        frame["path"] = relocated(self.folder, listed, ".h5", notes)
        frame["age"] = [age_of(cell) for cell in table["Age"]]
        frame["sex"] = table["Sex"].map({"M": 0.0, "F": 1.0}).astype(float)
        targets = self._statements(frame, table["AHA_Code"], names, notes)
        return Entries(
            frame,
            [
                *targets,
                Target("age", "regression", unit="years"),
                Target("sex", "binary", classes=("male", "female"), description="0 male, 1 female"),
            ],
            notes,
        )

    def _statements(self, frame: pd.DataFrame, cells: pd.Series, names: pd.DataFrame, notes: list[str]) -> list[Target]:
        """Add primary statements, their categories and modifiers; null where a record has no code."""
        shown = dict(zip(names["Code"], names["Description"], strict=True))
        category = dict(zip(names["Code"], names["Category"], strict=True))
        read = [_codes(cell) for cell in cells]
        unnamed = {code for pair in read for code in pair[0] | pair[1]} - set(shown)
        if unnamed:
            notes.append(f"statement: {len(unnamed)} codes are not in code.csv and left out")
        columns = {
            "statement": [{shown[code] for code in first if code in shown} for first, _ in read],
            "category": [{category[code] for code in first if code in category} for first, _ in read],
            "modifier": [{shown[code] for code in second if code in shown} for _, second in read],
        }
        targets = []
        for name, sets in columns.items():
            frame[name] = [sorted(one) if first else None for one, (first, _) in zip(sets, read, strict=True)]
            classes = tuple(sorted(set().union(*sets)))
            links = {(shown[code], "category", category[code]) for code in shown if shown[code] in classes}
            parents = tuple(sorted(links)) if name == "statement" else ()
            targets.append(Target(name, "multilabel", classes=classes, description=f"AHA {name}s", parents=parents))
        return targets

    def read(self, path: str) -> Recording:
        """Read one file: dataset `ecg`, float16 mV [12, time]."""
        rows = dataset(inside(self.data, f"{path}.h5"), "ecg", 2)
        if rows.shape[0] != len(LEADS):
            raise InputError(f"its array is {rows.shape}, not [12, time]")
        signals_mv = np.asarray(rows[:], dtype=np.float64)
        return Recording(signals_mv, LEADS, RATE_HZ, signals_mv.shape[1])


def _codes(cell: str | None) -> tuple[set[str], set[str]]:
    """Return the primary codes of a cell, and their modifiers."""
    first, second = set(), set()
    for statement in (cell or "").split(";"):
        primary, *modifiers = [part.strip() for part in statement.split("+")]
        first |= {primary} if primary else set()
        second |= {one for one in modifiers if one}
    return first, second
