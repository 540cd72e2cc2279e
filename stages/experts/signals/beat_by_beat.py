"""How the beats of a record differ: rhythm, early and odd beats, P wave by P wave, what remains between beats.

Lives here: what the median beat cannot show. Not here: finding beats (`signals.beats`), their common shape
(`signals.beat_shape`).
"""

from __future__ import annotations

import numpy as np
import scipy.signal

from stages.experts.signals.beats import AFTER, BEFORE, RATE_HZ, SAME_CLASS, SAMPLE_MS, Beats
from stages.experts.signals.same_bits import median_first_axis
from stages.experts.signals.waves import Waves

STEP = 4
"""Waves that last longer than a QRS complex are read at every fourth sample: 125 Hz."""
P_WINDOW = (120, 4)
"""Samples (2 ms) before the QRS onset between which the P wave of every beat is read."""
EARLY, LATE = 0.85, 1.15
"""Shares of the median RR interval beyond which a beat is early or late."""
FIBRILLATION_LEADS = {"II": 1, "V1": 6}
BANDS_HZ = ((1, 3), (3, 5), (5, 7), (7, 9), (9, 12), (12, 20))
_FIBRILLATION_HZ, _ALL_HZ = (3, 12), (0.5, 40)
_MIN_SECONDS, _SEGMENT_SECONDS = 4, 4
_V1 = 6

_RHYTHM = (
    *("early_share", "late_share", "rr_low_share", "rr_high_share", "log_rr", "log_rmssd", "log_rr_sd"),
    *("rr_typical_deviation", "rr_alternation", "rr_autocorrelation"),
)
_ODD = ("odd_share", "odd_beats", "similarity_lowest", "similarity_sd", "early_odd_beats", "early_alike_beats")
_P = ("p_likeness", "p_likeness_lowest", "p_likeness_sd", "p_log_power", "p_log_rest", "p_log_rest_v1")
_BETWEEN = (*(f"log_power_{low}_{high}_hz" for low, high in BANDS_HZ), "peak_hz", "peak_share", "atrial_share")
NAMES = (*_RHYTHM, *_ODD, *_P, *(f"between_{lead}_{name}" for lead in FIBRILLATION_LEADS for name in _BETWEEN))


def measure_beats(beats: Beats, waves: Waves) -> dict[str, float]:
    """Measure how the beats of a record differ.

    Parameters
    ----------
    beats
        Of the record.
    waves
        Bounds of its median beat.

    Returns
    -------
    Value by name of `NAMES`; none of a single beat.
    """
    if beats.rr_ms.size == 0:
        return {}
    values = _rhythm(beats.rr_ms) | _odd(beats)
    signal = beats.filtered[:, ::STEP]
    centres = np.rint(beats.peaks / STEP).astype(np.int64)
    if np.isfinite(waves.qrs_on):
        values |= _p_waves(signal, centres, int(waves.qrs_on) - BEFORE)
    if signal.shape[1] * STEP >= _MIN_SECONDS * RATE_HZ:
        values |= _between(signal, centres, beats.template[:, ::STEP])
    return values


