"""Onset and end of P, QRS and T on a 12-lead median beat, one set for all leads.

Lives here: wave bounds. Not here: finding beats (`signals.beats`), measuring the waves (`morphology`).

QRS bounds come from the spatial velocity (speed of the joint deflection of all leads), T end from the tangent to the
steepest descent of the root mean square over leads (Lepeschkin and Surawicz 1952), P bounds from the root mean square
above the straight line that joins the ends of the search interval.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.ndimage
import scipy.signal

from stages.experts.signals.beats import BEFORE, RATE_HZ, SAMPLE_MS
from stages.experts.signals.same_bits import Sosfiltfilt

_wave_band = Sosfiltfilt(scipy.signal.butter(2, 20, "lowpass", fs=RATE_HZ, output="sos"))
QRS_SPEED_SHARES = (0.03, 0.06, 0.12)
"""Share of the peak speed, above the rest of the beat, at which the QRS begins and ends; the first that finds both."""
QRS_QUIET_MS = 12
"""How long the speed stays below that outside the QRS."""
QRS_REACH_MS = (130, 170)
P_SEARCH_MS = 260
P_SHARE = 0.2
"""Share of the P wave's height at which it begins and ends."""
P_MIN_MV = 0.012
T_MIN_MV = 0.02
WAVE_OVER_NOISE = 5.0
"""A P or T wave is higher than this many times the noise left in the median beat."""


@dataclass(frozen=True)
class Waves:
    """Wave bounds in samples of the median beat (R peak at `BEFORE`); NaN for a wave that is not there."""

    p_on: float = np.nan
    p_peak: float = np.nan
    p_off: float = np.nan
    qrs_on: float = np.nan
    qrs_off: float = np.nan
    t_on: float = np.nan
    t_peak: float = np.nan
    t_off: float = np.nan


def delineate(template: np.ndarray, rr_ms: float, residual_mv: float) -> Waves:
    """Find the waves of a median beat.

    Parameters
    ----------
    template
        [lead, time] in mV without missing leads, R peak at sample `BEFORE`.
    rr_ms
        Typical RR interval; limits how far P and T are looked for. NaN where unknown.
    residual_mv
        Noise of the median beat.
    """
    rr = rr_ms / SAMPLE_MS if np.isfinite(rr_ms) else 1000 / SAMPLE_MS
    qrs_on, qrs_off = _qrs_bounds(template)
    if not np.isfinite(qrs_on + qrs_off):
        return Waves()
    smooth = _wave_band(_without_qrs(template, int(qrs_on), int(qrs_off)))
    t_on, t_peak, t_off = _t_wave(smooth, int(qrs_on), int(qrs_off), rr, residual_mv)
    last_t = (t_off if np.isfinite(t_off) else qrs_off + 0.3 * rr) - rr
    p_on, p_peak, p_off = _p_wave(smooth, int(qrs_on), last_t, residual_mv)
    return Waves(p_on, p_peak, p_off, qrs_on, qrs_off, t_on, t_peak, t_off)


def _qrs_bounds(template: np.ndarray) -> tuple[float, float]:
    speed = np.sqrt(np.square(np.gradient(template, axis=-1)).mean(0))
    speed = scipy.ndimage.uniform_filter1d(speed, 3)
    before, after = (int(ms / SAMPLE_MS) for ms in QRS_REACH_MS)
    near = slice(BEFORE - 30, BEFORE + 31)
    top = BEFORE - 30 + int(speed[near].argmax())
    floor = np.percentile(speed[BEFORE - before - 20 : BEFORE + after + 80], 25)
    run = int(QRS_QUIET_MS / SAMPLE_MS)
    for share in QRS_SPEED_SHARES:
        quiet = speed < floor + share * (speed[top] - floor)
        start = _first_run(quiet[BEFORE - before : top][::-1], run)
        stop = _first_run(quiet[top + 1 : BEFORE + after], run)
        if np.isfinite(start + stop):
            return top - start, top + stop
    return np.nan, np.nan


def _first_run(quiet: np.ndarray, length: int) -> float:
    """Where the first run of at least `length` True values begins; NaN if there is none."""
    runs = np.convolve(quiet, np.ones(length), "valid") == length
    return float(runs.argmax()) if runs.any() else np.nan


def _without_qrs(template: np.ndarray, qrs_on: int, qrs_off: int) -> np.ndarray:
    """Bridge the QRS complex by a straight line, so that smoothing does not smear it over its neighbours."""
    bridged = template.copy()
    ends = template[:, qrs_on], template[:, qrs_off]
    bridged[:, qrs_on : qrs_off + 1] = np.linspace(*ends, qrs_off + 1 - qrs_on, axis=-1)
    return bridged


def _t_wave(smooth: np.ndarray, qrs_on: int, qrs_off: int, rr: float, residual_mv: float) -> tuple[float, float, float]:
    missing = (np.nan, np.nan, np.nan)
    stop = min(smooth.shape[-1] - 1, int(BEFORE + 0.72 * rr), BEFORE + 300)
    baseline = smooth[:, max(qrs_on - 12, 0) : max(qrs_on - 3, 1)].mean(-1, keepdims=True)
    height = np.sqrt(np.square(smooth - baseline).mean(0))
    start = qrs_off + 25
    if stop - start < 40:
        return missing
    peaks, found = scipy.signal.find_peaks(height[start:stop], prominence=max(T_MIN_MV, WAVE_OVER_NOISE * residual_mv))
    if peaks.size == 0:
        return missing
    peak = start + int(peaks[found["prominences"].argmax()])
    end = _tangent(height, peak, min(peak + 90, smooth.shape[-1] - 1))
    onset = _tangent(height[: peak + 1][::-1], 0, min(90, peak - qrs_off))
    return peak - onset, float(peak), end


def _tangent(height: np.ndarray, peak: int, stop: int) -> float:
    """Where the tangent at the steepest descent after `peak` meets the lowest level that follows."""
    fall = np.diff(height[peak : stop + 1])
    if fall.size < 3:
        return np.nan
    steepest = int(fall.argmin())
    level = height[peak + steepest : stop + 1].min()
    if fall[steepest] >= 0:
        return np.nan
    crossing = (
        peak + steepest + 0.5 + (level - 0.5 * height[peak + steepest : peak + steepest + 2].sum()) / fall[steepest]
    )
    return float(min(crossing, stop))


def _p_wave(smooth: np.ndarray, qrs_on: int, last_t: float, residual_mv: float) -> tuple[float, float, float]:
    missing = (np.nan, np.nan, np.nan)
    stop = qrs_on - 2
    start = int(max(stop - P_SEARCH_MS / SAMPLE_MS, last_t, 3))
    if stop - start < 30:
        return missing
    part = smooth[:, start:stop]
    ends = part[:, :4].mean(-1, keepdims=True), part[:, -4:].mean(-1, keepdims=True)
    line = ends[0] + (ends[1] - ends[0]) * np.linspace(0, 1, stop - start)
    height = np.sqrt(np.square(part - line).mean(0))
    need = max(P_MIN_MV, WAVE_OVER_NOISE * residual_mv)
    peaks, found = scipy.signal.find_peaks(height, prominence=need)
    if peaks.size == 0:
        return missing
    peak = int(peaks[found["prominences"].argmax()])
    left = np.flatnonzero(height[:peak] < P_SHARE * height[peak])
    right = peak + np.flatnonzero(height[peak:] < P_SHARE * height[peak])
    on = float(start + left[-1]) if left.size else np.nan
    off = float(start + right[0]) if right.size else np.nan
    return on, float(start + peak), off
