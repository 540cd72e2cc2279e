"""The parts of an ECG, and the ECG without one of them.

Lives here: where leads, seconds and beat parts lie, and moving them to the baseline. Not here: who answers (`stage`).
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np

from cache.signals import LEADS
from stages.experts.signals.beats import BEFORE, RATE_HZ, find_beats
from stages.experts.signals.waves import delineate
from stages.readers.at_500_hz import at_500_hz

PARTS = ("P", "QRS", "ST", "T")
Bounds = dict[str, list[tuple[float, float]]]


class Occlusion(NamedTuple):
    """What is taken away.

    Attributes
    ----------
    kind
        lead, second, part or part_by_lead.
    name
        The lead, the second's number, or the beat part.
    leads
        Rows of the signal.
    spans_s
        (first, last) seconds; empty: the whole record.
    """

    kind: str
    name: str
    leads: tuple[int, ...]
    spans_s: tuple[tuple[float, float], ...] = ()


def beat_bounds(signals_mv: np.ndarray, rate_hz: float) -> Bounds:
    """Return where P, QRS, ST and T lie, in seconds, beat after beat; empty where no beat is found."""
    signals = at_500_hz(signals_mv, rate_hz) if rate_hz != RATE_HZ else signals_mv
    beats = find_beats(np.asarray(signals, dtype=np.float64))
    if beats is None:
        return {}
    known = ~np.isnan(beats.template).any(axis=1)
    rr_ms = float(np.median(beats.rr_ms)) if beats.rr_ms.size else np.nan
    waves = delineate(beats.template[known], rr_ms, beats.noise_mv / np.sqrt(max(len(beats.peaks), 1)))
    st_end = waves.t_on if np.isfinite(waves.t_on) else waves.qrs_off + 0.08 * RATE_HZ
    limits = {
        "P": (waves.p_on, waves.p_off),
        "QRS": (waves.qrs_on, waves.qrs_off),
        "ST": (waves.qrs_off, st_end),
        "T": (waves.t_on, waves.t_off),
    }
    found: Bounds = {}
    for name, (first, last) in limits.items():
        if np.isfinite(first + last) and last > first:
            found[name] = [
                ((p + first - BEFORE) / RATE_HZ, (p + last - BEFORE) / RATE_HZ) for p in beats.peaks.tolist()
            ]
    return found


def parts_of(signals_mv: np.ndarray, rate_hz: float, bounds: Bounds) -> list[Occlusion]:
    """Return every part that is taken away: each lead, each second, each beat part in all leads and in each."""
    present = tuple(int(k) for k in np.flatnonzero(~np.isnan(signals_mv).all(axis=1)))
    seconds = int(np.ceil(signals_mv.shape[1] / rate_hz - 1e-9))
    found = [Occlusion("lead", LEADS[k], (k,)) for k in present]
    found += [Occlusion("second", str(s), present, ((float(s), float(s + 1)),)) for s in range(seconds)]
    found += [Occlusion("part", name, present, tuple(spans)) for name, spans in bounds.items()]
    found += [Occlusion("part_by_lead", name, (k,), tuple(spans)) for name, spans in bounds.items() for k in present]
    return found


def without(signals_mv: np.ndarray, rate_hz: float, part: Occlusion) -> np.ndarray:
    """Return the ECG with a part moved to the baseline: the median of each lead. Missing samples stay missing."""
    found = np.array(signals_mv, dtype=np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a lead without samples has no median, and is not touched
        baseline = np.nanmedian(found, axis=1)
    spans = part.spans_s or ((0.0, found.shape[1] / rate_hz),)
    for first, last in spans:
        stretch = slice(max(round(first * rate_hz), 0), max(round(last * rate_hz), 0))
        for k in part.leads:
            recorded = ~np.isnan(found[k, stretch])
            found[k, stretch][recorded] = baseline[k]
    return found
