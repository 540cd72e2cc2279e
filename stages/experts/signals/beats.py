"""Heart beats of one 12-lead record: cleaning, R peaks, RR intervals and the median beat.

Lives here: what needs the whole record. Not here: wave bounds on the median beat (`signals.waves`), measurements and
their names (`morphology`).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import scipy.ndimage
import scipy.signal

from stages.experts.signals.dsp import fill_gaps
from stages.experts.signals.same_bits import Sosfiltfilt, median_first_axis, median_of_all, quantile_and_median

RATE_HZ = 500
SAMPLE_MS = 1000 / RATE_HZ
BEFORE, AFTER = 200, 320
"""Samples of the median beat before and after the R peak: 400 and 640 ms."""
FLAT_MV = 0.01
"""A lead that stays within this range is flat."""
MIN_QRS_MV = 0.01
"""A lead whose 5-25 Hz content stays below this has no say in where the beats are."""
_QRS_SHARE = 0.98
"""Quantile of a lead's 5-25 Hz content that tells the height of its QRS complexes."""
MIN_FINITE_SHARE = 0.5
"""A lead with a smaller share of finite samples is missing."""
SAME_CLASS = 0.8
"""Beats that correlate at least this well with the median beat belong to it."""

SOME_LIKENESS = 0.6
"""A beat that correlates less is not aligned by its shape (ectopic beats)."""

WHOLE_BEAT_MS = (250, 400)
"""What a beat needs before and after its R peak to count as whole."""

_qrs_band = Sosfiltfilt(scipy.signal.butter(2, [5, 25], "bandpass", fs=RATE_HZ, output="sos"))
_diagnostic_band = Sosfiltfilt(scipy.signal.butter(2, [0.5, 40], "bandpass", fs=RATE_HZ, output="sos"))
_SPIKE_SAMPLES, _SPIKE_MV = 7, 0.2
# Pairs to put in order, one after the other, until the fourth of seven is the median (Devillard, "Fast median search").
_EXCHANGES = ((0, 5), (0, 3), (1, 6), (2, 4), (0, 1), (3, 5), (2, 6), (2, 3), (3, 6), (4, 5), (1, 4), (1, 3), (3, 4))
_QRS_HALF, _MAX_LAG = 40, 20
"""Samples: half a QRS window (80 ms), and how far alignment may move a beat (40 ms)."""


@dataclass(frozen=True)
class Beats:
    """Beats of one record.

    Attributes
    ----------
    peaks
        R peaks in samples of 500 Hz, with fractions, [beat].
    rr_ms
        Intervals between neighbouring peaks; one that spans a gap in all leads is left out.
    similarity
        Correlation of every beat's QRS with the median beat's, [beat].
    template
        Median beat [12, 520] in mV, R peak at sample `BEFORE`; a missing or flat lead is NaN.
    noise_mv
        How far single beats lie from the median beat (median over beats, leads and time).
    filtered
        The record between 0.5 and 40 Hz without spikes, [12, time] in mV; a missing or flat lead is NaN.
    """

    peaks: np.ndarray
    rr_ms: np.ndarray
    similarity: np.ndarray
    template: np.ndarray
    noise_mv: float
    filtered: np.ndarray


def find_beats(signals: np.ndarray) -> Beats | None:
    """Find the beats of one record.

    Parameters
    ----------
    signals
        [12, time] in mV at 500 Hz; a missing lead or sample is NaN.

    Returns
    -------
    None where no QRS complex can be found (flat, missing or too short a record).
    """
    if signals.shape[-1] < RATE_HZ:
        return None
    finite = np.isfinite(signals)
    present = finite.mean(-1) >= MIN_FINITE_SHARE
    if not present.any():
        return None
    clean = remove_spikes(fill_gaps(signals[None])[0])
    narrow = _qrs_band(clean)
    present &= np.ptp(clean, axis=-1) > FLAT_MV
    energy = np.abs(narrow)
    height, floor = quantile_and_median(energy, _QRS_SHARE)
    beating = present & (height > MIN_QRS_MV)
    if not beating.any():
        return None
    peaks = _whole(detect_qrs(energy[beating], height[beating], floor[beating]), signals.shape[-1])
    if peaks.size == 0:
        return None
    aligned, similarity = _align(narrow[beating], peaks)
    broad = _diagnostic_band(clean)
    broad[~present] = np.nan
    centres, template, noise_mv = _median_beat(broad, aligned, similarity)
    return Beats(centres, _rr_ms(centres, finite[present].any(0)), similarity, template, noise_mv, broad)


