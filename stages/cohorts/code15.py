"""CODE-15% (Ribeiro et al., Zenodo 4916206): exams.csv and HDF5 shards of [exam, 4096, 12] at 400 Hz.

Exams of seven or ten seconds lie in the middle of 4096 samples with zeros around them; samples before the first and
after the last at which any lead differs from zero are that padding and are cut off.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from cache.errors import InputError, MissingFileError
from cache.records import Target
from cache.signals import LEADS
from stages.cohorts._registry import register
from stages.cohorts.contract import Cohort, Entries, check_not_empty, is_file
from stages.cohorts.labels.ages import age_of
from stages.readers import Recording, inside
from stages.readers.arrays.hdf5 import check_size, dataset
from stages.readers.tables import read_table

RATE_HZ = 400.0
MAX_EXAMS = 1_000_000
"""Of one shard; those of the collection have 20,000."""
DIAGNOSES = ("1dAVb", "RBBB", "LBBB", "SB", "ST", "AF")
_TRUTH = {"true": 1.0, "1": 1.0, "1.0": 1.0, "false": 0.0, "0": 0.0, "0.0": 0.0}


@register("code15")
class Code15(Cohort):
    """CODE-15% in Zenodo's layout, unzipped; shards that are not there are left out."""

    title = "CODE-15% (exams.csv, exams_part*.hdf5)"
    licence = "CC BY 4.0"
    holds = ("code",)

    def entries(self) -> Entries:
        """Read exams.csv and the exam ids of every shard."""
        path = self.require("exams.csv")
        columns = ["exam_id", "patient_id", "age", "is_male", "normal_ecg", "trace_file", *DIAGNOSES]
        table, notes = read_table(path, columns)
        shards = sorted({str(name) for name in table["trace_file"].dropna()})
        check_not_empty(table, path)
        places = {name: found for name in shards if (found := self._place(name)) is not None}
        if not places:
            raise MissingFileError(self._no_shard(shards))
        if len(places) < len(shards):
            absent = [name for name in shards if name not in places]
            absence = f"{len(absent)} of {len(shards)} shards are not there (such as {absent[0][:80]})"
            notes.append(f"{absence}; their exams are left out")
        table = table[table["trace_file"].isin(places)].reset_index(drop=True)
        table["exam_id"] = table["exam_id"].map(_whole)
        table["patient_id"] = table["patient_id"].map(_whole)
        table["trace_file"] = table["trace_file"].map(places)
        present = sorted(set(places.values()))
        # Of a name that leaves the folder, or a damaged shard, there are no rows: its exams are bad.
        rows = {(name, exam): row for name in present for row, exam in enumerate(self._exams(name, notes))}
        where = [rows.get(key, -1) for key in zip(table["trace_file"], table["exam_id"], strict=True)]
        frame = pd.DataFrame({"record_id": table["exam_id"], "patient_id": table["patient_id"]})
        frame["path"] = [f"{name}#{row}" for name, row in zip(table["trace_file"], where, strict=True)]
        return Entries(frame, _add_labels(frame, table), notes)

    def _place(self, name: str) -> str | None:
        """Return where a shard lies: here, or in a folder of its own (as zips unpack to); None where it is not there.

        A name that leaves the folder is returned as it stands: reading says so of every exam then.
        """
        try:
            if is_file(Path(inside(self.data, name))):
                return name
            stem = Path(name).stem
            folders = (stem, *sorted(path.name for path in self.folder.iterdir() if path.is_dir()))
            below = (f"{folder}/{name}" for folder in folders)
            return next((place for place in below if is_file(Path(inside(self.data, place)))), None)
        except InputError:
            return name

    def _no_shard(self, shards: list[str]) -> str:
        packed = sorted(path.name for path in self.folder.glob("exams_part*.zip"))
        unzip = f"; unzip {packed[0]}" + (f" and {len(packed) - 1} more" if packed[1:] else "") if packed else ""
        first = shards[0][:80] if shards else "exams_part0.hdf5"
        return f"{self.folder}: none of the {len(shards)} shards that exams.csv names (such as {first}) is here{unzip}"

    def _exams(self, name: str, notes: list[str]) -> list[str]:
        """Return the exam ids of a shard; none, with a note, where it is damaged: its exams are bad then."""
        try:
            exams = dataset(inside(self.data, name), "exam_id", 1)
            if len(exams) > MAX_EXAMS:
                raise InputError(f"{len(exams)} exams are more than {MAX_EXAMS}")
            values = exams[:]
        except InputError as error:
            notes.append(f"the exams of {name[:80]} cannot be read: {' '.join(str(error).split())[:160]}")
            return []
        # NaN and fractions are the id of no exam.
        return [str(int(exam)) if exam == np.floor(exam) and np.isfinite(exam) else "" for exam in values]

    def read(self, path: str) -> Recording:
        """Read one exam; `path` is SHARD#ROW."""
        name, _, row = path.rpartition("#")
        tracings = dataset(inside(self.data, name), "tracings", 3)
        if not row.isdigit():
            raise InputError(f"{name} has no such exam")
        if int(row) >= len(tracings) or tracings.shape[2] != len(LEADS):
            raise InputError(f"{name} has no 12-lead exam in row {row}")
        check_size(tracings.shape[1:])
        samples = np.asarray(tracings[int(row)], dtype=np.float64)
        used = np.flatnonzero((samples != 0).any(axis=1))
        if not len(used):
            raise InputError("all its samples are zero")
        signals_mv = samples[used[0] : used[-1] + 1].T
        return Recording(signals_mv, LEADS, RATE_HZ, signals_mv.shape[1])


def _whole(cell: str | None) -> str | None:
    """Write 1169160.0 as 1169160."""
    return None if cell is None else cell.removesuffix(".0")


def _add_labels(frame: pd.DataFrame, table: pd.DataFrame) -> list[Target]:
    def truth(name: str) -> pd.Series:
        return table[name].map(lambda cell: _TRUTH.get(str(cell).lower(), np.nan))

    known = pd.DataFrame({name: truth(name) for name in DIAGNOSES})
    frame["dx"] = [
        None if row.isna().any() else sorted(name for name in DIAGNOSES if row[name] == 1)
        for _, row in known.iterrows()
    ]
    frame["normal_ecg"], frame["sex"] = truth("normal_ecg"), 1.0 - truth("is_male")
    frame["age"] = [age_of(cell) for cell in table["age"]]
    return [
        Target("dx", "multilabel", classes=tuple(sorted(DIAGNOSES)), description="six diagnoses"),
        Target("normal_ecg", "binary", classes=("no", "yes")),
        Target("sex", "binary", classes=("male", "female"), description="0 male, 1 female"),
        Target("age", "regression", unit="years"),
    ]