def _rhythm(rr_ms: np.ndarray) -> dict[str, float]:
    relative = rr_ms / np.median(rr_ms)
    low, high = np.quantile(relative, (0.1, 0.9))
    values = {
        "early_share": (relative < EARLY).mean(),
        "late_share": (relative > LATE).mean(),
        "rr_low_share": low,
        "rr_high_share": high,
        "log_rr": np.log(rr_ms.mean()),
        "log_rr_sd": np.log(rr_ms.std() + 3),
        "rr_typical_deviation": np.median(np.abs(relative - 1)),
    }
    steps = np.diff(rr_ms)
    if steps.size:
        values["log_rmssd"] = np.log(np.sqrt(np.mean(steps**2)) + 3)
    if steps.size > 1:
        values["rr_alternation"] = (steps[1:] * steps[:-1] < 0).mean()
        values["rr_autocorrelation"] = _correlation(rr_ms[1:], rr_ms[:-1])
    return {name: float(value) for name, value in values.items()}


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Correlate; 0 where one of them varies by less than 1 ms."""
    if min(a.std(), b.std()) < 1:
        return 0.0
    return float(((a - a.mean()) * (b - b.mean())).mean() / (a.std() * b.std()))


def _odd(beats: Beats) -> dict[str, float]:
    """Count beats of another shape than the median beat, and early ones of either kind."""
    odd = beats.similarity < SAME_CLASS
    rr_ms = np.diff(beats.peaks) * SAMPLE_MS
    early = np.concatenate([[False], rr_ms < EARLY * np.median(rr_ms)])
    return {
        "odd_share": float(odd.mean()),
        "odd_beats": float(odd.sum()),
        "similarity_lowest": float(beats.similarity.min()),
        "similarity_sd": float(beats.similarity.std()),
        "early_odd_beats": float((odd & early).sum()),
        "early_alike_beats": float((~odd & early).sum()),
    }


def _p_waves(signal: np.ndarray, centres: np.ndarray, onset: int) -> dict[str, float]:
    """Compare what precedes every QRS complex with its median over beats: in sinus rhythm it is the same P wave."""
    first, last = ((onset - before) // STEP for before in P_WINDOW)
    whole = centres[(centres + first >= 0) & (centres + last <= signal.shape[1])]
    if whole.size < 2:
        return {}
    windows = signal[:, whole[:, None] + np.arange(first, last)].swapaxes(0, 1)
    windows = windows - windows.mean(-1, keepdims=True)
    typical = median_first_axis(windows)
    present = np.isfinite(typical).all(-1)
    single, common = windows[:, present], typical[present]
    energy = np.sqrt((single**2).sum((1, 2)) * (common**2).sum() + 1e-9)
    likeness = (single * common).sum((1, 2)) / energy
    rest = ((windows - typical) ** 2).mean((0, 2))
    return {
        "p_likeness": float(likeness.mean()),
        "p_likeness_lowest": float(likeness.min()),
        "p_likeness_sd": float(likeness.std()),
        "p_log_power": float(np.log((common**2).mean() + 1e-5)),
        "p_log_rest": float(np.log(rest[present].mean() + 1e-5)),
        "p_log_rest_v1": float(np.log(rest[_V1] + 1e-5)),
    }


def _between(signal: np.ndarray, centres: np.ndarray, template: np.ndarray) -> dict[str, float]:
    """Spectrum of leads II and V1 without their median beats: fibrillation, flutter, P waves that go alone."""
    present = {name: lead for name, lead in FIBRILLATION_LEADS.items() if np.isfinite(signal[lead]).all()}
    if not present:
        return {}
    rest = np.stack([_without_beats(signal[lead], centres, template[lead]) for lead in present.values()])
    rate_hz = RATE_HZ / STEP
    at_hz, power = scipy.signal.welch(rest, rate_hz, nperseg=int(_SEGMENT_SECONDS * rate_hz))
    values: dict[str, float] = {}
    for name, of_lead in zip(present, np.maximum(power, 1e-9), strict=True):
        values |= {f"between_{name}_{key}": value for key, value in _spectrum(at_hz, of_lead).items()}
    return values


def _without_beats(signal: np.ndarray, centres: np.ndarray, template: np.ndarray) -> np.ndarray:
    """Subtract the median beat at every beat; [time]."""
    rest = signal.copy()
    before, after = BEFORE // STEP, AFTER // STEP
    for centre in centres.tolist():
        start, stop = max(centre - before, 0), min(centre + after, rest.size)
        rest[start:stop] -= template[start - centre + before : stop - centre + before]
    return rest


def _spectrum(at_hz: np.ndarray, power: np.ndarray) -> dict[str, float]:
    def band(low: float, high: float) -> np.ndarray:
        return np.asarray(power[(at_hz >= low) & (at_hz < high)])

    atrial = band(*_FIBRILLATION_HZ)
    return {
        **{f"log_power_{low}_{high}_hz": float(np.log(band(low, high).mean())) for low, high in BANDS_HZ},
        "peak_hz": float(_FIBRILLATION_HZ[0] + atrial.argmax() * (at_hz[1] - at_hz[0])),
        "peak_share": float(atrial.max() / atrial.sum()),
        "atrial_share": float(atrial.sum() / band(*_ALL_HZ).sum()),
    }