def remove_spikes(signals: np.ndarray) -> np.ndarray:
    """Replace deflections shorter than 8 ms and higher than 0.2 mV (pacemaker spikes) by the running median.

    The median over seven samples, the ends held, is taken where those seven spread by more than 0.2 mV: nowhere else
    can it lie so far from the sample in their middle.
    """
    half = _SPIKE_SAMPLES // 2
    padded = np.pad(signals, ((0, 0), (half, half)), mode="edge")
    steep = _reach(padded, np.maximum) - _reach(padded, np.minimum) > _SPIKE_MV
    lead, time = np.nonzero(steep)
    median = _median_of_seven([padded[lead, time + i] for i in range(_SPIKE_SAMPLES)])
    samples = signals[lead, time]
    cleaned = signals.copy()
    cleaned[lead, time] = np.where(np.abs(samples - median) > _SPIKE_MV, median, samples)
    return cleaned


def _reach(padded: np.ndarray, extreme: np.ufunc) -> np.ndarray:
    """Largest or smallest of every seven neighbouring samples, [..., time] -> [..., time - 6]: of 2, of 4, of 7."""
    of_two = extreme(padded[..., 1:], padded[..., :-1])
    of_four = extreme(of_two[..., 2:], of_two[..., :-2])
    return np.asarray(extreme(of_four[..., 3:], of_four[..., :-3]))


