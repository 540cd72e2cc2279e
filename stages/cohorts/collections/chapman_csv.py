"""Chapman-Shaoxing as first published (Zheng et al. 2020; figshare): one CSV file a record, Diagnostics.xlsx.

Signals are microvolts at 500 Hz, 5000 rows of twelve columns; ECGDataDenoised/ has no head. PhysioNet's later edition
with WFDB files is the source `chapman`.
"""

from __future__ import annotations

import os
from typing import Literal

import numpy as np
import pandas as pd

from cache.errors import InputError, MissingFileError
from cache.records import Target
from cache.signals import LEADS
from stages.cohorts import Cohort, Entries, Options, register
from stages.cohorts.contract import check_not_empty, is_file
from stages.cohorts.labels.ages import age_of
from stages.readers import Recording
from stages.readers.paths import open_file
from stages.readers.tables import numbers, read_table

RATE_HZ = 500.0
MAX_BYTES = 8 << 20
"""A record has 0.3 MB."""
MEASURED = {
    "VentricularRate": ("heart_rate", "1/min"),
    "QRSDuration": ("qrs", "ms"),
    "QTInterval": ("qt", "ms"),
    "QTCorrected": ("qtc", "ms"),
    "RAxis": ("qrs_axis", "degrees"),
    "TAxis": ("t_axis", "degrees"),
}
COLUMNS = ["FileName", "Rhythm", "Beat", "PatientAge", "Gender", *MEASURED]


class ChapmanCsvOptions(Options):
    """Which of the two sets of files is read."""

    signals: Literal["ECGData", "ECGDataDenoised"] = "ECGData"


@register("chapman-csv")
class ChapmanCsv(Cohort):
    """The first edition, zips unpacked. One record a patient, as its authors say."""

    title = "Chapman's CSV edition (Diagnostics.xlsx or .csv, ECGData/ or ECGDataDenoised/)"
    manifests = ("Diagnostics.xlsx",)
    licence = "CC0 1.0"
    holds = ("chapman",)
    options_type = ChapmanCsvOptions
    options: ChapmanCsvOptions

    def entries(self) -> Entries:
        """Read Diagnostics.xlsx (or the same as CSV)."""
        path = next((p for p in (self.folder / f"Diagnostics.{end}" for end in ("xlsx", "csv")) if is_file(p)), None)
        if path is None:
            raise MissingFileError(f"{self.folder / 'Diagnostics.xlsx'} does not exist; --path must name {self.title}")
        table, notes = read_table(path, COLUMNS)
        check_not_empty(table, path)
        frame = pd.DataFrame({"record_id": table["FileName"], "patient_id": table["FileName"]})
        frame["path"] = [f"{self.options.signals}/{name}.csv" for name in table["FileName"]]
        rhythms = tuple(sorted(set(table["Rhythm"].dropna())))
        index = {name: k for k, name in enumerate(rhythms)}
        frame["rhythm"] = pd.array([index.get(name) for name in table["Rhythm"]], dtype="Int16")
        beats = [sorted(set((cell or "").split()) - {"NONE"}) for cell in table["Beat"]]
        frame["beat"] = beats
        classes = tuple(sorted({name for row in beats for name in row}))
        frame["age"] = [age_of(cell) for cell in table["PatientAge"]]
        frame["sex"] = table["Gender"].str.upper().map({"MALE": 0.0, "FEMALE": 1.0}).astype(float)
        targets = [
            Target("rhythm", "multiclass", classes=rhythms, description="eleven rhythms, AF is flutter"),
            Target("beat", "multilabel", classes=classes, description="conditions beside the rhythm"),
            Target("age", "regression", unit="years"),
            Target("sex", "binary", classes=("male", "female"), description="0 male, 1 female"),
        ]
        for column, (name, unit) in MEASURED.items():
            frame[name] = numbers(table[column])
            targets.append(Target(name, "regression", unit=unit, description="the cart's own measurement"))
        return Entries(frame, targets, notes)

    def read(self, path: str) -> Recording:
        """Read one file: twelve columns of microvolts, with or without a head."""
        descriptor, n_bytes = open_file(self.data, path)
        with os.fdopen(descriptor, "rb") as file:
            if n_bytes > MAX_BYTES:
                raise InputError(f"it has {n_bytes >> 20} MB; a record has 0.3")
            text = file.read().decode("ascii", errors="replace").lstrip("\ufeff")
        head, _, rest = text.partition("\n")
        names = [name.strip() for name in head.split(",")]
        has_head = any(character.isalpha() and character not in "eE" for character in head)
        leads = tuple(names) if has_head else LEADS
        lines = (rest if has_head else text).split()
        try:
            values = np.array([line.split(",") for line in lines], dtype=np.float64)
        except ValueError as error:
            raise InputError("it is no table of numbers with as many cells in each row") from error
        if values.ndim != 2 or values.shape[1] != len(leads):
            raise InputError(f"it has {values.shape[-1] if values.size else 0} columns for {len(leads)} leads")
        return Recording(values.T / 1000, leads, RATE_HZ, len(values))
