"""The state of every heart on the day of its ECG: rhythm, intervals, amplitudes, potassium.

Not here: the shape of waves (waves.py), beat times (beats.py), lasting traits (patients.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np

from stages.synthetic.labels import Other, Report
from stages.synthetic.patients import Traits


class Atria(IntEnum):
    """What the atria do."""

    SINUS = 0
    FIBRILLATION = 1
    FLUTTER = 2
    SILENT = 3
    LOW = 4


class Conduction(IntEnum):
    """How the ventricles are reached."""

    NORMAL = 0
    RIGHT_BUNDLE = 1
    LEFT_BUNDLE = 2
    PACED = 3
    HYPERTROPHY = 4


@dataclass(frozen=True)
class State:
    """One heart on one day; arrays are [record] unless noted, times in seconds, voltages in mV."""

    report: np.ndarray
    other: np.ndarray
    atria: np.ndarray
    conduction: np.ndarray
    region: np.ndarray  # of the ST elevation: 0 inferior, 1 anterior, 2 lateral, -1 none
    rate_bpm: np.ndarray
    rsa: np.ndarray  # respiratory swing of RR, fraction
    rr_jitter: np.ndarray  # beat-to-beat irregularity of RR, fraction
    pr_s: np.ndarray
    p_s: np.ndarray
    qrs_s: np.ndarray
    qt_s: np.ndarray
    axis_rad: np.ndarray
    qrs_gain: np.ndarray
    t_gain: np.ndarray
    t_width: np.ndarray
    t_anterior: np.ndarray
    p_gain: np.ndarray
    septal_gain: np.ndarray
    u_gain: np.ndarray
    st_mv: np.ndarray  # [record, 3] ST vector
    potassium: np.ndarray  # mEq/L


# mean, standard deviation, lowest, highest heart rate of each class
_RATES = {
    Report.SINUS: (76, 9, 60.5, 99),
    Report.BRADYCARDIA: (53, 4.5, 38, 59.3),
    Report.TACHYCARDIA: (113, 11, 101, 155),
    Report.FIBRILLATION: (80, 11, 52, 99),
    Report.BORDERLINE_AV_BLOCK: (72, 9, 60.5, 98),
    Report.AV_BLOCK: (70, 9, 60.5, 95),
    Report.RAPID_FIBRILLATION: (125, 15, 102, 170),
    Report.SINUS_ARRHYTHMIA: (69, 7, 56, 88),
    Report.PAC: (74, 9, 60.5, 95),
    Report.PACING: (69, 7, 58, 90),
    Report.ST_ELEVATION: (81, 14, 55, 120),
    Report.DATA_QUALITY: (86, 16, 58, 130),
    Report.PVC: (76, 10, 60.5, 96),
    Report.ECTOPIC_ATRIAL: (72, 10, 55, 98),
    Report.OTHER: (77, 11, 55, 105),
}
_OTHER_SHARES = np.array([0.30, 0.20, 0.20, 0.15, 0.15])
# Directions of injury (left, inferior, posterior) of inferior, anterior and lateral infarction.
_REGIONS = np.array([[-0.20, 1.0, 0.15], [0.45, -0.05, -0.90], [0.95, -0.45, 0.10]])


def draw_potassium(rng: np.random.Generator, patient: np.ndarray) -> np.ndarray:
    """Draw each ECG's potassium in mEq/L: a patient's tendency (low, normal, high) recurs in seven of ten ECGs."""
    n_patients = int(patient.max()) + 1
    tendency = rng.choice(3, size=n_patients, p=[0.19, 0.62, 0.19])[patient]
    today = np.where(rng.random(len(patient)) < 0.7, tendency, 1)
    mean, spread = np.array([2.85, 4.2, 6.3])[today], np.array([0.38, 0.36, 0.75])[today]
    return np.clip(rng.normal(mean, spread), 1.9, 9.0)


def draw_state(
    rng: np.random.Generator, report: np.ndarray, age_years: np.ndarray, traits: Traits, potassium: np.ndarray
) -> State:
    """Draw the hearts of one block; `traits` and all arrays are already [record]."""
    other = rng.choice(len(Other), size=len(report), p=_OTHER_SHARES)
    state = _rested(rng, report, age_years, traits, other=other, potassium=potassium)
    state = _apply_potassium(rng, state)
    state = _apply_report(rng, state)
    return _apply_conduction(rng, state)


def _rested(
    rng: np.random.Generator,
    report: np.ndarray,
    age_years: np.ndarray,
    traits: Traits,
    *,
    other: np.ndarray,
    potassium: np.ndarray,
) -> State:
    n = len(report)
    decades = (age_years - 55) / 10
    rate = _draw_rates(rng, report)
    pr_ms = traits.pr_ms + 5.0 * decades - 0.25 * (rate - 75) + rng.normal(0, 4, n)
    qtc_s = (traits.qtc_ms + 4 * decades + rng.normal(0, 6, n)) / 1000
    st = np.array([0.9, 0.2, -1.0]) * (traits.j_point_mv * np.exp(-0.12 * decades))[:, None]
    return State(
        report=report,
        other=other,
        atria=np.full(n, Atria.SINUS),
        conduction=np.full(n, Conduction.NORMAL),
        region=np.full(n, -1),
        rate_bpm=rate,
        rsa=traits.rsa * np.exp(-0.25 * decades),
        rr_jitter=0.008 * np.exp(-0.15 * decades),
        pr_s=np.clip(pr_ms, 112, 196) / 1000,
        p_s=np.clip(traits.p_ms + 2.2 * decades, 70, 145) / 1000,
        qrs_s=np.clip(traits.qrs_ms + 0.8 * decades + rng.normal(0, 2, n), 66, 118) / 1000,
        qt_s=qtc_s * np.cbrt(60 / rate),
        axis_rad=np.deg2rad(np.clip(traits.axis_deg - 9.5 * decades + rng.normal(0, 3, n), -65, 110)),
        qrs_gain=traits.qrs_gain * np.exp(-0.045 * decades + rng.normal(0, 0.04, n)),
        t_gain=traits.t_gain * np.exp(-0.09 * decades + rng.normal(0, 0.08, n)),
        t_width=np.exp(0.025 * decades + rng.normal(0, 0.06, n)),
        t_anterior=traits.t_anterior,
        p_gain=traits.p_gain * np.exp(rng.normal(0, 0.08, n)),
        septal_gain=traits.septal_gain * np.exp(-0.12 * decades),
        u_gain=np.exp(rng.normal(0, 0.3, n)),
        st_mv=st,
        potassium=potassium,
    )


def _draw_rates(rng: np.random.Generator, report: np.ndarray) -> np.ndarray:
    mean, spread, low, high = np.array([_RATES[Report(code)] for code in range(len(_RATES))]).T[:, report]
    return np.clip(rng.normal(mean, spread), low + rng.random(len(report)), high - rng.random(len(report)))


def _apply_potassium(rng: np.random.Generator, state: State) -> State:
    # Textbook order of changes: tall narrow T, flat P, long PR, wide QRS above 5.5; flat T, U, low ST below 3.5.
    # How strongly one heart answers differs, which keeps the label from being read off one amplitude.
    answer = np.exp(rng.normal(0, 0.35, len(state.potassium)))
    high = np.clip((state.potassium - 4.8) / 1.9, 0, 1.5) * answer
    low = np.clip((3.7 - state.potassium) / 1.3, 0, 1.3) * answer
    high, low = np.minimum(high, 1.6), np.minimum(low, 1.3)
    direction = np.array([0.75, 0.45, -0.35])
    return replace(
        state,
        t_gain=state.t_gain * (1 + 0.95 * high) * np.maximum(1 - 0.50 * low, 0.12),
        t_width=state.t_width * (1 - 0.24 * np.minimum(high, 1.2)),
        p_gain=state.p_gain * np.maximum(1 - 0.40 * high, 0.15),
        pr_s=np.minimum(state.pr_s + 0.018 * high, 0.198),
        qrs_s=state.qrs_s * (1 + 0.14 * high),
        qt_s=state.qt_s * (1 - 0.03 * high + 0.02 * low),
        u_gain=state.u_gain + 3.0 * low,
        st_mv=state.st_mv - direction * (0.06 * low)[:, None],
    )


def _apply_report(rng: np.random.Generator, state: State) -> State:
    n = len(state.report)
    is_ = {kind: state.report == kind for kind in Report}
    fibrillates = is_[Report.FIBRILLATION] | is_[Report.RAPID_FIBRILLATION]
    is_other = is_[Report.OTHER]
    flutters = is_other & (state.other == Other.FLUTTER)
    junctional = is_other & (state.other == Other.JUNCTIONAL)
    paced_in_fibrillation = is_[Report.PACING] & (rng.random(n) < 0.5)
    atria = np.select(
        [fibrillates | paced_in_fibrillation, flutters, junctional, is_[Report.ECTOPIC_ATRIAL]],
        [Atria.FIBRILLATION, Atria.FLUTTER, Atria.SILENT, Atria.LOW],
        Atria.SINUS,
    )
    pr_s = np.where(is_[Report.BORDERLINE_AV_BLOCK], rng.uniform(0.201, 0.219, n), state.pr_s)
    pr_s = np.where(is_[Report.AV_BLOCK], 0.221 + np.minimum(rng.exponential(0.03, n), 0.1), pr_s)
    pr_s = np.where(is_[Report.ECTOPIC_ATRIAL], rng.uniform(0.108, 0.145, n), pr_s)
    rsa = np.where(is_[Report.SINUS_ARRHYTHMIA], rng.uniform(0.10, 0.19, n), np.minimum(state.rsa, 0.085))
    rsa = np.where(fibrillates | flutters | is_[Report.PACING], 0.0, rsa)
    jitter = np.where(fibrillates, rng.uniform(0.14, 0.24, n), np.minimum(state.rr_jitter, 0.03))
    jitter = np.where(flutters | is_[Report.PACING], 0.001, jitter)
    rate = np.where(junctional, rng.uniform(42, 62, n), state.rate_bpm)
    qt_s = state.qt_s * np.cbrt(state.rate_bpm / rate)
    state = replace(state, atria=atria, pr_s=pr_s, rsa=rsa, rr_jitter=jitter, rate_bpm=rate, qt_s=qt_s)
    return _apply_infarct(rng, state)


def _apply_infarct(rng: np.random.Generator, state: State) -> State:
    n = len(state.report)
    region = np.where(state.report == Report.ST_ELEVATION, rng.choice(3, size=n, p=[0.45, 0.4, 0.15]), -1)
    size = np.where(region >= 0, np.clip(rng.normal(0.26, 0.08, n), 0.13, 0.5), 0.0)
    st = state.st_mv + _REGIONS[region] * size[:, None]
    return replace(state, region=region, st_mv=st)


def _apply_conduction(rng: np.random.Generator, state: State) -> State:
    n = len(state.report)
    chance = rng.random(n)
    incidental = ~np.isin(state.report, [Report.PACING, Report.ST_ELEVATION, Report.OTHER])
    is_other = state.report == Report.OTHER
    conduction = np.select(
        [
            state.report == Report.PACING,
            (is_other & (state.other == Other.RIGHT_BUNDLE)) | (incidental & (chance < 0.02)),
            (is_other & (state.other == Other.LEFT_BUNDLE)) | (incidental & (chance > 0.985)),
            (is_other & (state.other == Other.HYPERTROPHY)) | (incidental & (chance > 0.965)),
        ],
        [Conduction.PACED, Conduction.RIGHT_BUNDLE, Conduction.LEFT_BUNDLE, Conduction.HYPERTROPHY],
        Conduction.NORMAL,
    )
    extra_s = np.array([0.0, 0.042, 0.055, 0.068, 0.008])[conduction] * rng.uniform(0.85, 1.15, n)
    gain = np.where(conduction == Conduction.HYPERTROPHY, rng.uniform(1.6, 2.1, n), 1.0)
    return replace(
        state,
        conduction=conduction,
        qrs_s=state.qrs_s + extra_s,
        qt_s=state.qt_s + 0.6 * extra_s,
        qrs_gain=state.qrs_gain * gain,
        axis_rad=np.where(conduction == Conduction.HYPERTROPHY, np.minimum(state.axis_rad, 0.6), state.axis_rad),
        p_s=np.minimum(state.p_s, state.pr_s - 0.012),
    )
