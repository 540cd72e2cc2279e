"""Who dies when: a hazard that follows age, rhythm, injury and potassium, and the hospital stays around the ECGs.

Not here: the people (patients.py), the hearts (physiology.py), files (write_mimic.py).

The hazard starts at a patient's last ECG and is that of this ECG: h(t) = k/s (t/s)^(k-1) exp(sum of effects), a Weibull
hazard, higher in the first weeks. Deaths are kept where MIMIC-IV would know them, within a year of the last discharge.
All draws come from a stream of their own, so that signals and other labels are what they were without them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stages.synthetic.labels import Report

STREAM = 200
"""Third word of the seed of these draws; a block's other streams count up from 0 and from 100."""
LOG_HAZARDS = {"decade": 0.45, "fibrillation": 0.6, "injury": 0.9, "potassium": 0.5}
"""For ten years of age, fibrillation of the atria, ST elevation, and a mmol/L of potassium away from 4.2."""
MIDDLE_AGE, MIDDLE_POTASSIUM = 65.0, 4.2
SHAPE, SCALE_DAYS = 0.8, 3600.0
KNOWN_DAYS = 365
_FIBRILLATION = (Report.FIBRILLATION, Report.RAPID_FIBRILLATION)
_DAY = np.timedelta64(1, "D")
ADMISSION_COLUMNS = [
    *("subject_id", "hadm_id", "admittime", "dischtime", "deathtime", "admission_type", "admit_provider_id"),
    *("admission_location", "discharge_location", "insurance", "language", "marital_status", "race"),
    *("edregtime", "edouttime", "hospital_expire_flag"),
]


@dataclass(frozen=True)
class Stays:
    """One hospital stay around every ECG; arrays are [record] but for the last.

    Attributes
    ----------
    admitted, discharged
        datetime64[m]; whoever dies in hospital is discharged then.
    death
        datetime64[D] of every patient, NaT where nobody knows of one.
    """

    admitted: np.ndarray
    discharged: np.ndarray
    death: np.ndarray


def covariates(age_years: np.ndarray, report: np.ndarray, potassium: np.ndarray) -> np.ndarray:
    """Return what the hazard follows, [record, 4], in the order of `LOG_HAZARDS`."""
    return np.column_stack(
        [
            (age_years - MIDDLE_AGE) / 10,
            np.isin(report, _FIBRILLATION),
            report == Report.ST_ELEVATION,
            abs(potassium - MIDDLE_POTASSIUM),
        ]
    ).astype(float)


def draw_stays(rng: np.random.Generator, patient: np.ndarray, time: np.ndarray, known: np.ndarray) -> Stays:
    """Draw one block's stays and deaths.

    Parameters
    ----------
    patient, time
        [record], sorted by patient and time (datetime64[m]).
    known
        `covariates`, [record, 4].
    """
    n_patients = int(patient[-1]) + 1
    last = np.searchsorted(patient, np.arange(n_patients), side="right") - 1
    admitted = time - (rng.uniform(0.5, 30, len(time)) * 60).astype("timedelta64[m]")
    # an ECG four days later is another stay's
    discharged = time + (rng.uniform(0.3, 2.6, len(time)) * 1440).astype("timedelta64[m]")
    discharged[last] += (rng.exponential(4, n_patients) * 1440).astype("timedelta64[m]")
    log_hazard = known[last] @ np.array(list(LOG_HAZARDS.values()))
    days = SCALE_DAYS * (rng.exponential(size=n_patients) * np.exp(-log_hazard)) ** (1 / SHAPE)
    days = np.minimum(days, 100 * KNOWN_DAYS)
    moment = time[last] + np.maximum(days * 1440, 1).astype("timedelta64[m]")
    discharged[last] = np.minimum(discharged[last], moment)
    death = moment.astype("datetime64[D]")
    seen = moment <= discharged[last] + KNOWN_DAYS * _DAY
    return Stays(admitted, discharged, np.where(seen, death, np.datetime64("NaT", "D")))


def admission_rows(stays: Stays, patient: np.ndarray, subject_id: np.ndarray, first_id: int) -> Iterator[list[str]]:
    """Yield the rows of admissions, in MIMIC's columns, sorted by patient and time.

    Parameters
    ----------
    patient
        [record].
    subject_id
        [patient].
    first_id
        The `hadm_id` of the block's first stay.
    """
    for k, who in enumerate(patient):
        left = stays.discharged[k]
        is_last = k + 1 == len(patient) or patient[k + 1] != who
        in_hospital = is_last and stays.death[who] == left.astype("datetime64[D]")
        died = _stamp(left) if in_hospital else ""
        place = "DIED" if in_hospital else "HOME"
        yield [
            *(str(subject_id[who]), str(first_id + k), _stamp(stays.admitted[k]), _stamp(left), died, "EW EMER.", ""),
            *("EMERGENCY ROOM", place, "", "English", "", "", "", "", str(int(in_hospital))),
        ]


def _stamp(moment: np.datetime64) -> str:
    return str(moment.astype("datetime64[s]")).replace("T", " ")