def _median_of_seven(at: list[np.ndarray]) -> np.ndarray:
    """Take the median of seven arrays, place by place, by a network of exchanges."""
    for low, high in _EXCHANGES:
        at[low], at[high] = np.minimum(at[low], at[high]), np.maximum(at[low], at[high])
    return at[_SPIKE_SAMPLES // 2]


def detect_qrs(energy: np.ndarray, height: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """Find QRS complexes in the size of 5-25 Hz signals [lead, time]; gives samples, to some 20 ms.

    The leads are joined to one energy trace, each scaled to its own QRS height and weighted by how far that stands out
    of the rest of the lead, so that neither low voltage nor one noisy lead decides. NeuroKit's gradient method
    (Makowski et al., Behavior Research Methods 2021) then finds the complexes in it.

    Parameters
    ----------
    height, floor
        [lead]: the `_QRS_SHARE` quantile and the median of `energy` over time.
    """
    weight = np.maximum(height / np.maximum(floor, 1e-6) - 1, 1e-3)
    scaled = np.minimum(energy / height[:, None], 3)
    trace = scipy.ndimage.uniform_filter1d(weight @ scaled / weight.sum(), 25)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import neurokit2

        found = neurokit2.ecg_findpeaks(trace, sampling_rate=RATE_HZ, method="neurokit", mindelay=0.22)
    return np.asarray(found["ECG_R_Peaks"], dtype=np.int64)


def _whole(peaks: np.ndarray, n_samples: int) -> np.ndarray:
    """Leave out beats whose P or T wave the record's ends cut off, as human readers do, if three others remain."""
    kept = peaks[(peaks >= WHOLE_BEAT_MS[0] / SAMPLE_MS) & (peaks < n_samples - WHOLE_BEAT_MS[1] / SAMPLE_MS)]
    return kept if kept.size >= 3 else peaks


def _windows(signals: np.ndarray, centres: np.ndarray, before: int, after: int) -> np.ndarray:
    """Cut [beat, lead, before + after]; the record's ends are held where a window reaches beyond them."""
    at = np.clip(centres[:, None] + np.arange(-before, after), 0, signals.shape[-1] - 1)
    return signals[:, at].swapaxes(0, 1)


def _unit(windows: np.ndarray) -> np.ndarray:
    """Scale every window [..., lead, time] to zero mean per lead and unit energy overall."""
    centred = windows - windows.mean(-1, keepdims=True)
    energy = np.sqrt((centred**2).sum((-2, -1), keepdims=True))
    return centred / np.maximum(energy, 1e-12)


def _align(narrow: np.ndarray, peaks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Move every beat to where it fits the typical one best; returns positions (with fractions) and the fit."""
    half, reach = _QRS_HALF, _QRS_HALF + _MAX_LAG
    first = _unit(_windows(narrow, peaks, half, half))
    pattern = first[np.einsum("alt,blt->ab", first, first).mean(0).argmax()]
    searched = np.lib.stride_tricks.sliding_window_view(_windows(narrow, peaks, reach, reach), 2 * half, axis=-1)
    energy = _energies(searched)
    for _ in range(2):
        fit = _fits(searched, pattern, energy)
        best = fit.argmax(1)
        score = fit[np.arange(len(peaks)), best]
        alike = score >= SAME_CLASS
        chosen = searched[np.arange(len(peaks)), :, best][alike if alike.any() else score == score.max()]
        pattern = _unit(median_first_axis(chosen))
    fit = _fits(searched, pattern, energy)
    best = fit.argmax(1)
    moved, score = _vertex(fit, best) - _MAX_LAG, fit.max(1)
    typical = np.median(moved[score >= min(SAME_CLASS, score.max())])
    return peaks + np.where(score >= SOME_LIKENESS, moved, typical), score


def _energies(searched: np.ndarray) -> np.ndarray:
    """Root of the energy of every lag of every beat, [beat, lead, lag, time] -> [beat, lag], means left out."""
    mean = searched.mean(-1, keepdims=True)
    energy = np.einsum("blst,blst->bs", searched, searched) - searched.shape[-1] * (mean[..., 0] ** 2).sum(1)
    return np.asarray(np.sqrt(np.maximum(energy, 1e-12)))


def _fits(searched: np.ndarray, pattern: np.ndarray, energy: np.ndarray) -> np.ndarray:
    """Correlate every lag of every beat, [beat, lead, lag, time], with a unit pattern [lead, time]."""
    return np.asarray(np.einsum("blst,lt->bs", searched, pattern) / energy)


def _vertex(fit: np.ndarray, best: np.ndarray) -> np.ndarray:
    """Refine the lag of the best fit by a parabola through it and its neighbours."""
    row, inner = np.arange(len(fit)), np.clip(best, 1, fit.shape[1] - 2)
    left, middle, right = fit[row, inner - 1], fit[row, inner], fit[row, inner + 1]
    bend = np.minimum(left - 2 * middle + right, -1e-12)
    return best + np.where(best == inner, np.clip(0.5 * (left - right) / bend, -0.5, 0.5), 0.0)


def _median_beat(
    broad: np.ndarray, aligned: np.ndarray, similarity: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Median of the beats that are alike; the peaks move together onto its highest point over all leads."""
    alike = similarity >= min(SAME_CLASS, similarity.max())
    whole = (aligned >= BEFORE + _QRS_HALF) & (aligned < broad.shape[-1] - AFTER - _QRS_HALF)
    chosen = aligned[alike & whole] if (alike & whole).any() else aligned[alike]
    present = np.isfinite(broad).all(-1)
    centres = np.rint(chosen).astype(np.int64)
    seen = broad[present]
    qrs = median_first_axis(_windows(seen, centres, _QRS_HALF, _QRS_HALF))
    shift = int(np.square(qrs - np.median(qrs, axis=-1, keepdims=True)).sum(0).argmax()) - _QRS_HALF
    beats = _windows(seen, centres + shift, BEFORE, AFTER)
    template = np.full((broad.shape[0], BEFORE + AFTER), np.nan)
    template[present] = typical = median_first_axis(beats)
    return aligned + shift, template, median_of_all(np.abs(beats - typical))


def _rr_ms(peaks: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Intervals in ms between peaks, without those that contain a sample missing in every lead."""
    unseen = np.concatenate([[0], np.cumsum(~seen)])
    at = np.clip(np.rint(peaks).astype(np.int64), 0, len(seen) - 1)
    return np.diff(peaks)[unseen[at[1:]] == unseen[at[:-1]]] * SAMPLE_MS
