"""The limb leads of a row of signals.zarr: computing those a file lacks, and suspecting that electrodes were exchanged.

Six limb leads are made of two differences (Einthoven 1912, Goldberger 1942): III = II - I, aVR = -(I + II) / 2,
aVL = I - II / 2, aVF = II - I / 2. Not here: what makes a recording a row (standardise.py).
"""

from __future__ import annotations

import itertools

import numpy as np

from cache.signals import LEADS, LIMIT_UV, MISSING, N_SAMPLES

LIMBS = LEADS[:6]
DERIVED = {"III": (-1.0, 1.0), "aVR": (-0.5, -0.5), "aVL": (1.0, -0.5), "aVF": (-0.5, 1.0)}
"""Lead -> its shares of I and II."""

SHOWN = (0, 1, 2, 3, 4, 5, 10, 11)
"""The limb leads and V6. V5 is not needed, but BLAS multiplies eight rows in half the time of seven."""
V6 = 7
BLOCK_ROWS = 4
STEP, LAG = 4, 2
"""Slopes are taken at 125 Hz over 16 ms, where the QRS complex is steep and baseline wander is not."""
INVERTED, UPRIGHT = -0.3, 0.0
FLAT = 0.1
INCONSISTENT, FITS_BETTER = 0.05, 10.0


def derive_limb_leads(row: np.ndarray, missing_leads: tuple[str, ...]) -> tuple[str, ...]:
    """Fill limb leads that a row lacks from I and II, in place, and say which; none where I or II is missing too.

    Parameters
    ----------
    row
        int16 microvolts [12, time]; a sample without I or II stays missing.
    missing_leads
        Those the file does not have.
    """
    wanted = tuple(name for name in DERIVED if name in missing_leads)
    if not wanted or "I" in missing_leads or "II" in missing_leads:
        return ()
    gap = (row[:2] == MISSING).any(axis=0)
    for name in wanted:
        wave = np.rint(np.array(DERIVED[name]) @ row[:2].astype(np.float64))
        row[LEADS.index(name)] = np.where(gap, MISSING, np.clip(wave, -LIMIT_UV, LIMIT_UV)).astype(np.int16)
    return wanted


def limb_suspicions(signals_uv: np.ndarray) -> list[str | None]:
    """Say of each row whether limb leads look exchanged; None = no suspicion, or leads that would tell are missing.

    Parameters
    ----------
    signals_uv
        int16 [row, 12, 5000].

    Returns
    -------
    "labels A/B"
        The leads break Einthoven's and Goldberger's equations, and would keep them were the names A and B exchanged.
    "arms"
        I runs against V6 and aVR with it: left and right arm exchanged (or dextrocardia).
    "leg"
        II or III is next to nothing: the electrode of the right leg exchanged with that of an arm.
    """
    return suspicions(SlopeProducts()(signals_uv))


class SlopeProducts:
    """Products of the slopes of the leads `SHOWN` with each other: all that suspicions are told from.

    Has memory for a few rows: that for all, or asked for anew for every few, would cost more than the sums.
    """

    def __init__(self) -> None:
        n_times = -(-N_SAMPLES // STEP)
        self._waves = np.empty((BLOCK_ROWS, len(SHOWN), n_times), dtype=np.float32)
        self._slopes = np.empty((BLOCK_ROWS, len(SHOWN), n_times - LAG), dtype=np.float32)

    def __call__(self, signals_uv: np.ndarray) -> np.ndarray:
        """Return the products of int16 [row, 12, 5000], float32 [row, 8, 8]."""
        products = np.empty((len(signals_uv), len(SHOWN), len(SHOWN)), dtype=np.float32)
        for start in range(0, len(signals_uv), BLOCK_ROWS):
            self._multiply(signals_uv[start : start + BLOCK_ROWS], products[start : start + BLOCK_ROWS])
        return products

    def _multiply(self, signals_uv: np.ndarray, products: np.ndarray) -> None:
        waves, slopes = self._waves[: len(signals_uv)], self._slopes[: len(signals_uv)]
        waves[:, :6], waves[:, 6:] = signals_uv[:, :6, ::STEP], signals_uv[:, 10:, ::STEP]
        np.subtract(waves[:, :, LAG:], waves[:, :, :-LAG], out=slopes)
        if waves.min() == MISSING:
            _leave_out_gaps(slopes, waves == MISSING)
        np.matmul(slopes, slopes.transpose(0, 2, 1), out=products)


def _leave_out_gaps(slopes: np.ndarray, missing: np.ndarray) -> None:
    """Set slopes to 0 where one lead has a gap, in all leads: the equations hold of samples of one moment only."""
    absent = np.all(missing, axis=2)
    gap = np.any(missing & ~absent[:, :, None], axis=1)
    slopes[np.broadcast_to((gap[:, LAG:] | gap[:, :-LAG])[:, None], slopes.shape)] = 0
    slopes[absent] = 0


def _equations() -> np.ndarray:
    """Return the four equations as rows of shares of I, II, III, aVR, aVL, aVF that add up to nothing."""
    rows = np.zeros((len(DERIVED), len(LIMBS)))
    for row, (name, shares) in zip(rows, DERIVED.items(), strict=True):
        row[:2] = [-share for share in shares]
        row[LIMBS.index(name)] = 1
    return rows


_SWAPS = list(itertools.combinations(range(len(LIMBS)), 2))


def _forms() -> np.ndarray:
    """Return what, summed with the products of the six limb leads, says how far the equations are from holding.

    [1 + swaps, 36]: with the names as they are, and with each pair of them exchanged.
    """
    equations = _equations()
    form = equations.T @ equations
    orders = [list(range(len(LIMBS)))]
    for a, b in _SWAPS:
        order = list(range(len(LIMBS)))
        order[a], order[b] = b, a
        orders.append(order)
    return np.stack([form[np.ix_(order, order)].ravel() for order in orders])


_FORMS = _forms()


def suspicions(products: np.ndarray) -> list[str | None]:
    """Say what `limb_suspicions` does, of `SlopeProducts`."""
    products = products.astype(np.float64)
    power = np.einsum("rii->ri", products)
    recorded = power > 0
    broken = products[:, :6, :6].reshape(len(products), -1) @ _FORMS.T
    broken /= np.maximum(power[:, :6].sum(axis=1, keepdims=True), 1)
    best = broken[:, 1:].argmin(axis=1)
    fits = broken[:, 1:].min(axis=1) * FITS_BETTER < broken[:, 0]
    labels = recorded[:, :6].all(axis=1) & (broken[:, 0] > INCONSISTENT) & fits
    against_v6 = products[:, V6] / np.sqrt(np.maximum(power * power[:, V6:], 1))
    arms = recorded[:, [0, 3, V6]].all(axis=1) & (against_v6[:, 0] < INVERTED) & (against_v6[:, 3] > UPRIGHT)
    leg = recorded[:, :3].all(axis=1) & (power[:, 1:3].min(axis=1) < FLAT**2 * power[:, 0])
    found: list[str | None] = [None] * len(products)
    for row in np.flatnonzero(labels | arms | leg):
        a, b = _SWAPS[best[row]]
        found[row] = f"labels {LIMBS[a]}/{LIMBS[b]}" if labels[row] else "arms" if arms[row] else "leg"
    return found
