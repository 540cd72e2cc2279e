"""CPSC 2018 (Liu et al. 2018; the challenge's own layout): .mat files of MATLAB v5 beside REFERENCE.csv.

The copies with WFDB headers are the source `challenge`. A structure `ECG` holds sex, age and the signal in mV.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cache.errors import InputError, MissingFileError
from cache.records import Target
from cache.signals import LEADS
from stages.cohorts import Cohort, Entries, register
from stages.cohorts.contract import check_not_empty
from stages.readers import Recording
from stages.readers.arrays.mat5 import read_struct
from stages.readers.paths import open_file
from stages.readers.record_search import files_below
from stages.readers.tables import numbers, read_table

RATE_HZ = 500.0
CLASSES = ("Normal", "AF", "I-AVB", "LBBB", "RBBB", "PAC", "PVC", "STD", "STE")
"""Numbered from 1 in REFERENCE.csv."""
LABELS = ["First_label", "Second_label", "Third_label"]
REFERENCE = "REFERENCE.csv"


@register("cpsc2018")
class Cpsc2018(Cohort):
    """The nine classes, with the first label of each record apart."""

    title = "CPSC 2018 (REFERENCE.csv, A0001.mat ... here or in TrainingSet1 to 3)"
    manifests = (REFERENCE,)
    licence = "CC BY 4.0"

    def entries(self) -> Entries:
        """Read REFERENCE.csv, here or in the folders of the training sets."""
        notes: list[str] = []
        files = files_below(self.data, notes)
        place = {Path(path).stem: path for path in files if path.endswith(".mat")}
        tables = [path for path in files if path.rsplit("/", 1)[-1].upper() == REFERENCE.upper()]
        if not tables:
            raise MissingFileError(
                f"{self.folder / REFERENCE} does not exist; --path must name the folder of {self.title}"
            )
        read = [read_table(self.folder / path, ["Recording", *LABELS]) for path in tables]
        notes += [note for _, more in read for note in more]
        table = pd.concat([one for one, _ in read], ignore_index=True).drop_duplicates("Recording")
        table = table.reset_index(drop=True)
        check_not_empty(table, self.folder / tables[0])
        names = table["Recording"]
        frame = pd.DataFrame({"record_id": names, "patient_id": None})
        frame["path"] = [place.get(str(name), f"{name}.mat") for name in names]
        given = np.stack([numbers(table[name]) for name in LABELS], axis=1)
        if np.nanmax(given, initial=1) > len(CLASSES) or np.nanmin(given, initial=1) < 1:
            raise InputError(f"{self.folder / tables[0]}: labels are 1 to {len(CLASSES)}, it has others")
        frame["dx"] = [sorted({CLASSES[int(k) - 1] for k in row[np.isfinite(row)]}) or None for row in given]
        frame["first"] = pd.array([None if np.isnan(k) else int(k) - 1 for k in given[:, 0]], dtype="Int16")
        notes.append("age and sex lie in the files, not in the list, and are no labels here")
        return Entries(
            frame,
            [
                Target("dx", "multilabel", classes=tuple(sorted(CLASSES)), description="every label of a record"),
                Target("first", "multiclass", classes=CLASSES, description="the first label of a record"),
            ],
            notes,
        )

    def read(self, path: str) -> Recording:
        """Read one file."""
        descriptor, _ = open_file(self.data, path)
        with os.fdopen(descriptor, "rb") as file:
            found = read_struct(file.read(), "ECG")
        signals_mv = _signal(found)
        return Recording(signals_mv, LEADS, RATE_HZ, signals_mv.shape[1])


def _signal(found: Any) -> np.ndarray:
    data = found["data"] if "data" in (found.dtype.names or ()) else None
    if data is None or data.ndim != 2 or data.shape[0] != len(LEADS) or data.dtype.kind not in "fiu":
        raise InputError("its structure ECG has no data of numbers [12, time]")
    return np.asarray(data, dtype=np.float64)
