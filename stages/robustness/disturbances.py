"""ECGs disturbed in known ways: noise, wander, mains, lost leads, short records, other rates, exchanged electrodes.

Lives here: what each disturbance does to one ECG. Not here: who answers (`answering`), judging (`judge`). Noise,
wander and mains arise at the nine electrodes, so that Einthoven's and Goldberger's equations hold with them as without.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from cache.signals import LEADS, to_microvolts, to_millivolts
from stages.readers.at_500_hz import resample
from stages.readers.limbs import derive_limb_leads
from stages.robustness.settings import Kind


class DisturbedEcg(NamedTuple):
    """One ECG: float32 [12, time] in mV, missing = NaN, and its rate."""

    signals_mv: np.ndarray
    rate_hz: float


@dataclass(frozen=True)
class Disturbance:
    """One disturbance at one level.

    Attributes
    ----------
    level
        Signal-to-noise ratio in dB (noise, wander, mains); the lost lead; how many leads are left; seconds; Hz; the
        exchanged electrodes.
    """

    kind: Kind
    level: float | str

    @property
    def words(self) -> str:
        """What was done, for people."""
        if self.level == 1:
            return "1 lead"
        return WORDS[self.kind].format(level=f"{self.level:g}" if isinstance(self.level, (int, float)) else self.level)


WORDS: dict[str, str] = {
    "noise": "noise at {level} dB",
    "wander": "baseline wander at {level} dB",
    "mains": "mains at {level} dB",
    "lead": "without {level}",
    "leads": "{level} leads",
    "seconds": "first {level} s",
    "rate": "{level} Hz",
    "exchange": "{level} exchanged",
}
LEVELS: dict[Kind, tuple[float | str, ...]] = {
    "noise": (24.0, 12.0, 6.0, 0.0),
    "wander": (12.0, 6.0, 0.0, -6.0),
    "mains": (12.0, 6.0, 0.0),
    "lead": LEADS,
    "leads": (8.0, 6.0, 2.0, 1.0),
    "seconds": (5.0, 2.5),
    "rate": (1000.0, 250.0, 100.0),
    "exchange": ("RA-LA", "RA-LL", "LA-LL"),
}
LEAD_SETS: dict[float, tuple[str, ...]] = {
    8.0: ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6"),
    6.0: LEADS[:6],
    2.0: ("I", "II"),
    1.0: ("I",),
}
_ELECTRODES = ("RA", "LA", "LL")
_LOWEST_HZ, _HIGHEST_HZ = 0.05, 0.5
"""Of baseline wander: breathing and electrodes that move."""


def all_disturbances(kinds: tuple[Kind, ...]) -> list[Disturbance]:
    """Return every level of the kinds, in order."""
    return [Disturbance(kind, level) for kind in kinds for level in LEVELS[kind]]


def disturbed(
    ecg: DisturbedEcg, disturbance: Disturbance, seed: tuple[int, ...], *, derive_leads: bool, mains_hz: float = 50.0
) -> DisturbedEcg:
    """Disturb one ECG; the same seed gives the same samples. They are whole microvolts, as a recording's are.

    Parameters
    ----------
    derive_leads
        Limb leads that are lost are computed from I and II where these are there, as the study's ingest does it.
    """
    rng = np.random.default_rng(seed)
    signals = ecg.signals_mv.astype(np.float64)
    kind, level = disturbance.kind, disturbance.level
    if kind in _NOISES:
        added = _NOISES[kind](rng, signals.shape[1], ecg.rate_hz, mains_hz)
        return _recorded(signals + _at_ratio(signals, _electrode_matrix() @ added, float(level)), ecg.rate_hz)
    if kind in ("lead", "leads"):
        kept = LEAD_SETS[float(level)] if kind == "leads" else tuple(lead for lead in LEADS if lead != level)
        return _recorded(_only(signals, kept, derive_leads=derive_leads), ecg.rate_hz)
    if kind == "seconds":
        return _recorded(signals[:, : round(float(level) * ecg.rate_hz)], ecg.rate_hz)
    if kind == "rate":
        ratio = Fraction(float(level) / ecg.rate_hz).limit_denominator(10_000)
        return _recorded(resample(signals, ratio), float(level))
    return _recorded(_exchanged(signals, str(level)), ecg.rate_hz)


def _recorded(signals_mv: np.ndarray, rate_hz: float) -> DisturbedEcg:
    return DisturbedEcg(to_millivolts(to_microvolts(signals_mv)), rate_hz)


def _electrode_matrix() -> np.ndarray:
    """Return what each lead is of the electrodes RA, LA, LL, C1 to C6, [12, 9]."""
    found = np.zeros((12, 9))
    found[:6, :3] = _limb_rows()
    found[6:, :3] = -1 / 3
    found[6:, 3:] = np.eye(6)
    return found


def _limb_rows() -> np.ndarray:
    """Return I, II, III, aVR, aVL, aVF of RA, LA, LL, [6, 3]."""
    one, two = np.array([-1.0, 1.0, 0.0]), np.array([-1.0, 0.0, 1.0])
    return np.stack([one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2])


def _at_ratio(signals: np.ndarray, added: np.ndarray, ratio_db: float) -> np.ndarray:
    """Scale what is added so that the power of the leads around their medians is so many dB above it."""
    known = np.isfinite(signals)
    if not known.any():
        return added
    with_leads = known.any(axis=1)
    centre = np.nanmedian(signals[with_leads], axis=1, keepdims=True)
    power = np.nanmean((signals[with_leads] - centre) ** 2)
    noise = np.mean(added[with_leads][known[with_leads]] ** 2)
    return added * np.sqrt(power / max(noise, 1e-12) * 10 ** (-ratio_db / 10))


def _white(rng: np.random.Generator, n_samples: int, rate_hz: float, mains_hz: float) -> np.ndarray:  # noqa: ARG001
    return rng.standard_normal((9, n_samples))


def _wander(rng: np.random.Generator, n_samples: int, rate_hz: float, mains_hz: float) -> np.ndarray:  # noqa: ARG001
    """Eight slow waves at each electrode, of random frequency, phase and size."""
    time = np.arange(n_samples) / rate_hz
    hz = rng.uniform(_LOWEST_HZ, _HIGHEST_HZ, (9, 8, 1))
    waves = np.sin(2 * np.pi * (hz * time + rng.random((9, 8, 1))))
    return (waves * rng.standard_normal((9, 8, 1))).sum(axis=1)


def _mains(rng: np.random.Generator, n_samples: int, rate_hz: float, mains_hz: float) -> np.ndarray:
    """Return the mains with a tenth of its third harmonic where the rate holds it, unequal at the electrodes."""
    angle = 2 * np.pi * (mains_hz * np.arange(n_samples) / rate_hz + rng.random())
    wave = np.sin(angle) + (0.1 * np.sin(3 * angle) if 3 * mains_hz < rate_hz / 2 else 0)
    return rng.uniform(0.3, 1.0, (9, 1)) * wave


_NOISES: dict[str, Callable[[np.random.Generator, int, float, float], np.ndarray]] = {
    "noise": _white,
    "wander": _wander,
    "mains": _mains,
}


def _only(signals: np.ndarray, kept: tuple[str, ...], *, derive_leads: bool) -> np.ndarray:
    gone = tuple(lead for lead in LEADS if lead not in kept or not np.isfinite(signals[LEADS.index(lead)]).any())
    found = signals.copy()
    found[[LEADS.index(lead) for lead in gone]] = np.nan
    if not derive_leads:
        return found
    row = to_microvolts(found)
    derive_limb_leads(row, gone)
    return to_millivolts(row).astype(np.float64)


def _exchanged(signals: np.ndarray, electrodes: str) -> np.ndarray:
    """Exchange two limb electrodes: the limb leads change by the equations, the chest leads do not."""
    order = list(range(3))
    first, second = (_ELECTRODES.index(name) for name in electrodes.split("-"))
    order[first], order[second] = order[second], order[first]
    # I and II fix the potentials of RA, LA, LL but for a constant, which no limb lead sees
    of_two = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])[order]
    found = signals.copy()
    found[:6] = (_limb_rows() @ of_two) @ signals[:2]
    return found
