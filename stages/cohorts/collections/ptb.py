"""PTB Diagnostic ECG Database (Bousseljot et al. 1995; PhysioNet ptbdb 1.0.0): 15 leads at 1000 Hz, up to two minutes.

The Frank leads vx, vy and vz lie in .xyz files and are left out. What is known of a patient stands in the comments of
the headers.
"""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from cache.errors import InputError, MissingFileError
from cache.records import Target
from stages.cohorts import Cohort, Entries, register
from stages.cohorts.labels.ages import age_of
from stages.readers.record_search import find_records
from stages.readers.wfdb.header import read_header

_COMMENT = re.compile(r"#\s*([^:]+?)\s*:\s*(.*)$")
_NOTHING = {"", "n/a", "unknown", "no"}
_SEX = {"male": 0.0, "female": 1.0}


@register("ptb")
class Ptb(Cohort):
    """PTB in PhysioNet's layout: a folder a patient."""

    title = "PTB (patient001/ ... with .hea, .dat and .xyz)"
    manifests = ("RECORDS",)
    licence = "ODC-By 1.0"

    def entries(self) -> Entries:
        """Read the comments of every header."""
        notes: list[str] = []
        paths = [path for path in find_records(self.data, notes) if re.fullmatch(r"(?:.*/)?patient\d+/[^/]+", path)]
        if not paths:
            raise MissingFileError(f"{self.folder}: holds no patient001/; --path must name the folder of {self.title}")
        comments = [self._comments(path) for path in paths]
        frame = pd.DataFrame({"path": paths})
        frame["record_id"] = [path.rsplit("/", 1)[-1] for path in paths]
        frame["patient_id"] = [path.rsplit("/", 2)[-2] for path in paths]
        frame["age"] = [age_of(one.get("age")) for one in comments]
        frame["sex"] = [_SEX.get(one.get("sex", "").lower(), np.nan) for one in comments]
        diagnoses = [_known(one, "reason for admission") for one in comments]
        infarctions = [_known(one, "acute infarction (localization)") for one in comments]
        targets = [
            _classes(frame, "diagnosis", diagnoses, "reason for admission"),
            _classes(frame, "infarction", infarctions, "localization of the acute infarction"),
        ]
        notes.append(f"diagnosis: {int(frame['diagnosis'].isna().sum())} headers give none")
        return Entries(
            frame,
            [
                *targets,
                Target("age", "regression", unit="years"),
                Target("sex", "binary", classes=("male", "female"), description="0 male, 1 female"),
            ],
            notes,
        )

    def _comments(self, path: str) -> dict[str, str]:
        """Return what the header of a record says; of one that cannot be read, nothing (the record will be bad)."""
        try:
            header = read_header(self.data, path)
        except InputError:
            return {}
        found = (match for comment in header.comments if (match := _COMMENT.match(comment)))
        return {match[1].lower(): match[2].strip() for match in found}


def _known(comments: dict[str, str], name: str) -> str | None:
    """Return a diagnosis without the class of heart failure behind it; None where nothing is known."""
    text = comments.get(name, "")
    plain = re.sub(r"\s*\(NYHA \d\)$", "", text, flags=re.IGNORECASE)
    return None if plain.lower() in _NOTHING else plain


def _classes(frame: pd.DataFrame, name: str, values: list[str | None], description: str) -> Target:
    classes = tuple(sorted({value for value in values if value is not None}))
    index = {value: k for k, value in enumerate(classes)}
    frame[name] = pd.array([None if value is None else index[value] for value in values], dtype="Int16")
    return Target(name, "multiclass", classes=classes, description=description)
