"""PhysioNet/CinC Challenge 2020 and 2021: WFDB headers with #Age, #Sex and #Dx, 16x1 .mat signals, in any subfolders.

The collections give no patients, so every record counts as a patient of its own; several of them hold repeat records of
one person (PTB-XL's `HR*` above all), which a split by record cannot see.
"""

from __future__ import annotations

import pandas as pd

from stages.cohorts._registry import register
from stages.cohorts._snomed import SCORED, add_classes, add_comments
from stages.cohorts.contract import Cohort, Entries
from stages.readers.record_search import find_records, no_record


@register("challenge")
class Challenge(Cohort):
    """Any part of the Challenges' training data."""

    title = "PhysioNet Challenge 2020 or 2021 (.hea with #Dx, .mat)"
    licence = "CC BY 4.0"
    holds = ("challenge2021",)

    def entries(self) -> Entries:
        """Read the comments of every header."""
        notes: list[str] = []
        paths = find_records(self.data, notes)
        if not paths:
            raise no_record(self.data)
        names = [path.rsplit("/", 1)[-1] for path in paths]
        frame = pd.DataFrame({"record_id": names, "patient_id": None, "path": paths})
        notes.append("no patients are known: every record counts as one of its own")
        codes, targets = add_comments(frame, self.data, notes)
        dx = add_classes(frame, "dx", codes, SCORED, "scored diagnoses of the Challenge 2021, equivalent ones merged")
        return Entries(frame, [dx, *targets], notes)
