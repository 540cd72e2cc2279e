"""The people: who they are, when their ECGs were taken, and the hearts they carry from one ECG to the next.

Not here: what the rhythm or the potassium of one day does to the heart (physiology.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stages.synthetic.labels import BLOCK_RECORDS, Report

# Roughly MIMIC-IV's density: 161,000 patients over ten million numbers.
_SUBJECT_STEP = 62
_ECG_COUNTS = np.arange(1, 9)
_ECG_COUNT_SHARES = np.array([0.56, 0.20, 0.10, 0.05, 0.04, 0.02, 0.02, 0.01])
ANCHOR_GROUPS = ("2008 - 2010", "2011 - 2013", "2014 - 2016", "2017 - 2019", "2020 - 2022")
_AGE_SHIFT_YEARS = {
    Report.FIBRILLATION: 14,
    Report.RAPID_FIBRILLATION: 12,
    Report.PACING: 17,
    Report.BORDERLINE_AV_BLOCK: 7,
    Report.AV_BLOCK: 11,
    Report.PVC: 6,
    Report.ST_ELEVATION: 5,
    Report.TACHYCARDIA: -5,
    Report.SINUS_ARRHYTHMIA: -16,
}
# Classes that the same person shows again: they are dealt out in runs.
_FAMILY = {
    Report.FIBRILLATION: 1,
    Report.RAPID_FIBRILLATION: 1,
    Report.BORDERLINE_AV_BLOCK: 2,
    Report.AV_BLOCK: 2,
    Report.PACING: 3,
}


@dataclass(frozen=True)
class Patients:
    """The people of one block; every array is [patient]."""

    subject_id: np.ndarray
    male: np.ndarray
    age_years: np.ndarray  # the true age in the anchor year
    anchor_age: np.ndarray  # as published: whole years, 91 for everybody over 89
    anchor_year: np.ndarray
    anchor_group: np.ndarray
    death: np.ndarray  # datetime64[D], NaT while alive; mortality.py says who dies


@dataclass(frozen=True)
class Schedule:
    """The ECGs of one block, sorted by patient and time; every array is [record]."""

    patient: np.ndarray
    report: np.ndarray
    time: np.ndarray  # datetime64[m]


@dataclass(frozen=True)
class Traits:
    """What a heart and a chest keep from ECG to ECG, before age and the day act on them; every array is [patient]."""

    axis_deg: np.ndarray
    qrs_gain: np.ndarray
    t_gain: np.ndarray
    t_anterior: np.ndarray
    p_gain: np.ndarray
    septal_gain: np.ndarray
    pr_ms: np.ndarray
    p_ms: np.ndarray
    qrs_ms: np.ndarray
    qtc_ms: np.ndarray
    rsa: np.ndarray
    j_point_mv: np.ndarray
    chest: np.ndarray  # [patient, 6] electrode shift along the row V1..V6, in electrode distances
    body_gain: np.ndarray  # [patient, 6] gain of each chest lead: distance and conductivity of the chest


def draw_people(rng: np.random.Generator, reports: np.ndarray, block: int) -> tuple[Patients, Schedule]:
    """Deal one block's ECGs out to patients.

    Parameters
    ----------
    rng
        The block's own generator.
    reports
        [record] report classes of the block, in any order.
    block
        The block's number; it fixes the range of subject numbers, so that blocks never share a patient.
    """
    patient, report = _deal(rng, reports)
    n_patients = int(patient[-1]) + 1
    first = np.searchsorted(patient, np.arange(n_patients))
    people = _draw_patients(rng, report[first], block)
    time = _draw_times(rng, patient, first, people.anchor_year)
    order = np.lexsort((time, patient))
    _skip_deaths(rng, n_patients)
    return people, Schedule(patient[order], report[order], time[order])


def _deal(rng: np.random.Generator, reports: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    family = np.array([_FAMILY.get(Report(code), 0) for code in reports])
    dealt = reports[np.lexsort((rng.random(len(reports)), family))]
    counts = rng.choice(_ECG_COUNTS, size=len(reports), p=_ECG_COUNT_SHARES)
    run = np.repeat(np.arange(len(counts)), counts)[: len(reports)]
    rank = rng.permutation(int(run[-1]) + 1)
    patient = rank[run]
    order = np.lexsort((rng.random(len(reports)), patient))
    return patient[order], dealt[order]


def _draw_patients(rng: np.random.Generator, first_report: np.ndarray, block: int) -> Patients:
    n = len(first_report)
    shift = np.array([_AGE_SHIFT_YEARS.get(Report(code), 0) for code in first_report])
    age = np.clip(rng.normal(54 + shift, 19), 18 + 6 * rng.random(n), 98 - 6 * rng.random(n))
    number = block * BLOCK_RECORDS + np.arange(n)
    group = rng.integers(len(ANCHOR_GROUPS), size=n)
    return Patients(
        subject_id=10_000_000 + number * _SUBJECT_STEP + rng.integers(_SUBJECT_STEP, size=n),
        male=rng.random(n) < 0.5,
        age_years=age,
        anchor_age=np.where(age >= 90, 91, np.floor(age)).astype(int),
        anchor_year=rng.integers(2110, 2201, size=n),
        anchor_group=group,
        death=np.full(n, np.datetime64("NaT", "D"), dtype="datetime64[D]"),
    )


def _draw_times(
    rng: np.random.Generator, patient: np.ndarray, first: np.ndarray, anchor_year: np.ndarray
) -> np.ndarray:
    # Four days at least lie between two ECGs, so that a laboratory draw belongs to one ECG alone.
    soon = rng.random(len(patient)) < 0.4
    gap_days = np.where(soon, rng.uniform(4, 14, len(patient)), rng.uniform(30, 700, len(patient)))
    total = np.cumsum(gap_days)
    elapsed = total - np.repeat(total[first], np.diff(np.append(first, len(patient))))
    start = (anchor_year - 1970).astype("datetime64[Y]").astype("datetime64[m]")
    start = start + (rng.uniform(-200, 365, len(first)) * 1440).astype("timedelta64[m]")
    return start[patient] + (elapsed * 1440).astype("timedelta64[m]")


def _skip_deaths(rng: np.random.Generator, n_patients: int) -> None:
    """Draw the numbers that decided about deaths before they followed a hazard: what comes after stays as it was."""
    rng.exponential(500, n_patients)
    rng.random(n_patients)


def draw_traits(rng: np.random.Generator, male: np.ndarray) -> Traits:
    """Draw the lasting traits of hearts; sex acts here, age in `physiology.draw_state`.

    Directions of the sex effects: Macfarlane, Lawrie (eds), Comprehensive Electrocardiology, normal limits: women
    have lower QRS voltages, shorter QRS, longer QTc, flatter precordial T and less J-point elevation.
    """
    n = len(male)
    m = male.astype(float)
    return Traits(
        axis_deg=rng.normal(34 - 4 * m, 15),
        qrs_gain=np.exp(rng.normal(0.01 + 0.14 * m, 0.18)),
        t_gain=np.exp(rng.normal(-0.08 + 0.14 * m, 0.22)),
        t_anterior=rng.normal(0.85 + 0.22 * m, 0.23),
        p_gain=np.exp(rng.normal(0, 0.22, n)),
        septal_gain=np.exp(rng.normal(0, 0.28, n)),
        pr_ms=rng.normal(150 + 5 * m, 13),
        p_ms=rng.normal(101 + 3 * m, 7),
        qrs_ms=rng.normal(86 + 7 * m, 7),
        qtc_ms=rng.normal(418 - 14 * m, 13),
        rsa=0.03 * np.exp(rng.normal(0, 0.35, n)),
        j_point_mv=rng.normal(0.015 + 0.03 * m, 0.02),
        chest=rng.normal(0, 0.16, (n, 1)) + rng.normal(0, 0.12, (n, 6)),
        body_gain=np.exp(rng.normal(-0.03 + 0.03 * m, 0.10)[:, None] + rng.normal(0, 0.09, (n, 6))),
    )
