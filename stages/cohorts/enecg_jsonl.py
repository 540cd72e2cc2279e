"""The subset of MIMIC-IV-ECG that EnECG's authors list in a .jsonl file: one record a line, with the five labels.

Keys: subject_id, ecg_path, rr_interval, age, gender, flag, report_label. The signals are MIMIC-IV-ECG's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cache.errors import InputError, MissingFileError
from stages.cohorts._registry import register
from stages.cohorts.contract import Cohort, Entries, Options
from stages.cohorts.labels.ages import OLDEST_YEARS
from stages.cohorts.mimic_iv_ecg import RR_LONGEST_MS, TARGETS
from stages.cohorts.mimic_labels.reports import OTHER
from stages.readers.prefixes import relocated

LONGEST_LINE = 1 << 20
FILES = "files/"
_ABSOLUTE = re.compile(r"/|[A-Za-z]:[/\\]")
_GENDER = {"m": 0.0, "male": 0.0, "f": 1.0, "female": 1.0}


class JsonlOptions(Options):
    """Which file lists the records; None: the only .jsonl of the folder."""

    file: str | None = None


@register("enecg-jsonl")
class EnecgJsonl(Cohort):
    """A .jsonl in or named from a MIMIC-IV-ECG folder."""

    title = "EnECG's subset (a .jsonl file, and MIMIC-IV-ECG's files/)"
    licence = "that of MIMIC-IV-ECG and MIMIC-IV"
    options_type = JsonlOptions
    holds = ("mimic-iv-ecg",)
    options: JsonlOptions

    def entries(self) -> Entries:
        """Read the list, line by line."""
        path = self._file()
        rows = list(_rows(path))
        if not rows:
            raise InputError(f"{path}: lists no record")
        given = pd.DataFrame(rows, dtype=object)  # pandas 3 takes text of UTF-8 alone for a column of text
        paths = [_within(p) for p in given["ecg_path"]]
        names = [p.rstrip("/").rsplit("/", 1)[-1] for p in paths]
        patients = [_whole(number) for number in given["subject_id"]]
        frame = pd.DataFrame({"record_id": names, "patient_id": patients, "path": paths}, dtype=object)
        limits = {"rr_interval": (1e-9, RR_LONGEST_MS), "age": (0, OLDEST_YEARS), "gender": (0, 1), "flag": (0, 1)}
        notes: list[str] = []
        cut = sum(path != said for path, said in zip(paths, given["ecg_path"], strict=True))
        if cut:
            notes.append(f"ecg_path: {cut} absolute paths are taken from their {FILES} on")
        frame["path"] = relocated(self.folder, frame["path"], ".hea", notes)
        for name, (low, high) in {**limits, "report_label": (0, OTHER)}.items():
            values = np.array([_number(name, value) for value in given[name]])
            whole = name in ("rr_interval", "age") or values == np.floor(values)
            frame[name] = np.where((values >= low) & (values <= high) & whole, values, np.nan)
            left_out = int(frame[name].isna().sum())
            if left_out:
                notes.append(f"{name}: {left_out} missing or outside {low:g}-{high:g}")
        return Entries(frame, TARGETS, notes)

    def _file(self) -> Path:
        if self.options.file is not None:
            named = Path(self.options.file)
            path = named if named.is_absolute() or named.is_file() else self.folder / named
            if not path.is_file():
                raise MissingFileError(f"{path} does not exist; option 'file' must name a .jsonl file")
            return path
        found = sorted(path for path in self.folder.glob("*.jsonl") if not path.name.startswith("._"))
        if len(found) != 1:
            raise MissingFileError(f"{self.folder} holds {len(found)} .jsonl files; name one by the option 'file'")
        return found[0]


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    keys = ("subject_id", "ecg_path", "rr_interval", "age", "gender", "flag", "report_label")
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), start=1):
            if len(line) > LONGEST_LINE:
                raise InputError(f"{path}, line {number}: longer than 1 MB")
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}, line {number}: not JSON") from error
            if not isinstance(row, dict) or not isinstance(row.get("ecg_path"), str):
                raise InputError(f"{path}, line {number}: has no 'ecg_path'")
            yield {key: row.get(key) for key in keys}


def _within(path: str) -> str:
    """Return an absolute path from its last files/ on: the authors' folder is not ours."""
    _, found, below = path.rpartition(f"/{FILES}")
    return FILES + below if found and _ABSOLUTE.match(path) else path


def _number(name: str, value: object) -> float:
    if name == "gender" and isinstance(value, str) and value.strip().lower() in _GENDER:
        return _GENDER[value.strip().lower()]
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return np.nan


def _whole(value: object) -> str | None:
    return None if value is None else str(value).removesuffix(".0")
