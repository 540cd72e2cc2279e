"""Shape of the median beat: its course in every lead, and what groups of neighbouring leads show together.

Lives here: means over short times, and the signs that readers count over regions of the heart (Q waves, ST and T
deviations, voltages). Not here: wave bounds (`signals.waves`), plain measurements of single leads (`morphology`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.ndimage
import scipy.signal

from stages.experts.signals.beats import SAMPLE_MS
from stages.experts.signals.vectorcardiogram import INDEPENDENT
from stages.experts.signals.waves import Waves

LEAD_NAMES = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
_I, _II, _III, _AVR, _AVL, _AVF, _V1, _V2, _V3, _V4, _V5, _V6 = range(12)
_CHEST = slice(_V1, _V6 + 1)
REGIONS = {"inferior": (_II, _III, _AVF), "lateral": (_I, _AVL, _V5, _V6), "anterior": (_V2, _V3, _V4)} | {
    "septal": (_V1, _V2)
}
COURSE_EDGES = (*range(-110, 0, 20), *range(0, 81, 6), *range(100, 281, 20))
"""Samples (2 ms) from the QRS onset between which every lead is averaged: 12 ms in the QRS complex, 40 ms outside."""
ACTIVATION_LEADS = (_I, _AVL, _V1, _V2, _V5, _V6)
_Q_MV, _PATHOLOGICAL_Q_MV, _PATHOLOGICAL_Q_MS, _NO_R_MV = 0.02, 0.1, 30, 0.05
_ST_SAMPLE, _ST_HIGH_MV, _ST_LOW_MV, _INVERTED_MV = 20, 0.1, -0.05, -0.05
_SAVITZKY_GOLAY = scipy.signal.savgol_coeffs(7, 2)

_PER_LEAD = ("r_share", "q_duration_ms", "log_qrs_range", "terminal_mv", "initial_mv", "qrs_turns")
_T_PER_LEAD = ("t_over_qrs", "t_lowest_mv", "t_highest_mv")
_PER_REGION = ("pathological_q", "q_share", "q_ms", "st_high_mv", "st_low_mv", "r_lowest_mv", "r_highest_mv")
_T_PER_REGION = ("t_lowest_mv", "t_inverted")
_VOLTAGES = (
    "cornell_product",
    "sokolow_lyon_product",
    "total_product",
    "lewis_mv",
    "right_mv",
    "gubner_mv",
    "peguero_mv",
)
_COUNTS = ("qrs_turns", "st_elevated_leads", "st_depressed_leads", "t_inverted_leads")
_SIZES = ("limb_qrs_mv", "chest_qrs_mv", "total_qrs_mv", "log_total_qrs", "transition_lead")
NAMES = (
    *(f"{LEAD_NAMES[lead]}_at_{2 * edge}_ms" for lead in INDEPENDENT for edge in COURSE_EDGES[:-1]),
    *(f"{lead}_{name}" for name in (*_PER_LEAD, *_T_PER_LEAD) for lead in LEAD_NAMES),
    *(f"{LEAD_NAMES[lead]}_activation_ms" for lead in ACTIVATION_LEADS),
    *(f"{region}_{name}" for region in REGIONS for name in (*_PER_REGION, *_T_PER_REGION)),
    *(*_VOLTAGES, *_COUNTS, *_SIZES),
)


@dataclass(frozen=True)
class _Qrs:
    """QRS complex [12, time] in mV, and heights (positive) of its R, Q and S waves, their lengths and ranges, [12]."""

    course: np.ndarray
    r: np.ndarray
    q: np.ndarray
    s: np.ndarray
    q_ms: np.ndarray
    span: np.ndarray

    @property
    def deep(self) -> np.ndarray:
        return np.maximum(self.q, self.s)

    @property
    def r_share(self) -> np.ndarray:
        return self.r / (self.r + self.deep + 0.05)


def measure_shape(beat: np.ndarray, waves: Waves) -> dict[str, float]:
    """Measure a median beat.

    Parameters
    ----------
    beat
        [12, time] in mV against the level before the QRS complex, standard lead order, 500 Hz; a missing lead is NaN.
    waves
        Its bounds; those of the QRS complex are there.

    Returns
    -------
    Value by name of `NAMES`; counts are over the leads that are there.
    """
    on, off = int(waves.qrs_on), int(waves.qrs_off)
    qrs = _read_qrs(beat[:, on : off + 1])
    st = beat[:, off + _ST_SAMPLE]
    values = _course(beat, on) | _leads(qrs) | _voltages(qrs, (off - on) * SAMPLE_MS) | _sizes(qrs)
    values |= {"st_elevated_leads": (st > _ST_HIGH_MV).sum(), "st_depressed_leads": (st < _ST_LOW_MV).sum()}
    for region, leads in REGIONS.items():
        values |= {f"{region}_{name}": value for name, value in _region(qrs, st, list(leads)).items()}
    if np.isfinite(waves.t_on + waves.t_off) and waves.t_off > waves.t_on:
        values |= _t(beat[:, int(waves.t_on) : int(waves.t_off) + 1], qrs.span)
    return values


def _read_qrs(course: np.ndarray) -> _Qrs:
    peak, time = course.argmax(-1)[:, None], np.arange(course.shape[-1])
    before, after = np.where(time <= peak, course, 0), np.where(time >= peak, course, 0)
    return _Qrs(
        course,
        r=np.maximum(course.max(-1), 0),
        q=-np.minimum(before.min(-1), 0),
        s=-np.minimum(after.min(-1), 0),
        q_ms=(before < -_Q_MV).sum(-1) * SAMPLE_MS,
        span=np.ptp(course, axis=-1),
    )


def _course(beat: np.ndarray, on: int) -> dict[str, float]:
    """Average the independent leads between neighbouring edges."""
    edges = on + np.array(COURSE_EDGES)
    summed = np.concatenate([np.zeros((len(INDEPENDENT), 1)), np.cumsum(beat[list(INDEPENDENT)], -1)], axis=-1)
    means = np.diff(summed[:, edges], axis=-1) / np.diff(edges)
    return {
        f"{LEAD_NAMES[lead]}_at_{2 * edge}_ms": value
        for lead, row in zip(INDEPENDENT, means.tolist(), strict=True)
        for edge, value in zip(COURSE_EDGES[:-1], row, strict=True)
    }


def _by_lead(columns: dict[str, np.ndarray]) -> dict[str, float]:
    return {
        f"{lead}_{name}": value
        for name, column in columns.items()
        for lead, value in zip(LEAD_NAMES, column.tolist(), strict=True)
    }


def _leads(qrs: _Qrs) -> dict[str, float]:
    course, n = qrs.course, qrs.course.shape[1]
    columns = {
        "r_share": qrs.r_share,
        "q_duration_ms": np.where(np.isnan(qrs.span), np.nan, qrs.q_ms),
        "log_qrs_range": np.log(qrs.span + 0.05),
        "terminal_mv": course[:, int(0.75 * n) :].mean(-1),
        "initial_mv": course[:, : max(int(0.25 * n), 1)].mean(-1),
        "qrs_turns": _turns(course),
    }
    activation = np.where(np.isnan(qrs.span), np.nan, course.argmax(-1) * SAMPLE_MS)
    times = {f"{LEAD_NAMES[lead]}_activation_ms": float(activation[lead]) for lead in ACTIVATION_LEADS}
    return _by_lead(columns) | times | {"qrs_turns": float(np.nansum(columns["qrs_turns"]))}


def _turns(course: np.ndarray) -> np.ndarray:
    """Count how often each lead turns within the QRS complex, [12]: notches and fragmentation."""
    smooth = scipy.ndimage.convolve1d(course, _SAVITZKY_GOLAY, mode="nearest") if course.shape[1] >= 9 else course
    up = np.diff(smooth, axis=-1) > 0
    return np.where(np.isnan(course[:, 0]), np.nan, np.diff(up, axis=-1).sum(-1))


def _region(qrs: _Qrs, st: np.ndarray, leads: list[int]) -> dict[str, float]:
    """Read neighbouring leads together; of ST, two of them have to show a deviation."""
    r, q, q_ms = qrs.r[leads], qrs.q[leads], qrs.q_ms[leads]
    long_q = (q_ms >= _PATHOLOGICAL_Q_MS) & (q >= _PATHOLOGICAL_Q_MV)
    ordered = np.sort(st[leads])
    return {
        "pathological_q": float((long_q | ((r < _NO_R_MV) & (q > _PATHOLOGICAL_Q_MV))).sum()),
        "q_share": (q / (r + q + 0.05)).max(),
        "q_ms": np.sort(q_ms)[-2:].mean(),
        "st_high_mv": ordered[-2],
        "st_low_mv": ordered[1],
        "r_lowest_mv": r.min(),
        "r_highest_mv": r.max(),
    }


def _voltages(qrs: _Qrs, duration_ms: float) -> dict[str, float]:
    """Criteria of hypertrophy, as products with the duration of the QRS complex or in mV."""
    r, deep = qrs.r, qrs.deep
    return {
        "cornell_product": (r[_AVL] + deep[_V3]) * duration_ms,
        "sokolow_lyon_product": (deep[_V1] + max(r[_V5], r[_V6])) * duration_ms,
        "total_product": qrs.span.sum() * duration_ms,
        "lewis_mv": r[_I] + deep[_III] - r[_III] - deep[_I],
        "right_mv": r[_V1] + max(deep[_V5], deep[_V6]),
        "gubner_mv": r[_I] + deep[_III],
        "peguero_mv": deep.max() + deep[_V4],
    }


def _sizes(qrs: _Qrs) -> dict[str, float]:
    total, share = qrs.span.sum(), qrs.r_share[_CHEST]
    reached = share.max() > 0.5
    return {
        "limb_qrs_mv": qrs.span[:_V1].max(),
        "chest_qrs_mv": qrs.span[_CHEST].max(),
        "total_qrs_mv": total,
        "log_total_qrs": np.log(total + 0.1),
        # Where the R wave outgrows the S wave, in leads behind V1 with fractions; 6: nowhere.
        "transition_lead": float(np.interp(0.5, np.maximum.accumulate(share), np.arange(6.0))) if reached else 6.0,
    }


def _t(t_wave: np.ndarray, span: np.ndarray) -> dict[str, float]:
    height = np.take_along_axis(t_wave, np.abs(t_wave).argmax(-1)[:, None], -1)[:, 0]
    inverted = height < _INVERTED_MV
    columns = {"t_over_qrs": height / (span + 0.1), "t_lowest_mv": t_wave.min(-1), "t_highest_mv": t_wave.max(-1)}
    values = _by_lead(columns) | {"t_inverted_leads": float(inverted.sum())}
    for region, leads in REGIONS.items():
        values[f"{region}_t_lowest_mv"] = height[list(leads)].min()
        values[f"{region}_t_inverted"] = float(inverted[list(leads)].sum())
    return values
