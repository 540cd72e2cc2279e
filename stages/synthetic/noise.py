"""What electrodes, cables and the cart add: wander, hum, muscle, motion; and what they lose: flat, missing, gaps.

Not here: the heart. All noise arises at the nine electrodes, so that Einthoven's and Goldberger's identities hold
with noise as without.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stages.synthetic.heart import N_SAMPLES, RATE_HZ

NAN_SENTINEL = -32768
_LIMIT = 32767
_LSB_PER_MV = 200
# Electrodes RA, LA, LL, C1..C6 to the leads I, II, V1..V6 (Wilson's terminal for the chest).
_TO_LEADS = np.zeros((8, 9))
_TO_LEADS[0, :2] = [-1, 1]
_TO_LEADS[1, [0, 2]] = [-1, 1]
_TO_LEADS[2:, :3] = -1 / 3
_TO_LEADS[2:, 3:] = np.eye(6)
_WANDER_HZ = 0.05 * np.arange(1, 13)  # twenty seconds' period: it never repeats inside a record


@dataclass(frozen=True)
class Cart:
    """The recording conditions; every array is [record]."""

    bandwidth: np.ndarray
    filtering: np.ndarray
    cart_id: np.ndarray
    wander_mv: np.ndarray
    hum_mv: np.ndarray
    hum_hz: np.ndarray
    muscle_mv: np.ndarray
    motion_events: np.ndarray


@dataclass(frozen=True)
class Losses:
    """What was lost of a chunk of records; `absent` leads are not even in the header."""

    flat: np.ndarray  # bool [record, lead]
    missing: np.ndarray  # bool [record, lead], every sample the NaN sentinel
    absent: np.ndarray  # bool [record, lead]
    gap: np.ndarray  # [record, 2] first and last-but-one sample of a NaN stretch, 0 0 where there is none
    gap_leads: np.ndarray  # bool [record, lead]


_BANDWIDTHS = ("0.005-150 Hz", "0.0005-150 Hz", "0.05-150 Hz")
_FILTERS = ("60 Hz notch Baseline filter", "<not specified>", "Baseline filter", "50 Hz notch Baseline filter")


def draw_cart(rng: np.random.Generator, poor: np.ndarray) -> Cart:
    """Draw recording conditions; `poor` [record] marks the records whose quality the cart warns of."""
    n = len(poor)
    filtering = rng.choice(len(_FILTERS), size=n, p=[0.80, 0.13, 0.04, 0.03])
    unfiltered, no_notch = filtering == 1, (filtering == 1) | (filtering == 2)
    worse = np.where(poor, rng.uniform(3.5, 9, n), 1.0)
    return Cart(
        bandwidth=np.array(_BANDWIDTHS)[rng.choice(3, size=n, p=[0.79, 0.15, 0.06])],
        filtering=np.array(_FILTERS)[filtering],
        cart_id=6_840_000 + rng.integers(1, 90_000, n),
        wander_mv=worse * np.where(unfiltered, 0.060, 0.022) * np.exp(rng.normal(0, 0.5, n)),
        hum_mv=worse * np.where(no_notch, 0.010, 0.0015) * np.exp(rng.normal(0, 0.7, n)),
        hum_hz=np.where((filtering == 3) | (rng.random(n) < 0.03), 50.0, 60.0),
        muscle_mv=worse * 0.006 * np.exp(rng.normal(0, 0.55, n)),
        motion_events=np.where(poor, rng.integers(2, 8, n), rng.random(n) < 0.08),
    )


def draw_losses(rng: np.random.Generator, poor: np.ndarray) -> Losses:
    """Draw lost leads and gaps: about one record in fifteen has some, one in three of the poor ones."""
    n = len(poor)
    chance = rng.random((4, n)) / np.where(poor, 8, 1)
    one_lead = np.arange(12) == rng.integers(12, size=n)[:, None]
    # A flat trace comes from one chest electrode; a limb electrode would take several leads along.
    one_chest_lead = np.arange(12) == rng.integers(6, 12, size=n)[:, None]
    start = rng.integers(0, N_SAMPLES - RATE_HZ, n)
    length = rng.integers(RATE_HZ // 10, 2 * RATE_HZ, n)
    gap = np.stack([start, np.minimum(start + length, N_SAMPLES)], axis=1) * (chance[3] < 0.02)[:, None]
    every_lead = rng.random(n) < 0.5
    absent = one_lead & (chance[2] < 0.01)[:, None]
    missing = one_lead & (chance[1] < 0.01)[:, None] & ~absent
    return Losses(
        flat=one_chest_lead & (chance[0] < 0.02)[:, None] & ~missing & ~absent,
        missing=missing,
        absent=absent,
        gap=gap,
        gap_leads=every_lead[:, None] | one_lead,
    )


def add_noise(rng: np.random.Generator, eight: np.ndarray, cart: Cart) -> np.ndarray:
    """Return the eight leads [record, 8, time] with the electrodes' noise on them."""
    electrodes = _muscle(rng, cart)
    electrodes += _wander(rng, cart)
    electrodes += _hum(rng, cart)
    _add_motion(rng, electrodes, cart)
    return eight + np.matmul(_TO_LEADS, electrodes)


