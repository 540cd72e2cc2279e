"""A small fixed set of ECG-like signals, from which `rocket` takes its thresholds instead of from a cohort.

Lives here: the drawing of numbers that never change with a library's version, and the signals. Not here: the embedded
cohort of the demo, which has labels, noise and file formats (`stages.synthetic`) and may change freely.
"""

from __future__ import annotations

import numpy as np

_STANDARD_FROM_DIPOLE = np.array(
    [
        [0.632, -0.235, 0.059],
        [0.235, 1.066, -0.132],
        [-0.515, 0.157, -0.917],
        [0.044, 0.164, -1.387],
        [0.882, 0.098, -1.277],
        [1.213, 0.127, -0.601],
        [1.125, 0.127, -0.086],
        [0.831, 0.076, 0.230],
    ]
)
"""Leads I, II, V1..V6 from Frank's X, Y, Z (Dower's matrix, 1980)."""

_OFFSET_S = np.array([-0.16, -0.025, 0.0, 0.028, 0.28])
_WIDTH_S = np.array([0.022, 0.009, 0.013, 0.012, 0.05])
_HEIGHT_MV = np.array([0.12, 0.25, 1.3, 0.45, 0.35])
_DIRECTION = np.array([[0.5, 0.8, 0.1], [0.1, -0.3, -0.6], [0.75, 0.6, 0.3], [-0.4, -0.2, 0.8], [0.7, 0.5, -0.35]])
"""P, Q, R, S, T of an ordinary beat: time from R, width, height and direction (left, down, back)."""


def uniform(seed: int, *shape: int) -> np.ndarray:
    """Draw from [0, 1) out of PCG64's raw stream, which numpy promises never to change (a Generator's methods may)."""
    raw = np.random.PCG64(seed).random_raw(int(np.prod(shape)))
    return ((raw >> np.uint64(11)) * 2.0**-53).reshape(shape)


def reference_signals(records: int, n_samples: int, rate_hz: float, seed: int) -> np.ndarray:
    """Draw ECG-like records [record, 12, time] in mV of many rates, axes, wave sizes, T polarities and noise levels."""
    draws = uniform(seed, records, 64)
    heart = np.stack([_dipole(row, n_samples, rate_hz) for row in draws])
    eight = np.einsum("lk,rkt->rlt", _STANDARD_FROM_DIPOLE, heart)
    one, two = eight[:, 0], eight[:, 1]
    limbs = np.stack([one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2], axis=1)
    noise = uniform(seed + 1, 2, records, 12, n_samples).sum(0) - 1
    return np.concatenate([limbs, eight[:, 2:]], axis=1) + 0.08 * draws[:, 63, None, None] * noise


def _dipole(draws: np.ndarray, n_samples: int, rate_hz: float) -> np.ndarray:
    """Draw one heart's dipole [3, time]: Gaussian waves along drawn directions, beat after beat."""
    height = _HEIGHT_MV * np.exp(1.6 * (draws[:5] - 0.5))
    width = _WIDTH_S * np.exp(0.8 * (draws[5:10] - 0.5))
    direction = _DIRECTION + 1.2 * (draws[10:25].reshape(5, 3) - 0.5)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    rr_s = 0.5 + 0.9 * draws[25]
    if draws[26] < 0.25:
        direction[4] *= -1
    if draws[27] < 0.15:
        width[1:4] *= 1 + draws[28]
    offset = _OFFSET_S * np.array([1, 1, 1, 1, np.sqrt(rr_s)])
    jitter = (0.05 if draws[29] < 0.8 else 0.2) * 2 * (draws[30:60] - 0.5)
    beats_s = np.cumsum(np.maximum(0.3, rr_s * (1 + jitter))) - rr_s * (1 + draws[60])
    time = np.arange(n_samples) / rate_hz - beats_s[:, None, None] - offset[:, None]
    waves = np.exp(-0.5 * (time / width[:, None]) ** 2).sum(0) * height[:, None]
    return direction.T @ waves
