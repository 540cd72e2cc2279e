"""The waves of one beat: a table of Gaussians, each with a place, a width and a direction of the heart vector.

Not here: when beats come (beats.py), summing and projecting them (heart.py).
Axes of the heart vector as in Frank's leads: x to the left, y downwards, z backwards; millivolts.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from stages.synthetic.physiology import Atria, Conduction, State


class Wave(IntEnum):
    """Rows of the wave table."""

    P_RIGHT = 0
    P_LEFT = 1
    Q = 2
    R = 3
    RS = 4
    S = 5
    LATE = 6
    ST = 7
    T = 8
    U = 9
    SPIKE = 10


class Beat(IntEnum):
    """Kinds of beats, each with a table of its own in every record."""

    NORMAL = 0
    PVC = 1
    PAC = 2


# Columns of the wave table.
CENTRE, RISE, FALL = 0, 1, 2
VECTOR = slice(3, 6)
_QRS = [Wave.Q, Wave.R, Wave.RS, Wave.S]
_QRS_CENTRES = np.array([0.20, 0.42, 0.60, 0.78])
_QRS_WIDTHS = np.array([0.075, 0.095, 0.085, 0.085])
_QRS_VECTORS = np.array([[-0.13, -0.04, -0.24], [0.98, 0.62, 0.28], [0.30, 0.24, 0.62], [-0.10, -0.10, 0.26]])
_T_VECTOR = np.array([0.34, 0.14, -0.18])
_U_VECTOR = np.array([0.020, 0.020, -0.030])
_P_VECTORS = np.array([[0.025, 0.085, -0.050], [0.070, 0.065, 0.045]])
# Low atrial focus: the atria are reached from below, so the vertical force turns over.
_LOW_P_VECTORS = np.array([[0.030, -0.100, -0.030], [0.045, -0.090, 0.035]])


def wave_tables(rng: np.random.Generator, state: State) -> np.ndarray:
    """Return the waves of every record's beats, [record, Beat, Wave, 6]: centre, rise, fall (s), vector (mV).

    Centres count from the onset of QRS; rise and fall are the standard deviations before and after the centre.
    """
    table = np.zeros((len(state.report), len(Beat), len(Wave), 6))
    table[..., RISE : FALL + 1] = 0.02
    normal = table[:, Beat.NORMAL]
    _place_p(normal, state)
    _place_qrs(normal, state)
    _place_repolarisation(normal, state)
    _bend_conduction(rng, normal, state)
    table[:, Beat.PAC] = _premature_atrial(rng, normal)
    _place_pvc(rng, table[:, Beat.PVC], state)
    return table


def _set(table: np.ndarray, wave: Wave, centre: np.ndarray, rise: np.ndarray, fall: np.ndarray) -> None:
    table[:, wave, CENTRE], table[:, wave, RISE], table[:, wave, FALL] = centre, rise, fall


def _place_p(table: np.ndarray, state: State) -> None:
    for wave, centre in ((Wave.P_RIGHT, 0.39), (Wave.P_LEFT, 0.62)):
        _set(table, wave, centre * state.p_s - state.pr_s, 0.155 * state.p_s, 0.152 * state.p_s)
    vectors = np.where((state.atria == Atria.LOW)[:, None, None], _LOW_P_VECTORS, _P_VECTORS)
    has_p = np.isin(state.atria, [Atria.SINUS, Atria.LOW])
    table[:, : Wave.Q, VECTOR] = vectors * (state.p_gain * has_p)[:, None, None]


def _place_qrs(table: np.ndarray, state: State) -> None:
    for wave, centre, width in zip(_QRS, _QRS_CENTRES, _QRS_WIDTHS, strict=True):
        _set(table, wave, centre * state.qrs_s, width * state.qrs_s, width * state.qrs_s)
    vectors = np.broadcast_to(_QRS_VECTORS, (len(state.report), 4, 3)).copy()
    vectors[:, 0] *= state.septal_gain[:, None]
    # An old inferior or anterior wall that dies early gives a deeper Q, away from the injury.
    vectors[:, 0, 1] -= np.where(state.region == 0, 0.15, 0.0)
    vectors[:, 0, 2] += np.where(state.region == 1, 0.25, 0.0)
    table[:, Wave.Q : Wave.LATE, VECTOR] = (
        turn(vectors, state.axis_rad - np.deg2rad(40)) * state.qrs_gain[:, None, None]
    )


def _place_repolarisation(table: np.ndarray, state: State) -> None:
    stretch = state.qt_s / 0.40 * state.t_width
    t_fall = 0.036 * stretch
    _set(table, Wave.T, state.qt_s - 2 * t_fall, 0.060 * stretch, t_fall)
    _set(table, Wave.ST, state.qrs_s + 0.030, 0.034 * stretch, 0.085 * stretch)
    _set(table, Wave.U, state.qt_s + 0.075, 0.035 * stretch, 0.040 * stretch)
    t_vector = np.broadcast_to(_T_VECTOR, (len(state.report), 3)).copy()
    t_vector[:, 2] *= state.t_anterior
    turned = turn(t_vector[:, None], 0.4 * (state.axis_rad - np.deg2rad(40)))[:, 0]
    table[:, Wave.T, VECTOR] = turned * state.t_gain[:, None] + 0.45 * state.st_mv * (state.region >= 0)[:, None]
    table[:, Wave.ST, VECTOR] = state.st_mv
    table[:, Wave.U, VECTOR] = _U_VECTOR * state.u_gain[:, None]


def turn(vectors: np.ndarray, angle_rad: np.ndarray) -> np.ndarray:
    """Turn [record, wave, 3] in the frontal plane, clockwise on the chest as seen from the front (x to y)."""
    cos, sin = np.cos(angle_rad)[:, None], np.sin(angle_rad)[:, None]
    x, y = vectors[..., 0], vectors[..., 1]
    return np.stack([cos * x - sin * y, sin * x + cos * y, vectors[..., 2]], axis=-1)


def _bend_conduction(rng: np.random.Generator, table: np.ndarray, state: State) -> None:
    for kind, bend in _BENDS.items():
        rows = np.flatnonzero(state.conduction == kind)
        if len(rows):
            bent = table[rows]
            bend(rng, bent, state.qrs_s[rows], state.qrs_gain[rows])
            table[rows] = bent


def _bend_right_bundle(rng: np.random.Generator, table: np.ndarray, qrs_s: np.ndarray, gain: np.ndarray) -> None:
    # The first two thirds are as ever; the right ventricle follows late, to the right and forwards.
    table[:, Wave.Q : Wave.LATE, CENTRE : FALL + 1] *= 0.68
    _set(table, Wave.LATE, 0.76 * qrs_s, 0.11 * qrs_s, 0.095 * qrs_s)
    late = np.array([-0.48, -0.05, -0.62]) * (gain * rng.uniform(0.75, 1.2, len(table)))[:, None]
    table[:, Wave.LATE, VECTOR] = late
    table[:, Wave.T, VECTOR] -= 0.28 * late * np.array([0.4, 1, 1])


def _bend_left_bundle(rng: np.random.Generator, table: np.ndarray, qrs_s: np.ndarray, gain: np.ndarray) -> None:
    _broad(table, qrs_s, gain * rng.uniform(0.85, 1.15, len(table)), np.array([[0.62, 0.28, 0.35], [0.80, 0.10, 0.95]]))


def _bend_paced(rng: np.random.Generator, table: np.ndarray, qrs_s: np.ndarray, gain: np.ndarray) -> None:
    # From the apex of the right ventricle upwards, to the left and backwards.
    n = len(table)
    _broad(table, qrs_s, gain * rng.uniform(0.9, 1.2, n), np.array([[0.30, -0.62, 0.25], [0.48, -0.82, 0.75]]))
    _set(table, Wave.SPIKE, np.full(n, -0.006), np.full(n, 0.0011), np.full(n, 0.0013))
    spike = np.array([0.35, -0.75, 0.3]) * rng.uniform(0.4, 1.8, n)[:, None]
    table[:, Wave.SPIKE, VECTOR] = spike


def _bend_hypertrophy(rng: np.random.Generator, table: np.ndarray, qrs_s: np.ndarray, gain: np.ndarray) -> None:  # noqa: ARG001
    strain = np.array([0.34, 0.12, -0.16]) * rng.uniform(0.6, 1.4, len(table))[:, None]
    table[:, Wave.T, VECTOR] -= strain
    table[:, Wave.ST, VECTOR] -= 0.25 * strain


_BENDS = {
    Conduction.RIGHT_BUNDLE: _bend_right_bundle,
    Conduction.LEFT_BUNDLE: _bend_left_bundle,
    Conduction.PACED: _bend_paced,
    Conduction.HYPERTROPHY: _bend_hypertrophy,
}


def _broad(table: np.ndarray, qrs_s: np.ndarray, gain: np.ndarray, vectors: np.ndarray) -> None:
    """Replace QRS by two broad, notched forces and turn repolarisation against them; gains [record]."""
    table[:, Wave.Q : Wave.LATE, VECTOR] = 0
    for wave, centre, width, vector in zip((Wave.R, Wave.RS), (0.34, 0.64), (0.135, 0.145), vectors, strict=True):
        _set(table, wave, centre * qrs_s, width * qrs_s, width * qrs_s)
        table[:, wave, VECTOR] = vector * gain[:, None]
    force = vectors.sum(axis=0) * gain[:, None]
    table[:, Wave.T, VECTOR] = 0.25 * table[:, Wave.T, VECTOR] - 0.27 * force
    table[:, Wave.ST, VECTOR] = 0.5 * table[:, Wave.ST, VECTOR] - 0.07 * force


def _premature_atrial(rng: np.random.Generator, normal: np.ndarray) -> np.ndarray:
    """Return the record's own beat after a P wave from elsewhere in the atria."""
    table = normal.copy()
    n = len(table)
    focus = rng.normal([0.045, 0.03, 0.0], [0.03, 0.06, 0.03], (n, 3))
    table[:, Wave.P_RIGHT : Wave.Q, VECTOR] = focus[:, None]
    return table