def _contact(rng: np.random.Generator, n: int, spread: float) -> np.ndarray:
    return np.exp(rng.normal(0, spread, (n, 9, 1)))


def _muscle(rng: np.random.Generator, cart: Cart) -> np.ndarray:
    """Band of surface electromyogram, 20-200 Hz, swelling and ebbing; [record, 9, time]."""
    n = len(cart.muscle_mv)
    white = rng.standard_normal((n, 9, N_SAMPLES + 2), dtype=np.float32)
    band = (white[..., 2:] - white[..., :-2]) * np.float32(0.6) + white[..., 1:-1] * np.float32(0.5)
    time = np.arange(N_SAMPLES) / N_SAMPLES
    ebb = 1 + 0.5 * np.sin(2 * np.pi * (rng.uniform(0.5, 3, n)[:, None] * time + rng.random(n)[:, None]))
    return band * (0.7 * cart.muscle_mv[:, None, None] * _contact(rng, n, 0.35)) * ebb[:, None]


def _wander(rng: np.random.Generator, cart: Cart) -> np.ndarray:
    n, k = len(cart.wander_mv), len(_WANDER_HZ)
    angle = 2 * np.pi * _WANDER_HZ[:, None] * np.arange(N_SAMPLES) / RATE_HZ
    basis = np.concatenate([np.sin(angle), np.cos(angle)])
    falling = np.tile(1 / (1 + (_WANDER_HZ / 0.25) ** 2), 2)
    weights = rng.standard_normal((n, 9, 2 * k)) * falling * _contact(rng, n, 0.4)
    return np.matmul(weights * cart.wander_mv[:, None, None], basis)


def _hum(rng: np.random.Generator, cart: Cart) -> np.ndarray:
    n = len(cart.hum_mv)
    hz = cart.hum_hz + rng.normal(0, 0.02, n)
    angle = 2 * np.pi * hz[:, None] * np.arange(N_SAMPLES) / RATE_HZ
    basis = np.stack([np.sin(angle), np.cos(angle), np.sin(3 * angle)], axis=1)
    weights = rng.standard_normal((n, 9, 3)) * np.array([1, 1, 0.15]) * cart.hum_mv[:, None, None]
    return np.matmul(weights, basis)


def _add_motion(rng: np.random.Generator, electrodes: np.ndarray, cart: Cart) -> None:
    """Sudden shifts of half-cell potential at one electrode that settle within a second or so."""
    time = np.arange(N_SAMPLES) / RATE_HZ
    record = np.repeat(np.arange(len(cart.motion_events)), cart.motion_events)
    size = rng.normal(0, 0.6, len(record))
    start, settle, rise = rng.uniform(0, 10, len(record)), rng.uniform(0.1, 0.9, len(record)), 0.03
    electrode = rng.integers(9, size=len(record))
    for i, row in enumerate(record):
        since = np.maximum(time - start[i], 0)
        electrodes[row, electrode[i]] += size[i] * (np.exp(-since / settle[i]) - np.exp(-since / rise))


def digitise(signals_mv: np.ndarray, losses: Losses) -> np.ndarray:
    """Return int16 [record, 12, time] at 200 per mV, with the losses applied."""
    counts = np.clip(np.rint(signals_mv * _LSB_PER_MV), -_LIMIT, _LIMIT).astype(np.int16)
    counts[losses.flat] = 0
    counts[losses.missing] = NAN_SENTINEL
    for row in np.flatnonzero(losses.gap[:, 1]):
        first, end = losses.gap[row]
        counts[row, losses.gap_leads[row], first:end] = NAN_SENTINEL
    return counts
