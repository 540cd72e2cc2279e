"""More variety than one hospital has: hearts, chests and carts spread widely, for a network that is to learn from them.

Rhythms, rates and intervals stay as they were drawn, so that labels still fit. Not here: the embedded cohort's own
distributions (physiology.py, waves.py, noise.py), which `variety` 0 leaves untouched.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from stages.synthetic.noise import Cart
from stages.synthetic.physiology import State
from stages.synthetic.waves import CENTRE, FALL, RISE, VECTOR, Beat, Wave, turn

STREAM = 100
"""Third word of the seeds of these draws; a block's own streams count up from 0."""
# Standard deviations at variety 1. Of added forces, in mV; of the others, of a logarithm unless named.
_ADDED_MV = np.array([0.02, 0.02, 0.10, 0.18, 0.15, 0.15, 0.04, 0.05, 0.10, 0.01, 0.10])
_ADDED_SECONDS = np.array([0.004, 0.004, 0.004, 0.004, 0.005, 0.006, 0.010, 0.010, 0.020, 0.010, 0.0])
_SIZE, _WIDTH, _GAIN, _CHEST_TURN_RAD, _AXIS_RAD = 0.25, 0.15, 0.25, 0.5, 0.45
_INVERTED = 0.12  # share of records whose T wave is turned over
_NOISE = 0.8
_MOVES = 0.2  # share of records with sudden shifts of an electrode


def vary_state(rng: np.random.Generator, state: State, variety: float) -> State:
    """Spread frontal axes and amplitudes of one block's hearts."""
    n = len(state.report)

    def factor(spread: float) -> np.ndarray:
        return np.exp(variety * rng.normal(0, spread, n))

    overall = factor(_GAIN)
    return replace(
        state,
        axis_rad=state.axis_rad + variety * rng.normal(0, _AXIS_RAD, n),
        qrs_gain=state.qrs_gain * overall * factor(_GAIN),
        t_gain=state.t_gain * overall * factor(_GAIN),
        t_anterior=state.t_anterior * factor(0.4),
        p_gain=state.p_gain * overall * factor(_GAIN),
        septal_gain=state.septal_gain * factor(0.5),
    )


def vary_waves(rng: np.random.Generator, tables: np.ndarray, variety: float) -> np.ndarray:
    """Reshape every wave of [record, Beat, Wave, 6]: its force, place and width; some T waves are turned over.

    Heart beats of a record that share their shape (normal, premature atrial) share these changes too.
    """
    n, waves = len(tables), len(Wave)
    drawn = rng.standard_normal((n, 2, waves, 7))
    change = drawn[:, [0, 1, 0]]  # by Beat: NORMAL, PVC, PAC
    varied = tables.copy()
    has_wave = (tables[..., VECTOR] != 0).any(-1, keepdims=True)
    varied[..., VECTOR] *= np.exp(variety * _SIZE * change[..., :1])
    varied[..., VECTOR] += has_wave * variety * _ADDED_MV[:, None] * change[..., 1:4]
    varied[..., CENTRE] += variety * _ADDED_SECONDS * change[..., 4]
    varied[..., RISE] *= np.exp(variety * _WIDTH * change[..., 5])
    varied[..., FALL] *= np.exp(variety * _WIDTH * change[..., 6])
    varied[rng.random(n) < _INVERTED * min(variety, 1), Beat.NORMAL :, Wave.T, VECTOR] *= -1
    about = rng.normal(0, variety * _CHEST_TURN_RAD, n)
    for beat in Beat:
        varied[:, beat, :, VECTOR] = _turn_chest(varied[:, beat, :, VECTOR], about)
    return varied


def _turn_chest(vectors: np.ndarray, angle_rad: np.ndarray) -> np.ndarray:
    """Turn [record, wave, 3] about the long axis of the body: clockwise and counter-clockwise rotation of the heart."""
    return turn(vectors[..., [0, 2, 1]], angle_rad)[..., [0, 2, 1]]


def vary_cart(rng: np.random.Generator, cart: Cart, variety: float) -> Cart:
    """Spread wander, hum and muscle noise, and let more patients move."""
    n = len(cart.wander_mv)
    wander, hum, muscle = np.exp(variety * rng.normal(0, _NOISE, (3, n)))
    moves = rng.random(n) < _MOVES * min(variety, 1)
    return replace(
        cart,
        wander_mv=cart.wander_mv * wander,
        hum_mv=cart.hum_mv * hum,
        muscle_mv=cart.muscle_mv * muscle,
        motion_events=np.where(moves, np.maximum(cart.motion_events, rng.integers(1, 4, n)), cart.motion_events),
    )
