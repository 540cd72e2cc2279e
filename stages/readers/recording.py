"""What a reader gives: a recording in mV, or the converter's own counts where these are at hand (much faster)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cache.errors import InputError
from cache.signals import MISSING

SECONDS_KEPT = 10.0
"""Of a record, from its beginning, where the study does not say otherwise (`cohort.seconds`)."""
READ_MARGIN_S = 1.0
"""Read beyond what is kept: most files are a little longer, and their checksums are of all of it."""
RATES_HZ = (50.0, 20000.0)

Converter = tuple[int, int]
"""Of one lead: bits, and the count in the middle of the converter's range."""


@dataclass(frozen=True)
class Recording:
    """One ECG in mV.

    Attributes
    ----------
    signals_mv
        float64 [lead, time]; missing = NaN. May hold only the beginning of the file.
    leads
        Names as the file has them.
    n_samples
        Per lead in the file.
    clipped
        bool [lead, time]: at the converter's limit; None where that cannot be known.
    notes
        What was left out or assumed.
    derive_leads
        The file lacks III, aVR, aVL and aVF by its format's design: they are computed without being asked for.
    """

    signals_mv: np.ndarray
    leads: tuple[str, ...]
    rate_hz: float
    n_samples: int
    clipped: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    derive_leads: bool = False


class Counts(NamedTuple):
    """One ECG as int16 counts of its converter.

    Attributes
    ----------
    samples
        int16 [time, lead]; -32768 = missing, +-32767 = the converter's limit.
    gains_per_mv, baselines
        Per lead: mV = (count - baseline) / gain.
    converters
        Per lead; None where no sample is at the limit of a converter of less than 16 bits.
    notes
        What was left out or assumed.
    """

    samples: np.ndarray
    leads: tuple[str, ...]
    gains_per_mv: tuple[float, ...]
    baselines: tuple[int, ...]
    rate_hz: float
    n_samples: int
    converters: tuple[Converter, ...] | None = None
    notes: tuple[str, ...] = ()

    def to_recording(self) -> Recording:
        """Return the same in mV."""
        counts = self.samples.T
        signals_mv = counts.astype(np.float64) - np.array(self.baselines, dtype=np.float64)[:, None]
        signals_mv /= np.array(self.gains_per_mv)[:, None]
        signals_mv[counts == MISSING] = np.nan
        clipped = np.abs(counts) == 32767
        if self.converters is not None:
            clipped |= at_limit(counts, counts != MISSING, self.converters)
        return Recording(signals_mv, self.leads, self.rate_hz, self.n_samples, clipped, self.notes)


def at_limit(counts: np.ndarray, known: np.ndarray, converters: Sequence[Converter]) -> np.ndarray:
    """Say which of the known counts, integers [lead, time], are at the limit of their lead's converter.

    A lead with a count beyond the limit has another converter than its header says: then none of its counts is. Of
    0 or of more than 16 bits nothing is known here either.
    """
    clipped = np.zeros(counts.shape, dtype=bool)
    for row, lead, sampled, (bits, zero) in zip(clipped, counts, known, converters, strict=True):
        if 1 < bits <= 16 and sampled.any():
            low, high = zero - (1 << (bits - 1)), zero + (1 << (bits - 1)) - 1
            if low <= lead[sampled].min() and lead[sampled].max() <= high:
                row[:] = sampled & ((lead <= low + 1) | (lead >= high))
    return clipped


def samples_kept(n_samples: int, rate_hz: float, seconds: float | None) -> int:
    """Return how many of a record's samples are kept: all where `seconds` is None.

    >>> samples_kept(6000, 500.0, 10.0), samples_kept(1200, 500.0, 10.0), samples_kept(6000, 500.0, None)
    (5000, 1200, 6000)
    """
    return n_samples if seconds is None else min(n_samples, math.floor(seconds * rate_hz + 0.5))


def check_rate(rate_hz: float) -> None:
    """Refuse a sampling rate that no ECG has.

    Raises
    ------
    InputError
        It is outside of `RATES_HZ`.
    """
    if not RATES_HZ[0] <= rate_hz <= RATES_HZ[1]:
        raise InputError(f"its sampling rate is {rate_hz:g} Hz; ECGs have {RATES_HZ[0]:g} to {RATES_HZ[1]:g}")
