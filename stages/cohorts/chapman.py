"""Chapman-Shaoxing and Ningbo (Zheng et al.; PhysioNet ecg-arrhythmia 1.0.0): WFDBRecords/ with labels in the headers.

One record a patient, as its authors say.
"""

from __future__ import annotations

import pandas as pd

from cache.errors import InputError, MissingFileError
from cache.records import Target
from stages.cohorts._registry import register
from stages.cohorts._snomed import add_classes, add_comments
from stages.cohorts.contract import Cohort, Entries
from stages.readers.record_search import find_records
from stages.readers.tables import find_table, read_table

# The eleven rhythms of the collection's paper under its own acronyms (AF is flutter there).
RHYTHMS = {
    "426177001": "SB",
    "426783006": "SR",
    "164889003": "AFIB",
    "427084000": "ST",
    "164890007": "AF",
    "427393009": "SA",
    "426761007": "SVT",
    "713422000": "AT",
    "233896004": "AVNRT",
    "233897008": "AVRT",
    "195101003": "SAAWR",
    "17366009": "SAAWR",
}


@register("chapman")
class Chapman(Cohort):
    """Chapman/Ningbo in PhysioNet's layout."""

    title = "Chapman/Ningbo (WFDBRecords/, ConditionNames_SNOMED-CT.csv)"
    licence = "CC BY 4.0"

    def entries(self) -> Entries:
        """Read the comments of every header, and the names of conditions."""
        notes: list[str] = []
        paths = [p for p in find_records(self.data, notes) if p.startswith("WFDBRecords/")]
        if not paths:
            raise MissingFileError(f"{self.folder / 'WFDBRecords'} holds no header; --path must name {self.title}")
        names = [path.rsplit("/", 1)[-1] for path in paths]
        frame = pd.DataFrame({"record_id": names, "patient_id": names, "path": paths})
        codes, targets = add_comments(frame, self.data, notes)
        rhythm = add_classes(frame, "rhythm", codes, RHYTHMS, "eleven rhythms; SR sinus, AFIB fibrillation, AF flutter")
        return Entries(frame, [rhythm, *self._add_conditions(frame, codes, notes), *targets], notes)

    def _add_conditions(
        self, frame: pd.DataFrame, codes: list[tuple[str, ...] | None], notes: list[str]
    ) -> list[Target]:
        path = find_table([self.folder], "ConditionNames_SNOMED-CT.csv")
        if path is None:
            notes.append("condition: left out, there is no ConditionNames_SNOMED-CT.csv")
            return []
        table, more = read_table(path)
        notes += more
        absent = {"Acronym Name", "Snomed_CT"} - set(table.columns)
        if absent:
            raise InputError(f"{path}: has no column '{min(absent)}'; it has: {', '.join(table.columns)[:200]}")
        known = table.dropna(subset=["Acronym Name", "Snomed_CT"]).drop_duplicates("Snomed_CT")
        class_of = dict(zip(known["Snomed_CT"], known["Acronym Name"], strict=True))
        unnamed = len({c for given in codes for c in given or ()} - set(class_of))
        if unnamed:
            notes.append(f"condition: {unnamed} codes are not in {path.name} and left out")
        return [
            add_classes(frame, "condition", codes, class_of, "conditions and rhythms under the collection's acronyms")
        ]
