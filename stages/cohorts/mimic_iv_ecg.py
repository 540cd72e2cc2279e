"""MIMIC-IV-ECG (Gow et al., PhysioNet 1.0): EnECG's five labels, and mortality (docs/cohorts.md says how each is made).

age, gender, flag and mortality need the tables of MIMIC-IV's `hosp` module; without them these labels are null.
Potassium is in mimic_labels/potassium.py, the report classes in mimic_labels/reports.py, deaths in
mimic_labels/mortality.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import Field, field_validator

from cache.errors import MissingFileError
from cache.records import Target
from stages.cohorts._registry import register
from stages.cohorts.contract import Cohort, Entries, Options, check_not_empty
from stages.cohorts.mimic_labels import icd, reports
from stages.cohorts.mimic_labels.mortality import last_discharges, mortality
from stages.cohorts.mimic_labels.mortality import target as mortality_target
from stages.cohorts.mimic_labels.potassium import nearest_flag, read_results, seconds
from stages.readers.prefixes import relocated
from stages.readers.tables import find_table, numbers, read_table

RR_MISSING_MS = 29999
RR_LONGEST_MS = 5000
N_REPORT_LINES = 18
LARGEST_SUBJECT = 2.0**53
"""Beyond it a float64 is no whole number that can be told from its neighbours."""
TARGETS = [
    Target("rr_interval", "regression", unit="ms", description="the cart's own measurement"),
    Target("age", "regression", unit="years", description="anchor_age + (year of the ECG - anchor_year)"),
    Target("gender", "binary", classes=("male", "female"), description="0 male, 1 female"),
    Target("flag", "binary", classes=("normal", "abnormal"), description="potassium nearest to the ECG: 1 abnormal"),
    Target("report_label", "multiclass", classes=reports.CLASSES, description="first line of the machine report"),
]


Lists = Literal["all_diag_all", "all_diag_hosp", "hosp_diag_hosp", "ed_diag_hosp", "ed_diag_ed"]


class MimicOptions(Options):
    """Where the hosp tables lie, how near a potassium must be, until when deaths are predicted, which diagnoses count.

    Attributes
    ----------
    icd
        MIMIC-IV-ECG-Ext-ICD's table or its folder; None: no target `icd`.
    icd_column, icd_digits, icd_least
        Which of its lists, how many characters of a code, and how many records a code must have.
    mortality_days
        Horizons of the target `mortality`, ascending; deaths are known for a year after the last discharge.
    """

    icd: str | None = None
    icd_column: Literal["all_diag_all", "all_diag_hosp", "hosp_diag_hosp", "ed_diag_hosp", "ed_diag_ed"] = (
        "all_diag_all"
    )
    icd_digits: int = Field(3, ge=3, le=7)
    icd_least: int = Field(100, ge=1)
    hosp: str | None = None
    potassium_hours_before: float = Field(4.0, ge=0, le=24 * 366)
    potassium_hours_after: float = Field(1.0, ge=0, le=24 * 366)
    mortality_days: tuple[Annotated[float, Field(gt=0, le=3650)], ...] = Field((30.0, 180.0, 365.0), min_length=1)

    @field_validator("mortality_days")
    @classmethod
    def _ascending(cls, given: tuple[float, ...]) -> tuple[float, ...]:
        if list(given) != sorted(set(given)):
            raise ValueError(f"mortality_days {list(given)} must ascend")
        return given


@register("mimic-iv-ecg")
class MimicIvEcg(Cohort):
    """MIMIC-IV-ECG in its own layout; MIMIC-IV's hosp tables in hosp/ or ../hosp, or named by the option `hosp`."""

    title = "MIMIC-IV-ECG (record_list.csv, machine_measurements.csv, files/)"
    manifests = (
        "record_list.csv",
        "machine_measurements.csv",
        "hosp/patients.csv.gz",
        "hosp/labevents.csv.gz",
        "hosp/admissions.csv.gz",
    )
    licence = "ODbL (ECGs); PhysioNet credentialed licence (MIMIC-IV hosp)"
    options_type = MimicOptions
    options: MimicOptions

    def entries(self) -> Entries:
        """Read record_list, machine_measurements and the hosp tables; labevents is streamed."""
        path = self.require("record_list.csv")
        listed, notes = read_table(path, ["subject_id", "study_id", "ecg_time", "path"])
        check_not_empty(listed, path)
        frame = pd.DataFrame({"record_id": listed["study_id"], "patient_id": listed["subject_id"]})
        frame["path"] = relocated(self.folder, listed["path"], ".hea", notes)
        self._add_machine(frame, notes)
        subject, (time_s, timed) = numbers(listed["subject_id"]), seconds(listed["ecg_time"])
        if not timed.all():
            notes.append(f"ecg_time: {int((~timed).sum())} cannot be read; age and flag are null there")
        died = self._add_patients(frame, _year(time_s, timed), notes)
        self._add_potassium(frame, subject, time_s, timed, notes)
        deaths = self._add_mortality(frame, time_s, timed, died, notes)
        return Entries(frame, [*TARGETS, *deaths, *self._diagnoses(frame, notes)], notes)

    def _diagnoses(self, frame: pd.DataFrame, notes: list[str]) -> list[Target]:
        asked = self.options
        if asked.icd is None:
            return []
        return icd.add_diagnoses(frame, asked.icd, asked.icd_column, asked.icd_digits, asked.icd_least, notes)

    def _add_machine(self, frame: pd.DataFrame, notes: list[str]) -> None:
        path = find_table([self.folder], "machine_measurements.csv")
        if path is None:
            raise MissingFileError(f"{self.folder / 'machine_measurements.csv'} does not exist; {self.title}")
        known = set(frame["record_id"].dropna())
        lines = [f"report_{k}" for k in range(N_REPORT_LINES)]
        table, more = read_table(path, ["study_id", "rr_interval", lines[0]], lambda b: b["study_id"].isin(known))
        notes += more
        table = _firsts(table, "study_id", path, notes).reindex(frame["record_id"])
        unmeasured = int(table["rr_interval"].isna().sum())
        rr_ms = numbers(table["rr_interval"])
        sentinel, outside = rr_ms == RR_MISSING_MS, (rr_ms <= 0) | (rr_ms > RR_LONGEST_MS)
        frame["rr_interval"] = np.where(outside, np.nan, rr_ms)
        frame["report_label"] = pd.array([reports.report_class(x) for x in table[lines[0]]], dtype="Int16")
        notes += _counted(
            "rr_interval",
            {
                "not measured": unmeasured,
                "29999": int(sentinel.sum()),
                "outside 0-5000": int((outside & ~sentinel).sum()),
            },
        )
        notes += _counted("report_label", {"no first line": int(frame["report_label"].isna().sum())})

    def _hosp(self, name: str) -> Path | None:
        named = self.options.hosp
        folders = [Path(named)] if named else [self.folder / "hosp", self.folder.parent / "hosp"]
        if named and not folders[0].is_dir():
            raise MissingFileError(f"{named} is not a folder; option 'hosp' must name MIMIC-IV's hosp folder")
        return find_table(folders, name)

    def _add_patients(self, frame: pd.DataFrame, year: np.ndarray, notes: list[str]) -> pd.Series | None:
        """Add age and gender; returns the days of death, None where the table does not say them."""
        frame["age"], frame["gender"] = np.nan, np.nan
        path = self._hosp("patients.csv")
        if path is None:
            notes.append("age, gender: null, there is no patients.csv(.gz) in hosp/; name it by the option 'hosp'")
            return None
        known = set(frame["patient_id"].dropna())
        columns = ["subject_id", "gender", "anchor_age", "anchor_year"]
        columns += ["dod"] if self._hosp("admissions.csv") else []
        table, more = read_table(path, columns, lambda b: b["subject_id"].isin(known))
        notes += more
        table = _firsts(table, "subject_id", path, notes).reindex(frame["patient_id"])
        age = numbers(table["anchor_age"]) + (year - numbers(table["anchor_year"]))
        frame["age"] = np.where((age >= 0) & (age <= 130), age, np.nan)
        frame["gender"] = table["gender"].map({"M": 0.0, "F": 1.0}).to_numpy(dtype=float)
        impossible = int(((age < 0) | (age > 130)).sum())
        notes += _counted("age", {"no patient or time": int(np.isnan(age).sum()), "outside 0-130": impossible})
        notes += _counted("gender", {"no M or F": int(frame["gender"].isna().sum())})
        return pd.to_datetime(table["dod"], errors="coerce").reset_index(drop=True) if "dod" in table else None

    def _add_mortality(
        self, frame: pd.DataFrame, time_s: np.ndarray, timed: np.ndarray, died: pd.Series | None, notes: list[str]
    ) -> list[Target]:
        """Add the time to death; no target where there is no table of admissions: who lived until when is not known."""
        path = self._hosp("admissions.csv")
        if died is None or path is None:
            notes.append("mortality: left out, there is no admissions.csv(.gz) beside patients.csv(.gz) in hosp/")
            return []
        left = last_discharges(path, set(frame["patient_id"].dropna()), notes)
        discharged = frame["patient_id"].map(left).astype("datetime64[ns]")
        frame["mortality"], reasons = mortality(time_s, timed, died, discharged)
        notes += _counted("mortality", reasons)
        return [mortality_target(self.options.mortality_days)]

    def _add_potassium(
        self, frame: pd.DataFrame, subject: np.ndarray, time_s: np.ndarray, timed: np.ndarray, notes: list[str]
    ) -> None:
        frame["flag"] = np.nan
        path = self._hosp("labevents.csv")
        if path is None:
            notes.append("flag: null, there is no labevents.csv(.gz) in hosp/; name it by the option 'hosp'")
            return
        usable = timed & (np.abs(subject) < LARGEST_SUBJECT)
        results = read_results(path, np.unique(subject[usable]).astype(np.int64))
        before, after = self.options.potassium_hours_before, self.options.potassium_hours_after
        if usable.any():
            frame.loc[usable, "flag"] = nearest_flag(
                results, subject[usable].astype(np.int64), time_s[usable], hours_before=before, hours_after=after
            )
        notes += _counted("potassium results left out", results.left_out)
        without = f"no usable potassium from {before:g} h before to {after:g} h after"
        notes += _counted("flag", {without: int(frame["flag"].isna().sum())})


def _firsts(table: pd.DataFrame, key: str, path: Path, notes: list[str]) -> pd.DataFrame:
    """Return the first row of each key, by key; `notes` gets a line where there are others."""
    repeated = table[key].duplicated()
    if repeated.any():
        notes.append(f"{path.name}: {int(repeated.sum())} rows repeat a {key}; the first of each counts")
    return table[~repeated].set_index(key)


def _year(time_s: np.ndarray, timed: np.ndarray) -> np.ndarray:
    years = time_s.astype("datetime64[s]").astype("datetime64[Y]").astype(int) + 1970
    return np.where(timed, years.astype(float), np.nan)


def _counted(what: str, reasons: dict[str, int]) -> list[str]:
    counts = [f"{n} {reason}" for reason, n in reasons.items() if n]
    return [f"{what}: {', '.join(counts)}"] if counts else []
