"""When beats come: sinus rhythm with breathing, fibrillation, flutter, pacing, premature beats.

Not here: what a beat looks like (waves.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stages.synthetic.labels import Report
from stages.synthetic.physiology import Atria, State
from stages.synthetic.waves import Beat

SECONDS = 10.0
_BEFORE_S = 0.80  # a beat this long before the record still reaches into it
_AFTER_S = 0.40  # and one this long after it does so with its P wave
_FLUTTER_RATIOS = np.array([2, 3, 4])


@dataclass(frozen=True)
class SyntheticBeats:
    """Every beat of a chunk of records, sorted by record and time; arrays are [beat] unless noted."""

    record: np.ndarray
    onset_s: np.ndarray  # onset of QRS from the record's first sample
    kind: np.ndarray  # Beat
    p_kept: np.ndarray  # bool: this beat is led by its P wave
    breath_hz: np.ndarray  # [record]
    breath_phase: np.ndarray  # [record]
    flutter_s: np.ndarray  # [record] length of one flutter wave


def draw_beats(rng: np.random.Generator, state: State) -> SyntheticBeats:
    """Draw the beats of a chunk of records, from just before the first sample to just after the last."""
    n = len(state.report)
    steps = int(np.ceil((SECONDS + 3) * 1.9 * state.rate_bpm.max() / 60)) + 4
    mean_s = 60 / state.rate_bpm
    breath_hz, phase = rng.uniform(0.17, 0.32, n), rng.uniform(0, 2 * np.pi, n)
    flutter_s = rng.uniform(0.185, 0.225, n)
    kind, factor = _ectopy(rng, state, steps)
    noise = _irregularity(rng, state, steps)
    onset = np.empty((n, steps))
    onset[:, 0] = -_BEFORE_S - rng.random(n) * mean_s
    for k in range(1, steps):
        swing = state.rsa * np.sin(2 * np.pi * breath_hz * onset[:, k - 1] + phase)
        onset[:, k] = onset[:, k - 1] + mean_s * np.maximum(1 + swing + noise[:, k], 0.4) * factor[:, k]
    onset = _on_flutter_waves(rng, state, onset, flutter_s)
    kept = (onset > -_BEFORE_S) & (onset < SECONDS + _AFTER_S)
    record = np.nonzero(kept)[0]
    p_kept = _room_for_p(state, onset)[kept]
    return SyntheticBeats(record, onset[kept], kind[kept], p_kept, breath_hz, phase, flutter_s)


def _irregularity(rng: np.random.Generator, state: State, steps: int) -> np.ndarray:
    fibrillates = np.isin(state.report, [Report.FIBRILLATION, Report.RAPID_FIBRILLATION])[:, None]
    white = rng.standard_normal((len(state.report), steps))
    skewed = np.exp(state.rr_jitter[:, None] * white) - np.exp(state.rr_jitter[:, None] ** 2 / 2)
    return np.where(fibrillates, skewed, state.rr_jitter[:, None] * white)


def _ectopy(rng: np.random.Generator, state: State, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return [record, step] kinds of beats and the factors on the RR interval that ends at each."""
    n = len(state.report)
    kind, factor = np.full((n, steps), int(Beat.NORMAL)), np.ones((n, steps))
    ectopic = np.select(
        [state.report == Report.PVC, state.report == Report.PAC], [int(Beat.PVC), int(Beat.PAC)], int(Beat.NORMAL)
    )
    visible = np.floor(SECONDS * state.rate_bpm / 60).astype(int)
    count = rng.choice([1, 2, 3], size=n, p=[0.4, 0.35, 0.25])
    spacing = rng.integers(2, 5, n)
    first = 3 + np.floor(rng.random(n) * np.maximum(visible - 4 - (count - 1) * spacing, 1)).astype(int)
    early = np.where(ectopic == Beat.PVC, rng.uniform(0.56, 0.74, n), rng.uniform(0.60, 0.78, n))
    # A PVC leaves the sinus node alone (full pause); a PAC resets it.
    pause = np.where(ectopic == Beat.PVC, 2 - early, rng.uniform(1.02, 1.20, n))
    for k in range(3):
        rows = np.flatnonzero((ectopic != Beat.NORMAL) & (k < count))
        at = first[rows] + k * spacing[rows]
        kind[rows, at] = ectopic[rows]
        factor[rows, at], factor[rows, at + 1] = early[rows], pause[rows]
    return kind, factor


def _on_flutter_waves(rng: np.random.Generator, state: State, onset: np.ndarray, flutter_s: np.ndarray) -> np.ndarray:
    rows = np.flatnonzero(state.atria == Atria.FLUTTER)
    fixed = rng.random(len(rows)) < 0.6
    steady = rng.choice(_FLUTTER_RATIOS, size=len(rows), p=[0.3, 0.2, 0.5])
    varying = rng.choice(_FLUTTER_RATIOS, size=(len(rows), onset.shape[1]), p=[0.4, 0.2, 0.4])
    ratio = np.where(fixed[:, None], steady[:, None], varying)
    onset[rows] = -1.0 + np.cumsum(ratio, axis=1) * flutter_s[rows, None]
    return onset


def _room_for_p(state: State, onset: np.ndarray) -> np.ndarray:
    """Whether P fits behind the T wave before: an early PAC keeps its P, but a P never lies before the last QRS."""
    gap = np.diff(onset, axis=1, prepend=-np.inf)
    return gap > (state.pr_s + state.qrs_s)[:, None] + 0.02


def mean_rr_ms(beats: SyntheticBeats, n_records: int) -> np.ndarray:
    """Return [record] the mean RR interval in ms over the beats whose QRS begins inside the record; NaN below two."""
    inside = (beats.onset_s >= 0) & (beats.onset_s < SECONDS)
    record, onset = beats.record[inside], beats.onset_s[inside]
    count = np.bincount(record, minlength=n_records)
    first, last = np.full(n_records, np.inf), np.full(n_records, -np.inf)
    np.minimum.at(first, record, onset)
    np.maximum.at(last, record, onset)
    spans = np.subtract(last, first, out=np.full(n_records, np.nan), where=count > 1)
    return 1000 * spans / np.maximum(count - 1, 1)