def _place_pvc(rng: np.random.Generator, table: np.ndarray, state: State) -> None:
    """One ectopic shape a record, from the right ventricle (left bundle pattern) or the left (right bundle pattern)."""
    n = len(table)
    table[:] = 0
    table[..., RISE : FALL + 1] = 0.02
    width = rng.uniform(0.135, 0.172, n)
    from_right = rng.random(n) < 0.6
    right, left = np.array([0.55, 0.95, 0.60]), np.array([-0.75, 0.35, -1.05])
    force = np.where(from_right[:, None], right, left) + rng.normal(0, 0.18, (n, 3))
    force *= (np.sqrt(state.qrs_gain) * rng.uniform(0.9, 1.3, n))[:, None]
    for wave, centre, share in ((Wave.R, 0.36, 0.8), (Wave.RS, 0.62, 0.55)):
        _set(table, wave, centre * width, 0.14 * width, 0.145 * width)
        table[:, wave, VECTOR] = share * force
    _set(table, Wave.ST, width + 0.03, np.full(n, 0.035), np.full(n, 0.08))
    _set(table, Wave.T, width + 0.20, np.full(n, 0.06), np.full(n, 0.045))
    table[:, Wave.ST, VECTOR] = -0.08 * force
    table[:, Wave.T, VECTOR] = -0.33 * force
