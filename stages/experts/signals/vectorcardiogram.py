"""The median beat as a vector in space: size and direction of its waves, its loops, the angle between QRS and T.

Lives here: the three leads of Frank from the twelve, and what is measured on them. Not here: wave bounds
(`signals.waves`), measurements of single leads (`morphology`, `signals.beat_shape`).
"""

from __future__ import annotations

import numpy as np

from stages.experts.signals.beats import SAMPLE_MS
from stages.experts.signals.waves import Waves

INDEPENDENT = (0, 1, 6, 7, 8, 9, 10, 11)
"""Leads I, II, V1 to V6 in the standard order; the other four follow from them."""
KORS = np.array(
    [
        [0.38, -0.07, -0.13, 0.05, -0.01, 0.14, 0.06, 0.54],
        [-0.07, 0.93, 0.06, -0.02, -0.05, 0.06, -0.17, 0.13],
        [0.11, -0.23, -0.43, -0.06, -0.14, -0.20, -0.11, 0.31],
    ]
)
"""X (left), Y (down), Z (back) of the eight independent leads: Kors et al., European Heart Journal 1990."""
QRS_SHARES = (0.15, 0.3, 0.5, 0.7, 0.85)
"""Where in the QRS complex its vector is read."""
PLANES = {"frontal": (0, 1), "horizontal": (0, 2), "sagittal": (1, 2)}
_ST_SAMPLES = 41
_QRS_BODY = 0.6
"""Share of the QRS complex's largest vector that counts as its body."""

VECTORS = (
    *("qrs_peak", "qrs_area", *(f"qrs_at_{round(100 * share)}" for share in QRS_SHARES), "st"),
    *("t_peak", "t_area", "ventricular_gradient", "p_peak", "p_first_half", "p_last_half"),
)
SCALARS = (
    *("qrs_second_axis_share", "qrs_third_axis_share", *(f"qrs_loop_{plane}" for plane in PLANES), "j_vector_mv"),
    *("t_second_axis_share", "t_third_axis_share", "qrs_t_peak_angle_deg", "qrs_t_area_angle_deg", "t_loop"),
    *("total_cosine_r_to_t", "t_rise_over_fall"),
)
NAMES = (*(f"{vector}_{part}" for vector in VECTORS for part in ("size", "x", "y", "z")), *SCALARS)
"""Sizes are in mV, of areas in mV ms; x, y and z are the direction's cosines; loops are areas in mV^2."""


def measure_vectors(beat: np.ndarray, waves: Waves) -> dict[str, float]:
    """Measure the spatial loops of a median beat.

    Parameters
    ----------
    beat
        [12, time] in mV against the level before the QRS complex, standard lead order, 500 Hz.
    waves
        Its bounds; those of the QRS complex are there.

    Returns
    -------
    Value by name of `NAMES`. Without one of the eight independent leads there are none, and none of a wave that is
    missing.
    """
    space = KORS @ beat[list(INDEPENDENT)]
    if not np.isfinite(space).all():
        return {}
    on, off = int(waves.qrs_on), int(waves.qrs_off)
    qrs = space[:, on : off + 1]
    values = _qrs(qrs) | _vector("st", space[:, off : off + _ST_SAMPLES].mean(-1))
    values["j_vector_mv"] = float(np.linalg.norm(space[:, off]))
    if np.isfinite(waves.t_on + waves.t_off) and waves.t_off > waves.t_on:
        t_wave = space[:, int(waves.t_on) : int(waves.t_off) + 1]
        values |= _t(qrs, t_wave) | _vector("ventricular_gradient", _area(space[:, on : int(waves.t_off) + 1]))
        values["t_rise_over_fall"] = (waves.t_peak - waves.t_on) / max(waves.t_off - waves.t_peak, 1)
    if np.isfinite(waves.p_on + waves.p_off) and waves.p_off > waves.p_on:
        values |= _p(space[:, int(waves.p_on) : int(waves.p_off) + 1])
    return values


def _vector(name: str, vector: np.ndarray) -> dict[str, float]:
    size = float(np.linalg.norm(vector))
    x, y, z = (float(part) for part in vector / max(size, 1e-9))
    return {f"{name}_size": size, f"{name}_x": x, f"{name}_y": y, f"{name}_z": z}


def _area(wave: np.ndarray) -> np.ndarray:
    return np.asarray(wave.sum(-1) * SAMPLE_MS)


def _peak(wave: np.ndarray) -> np.ndarray:
    """Largest vector of a wave [3, time]."""
    return np.asarray(wave[:, np.linalg.norm(wave, axis=0).argmax()])


def _axes(name: str, wave: np.ndarray) -> dict[str, float]:
    """How far the loop leaves a line, and a plane: its second and third singular value over the first."""
    sizes = np.linalg.svd(wave, compute_uv=False)
    first = max(float(sizes[0]), 1e-9)
    second, third = (float(sizes[i]) / first if len(sizes) > i else 0.0 for i in (1, 2))
    return {f"{name}_second_axis_share": second, f"{name}_third_axis_share": third}


def _loop(wave: np.ndarray, plane: str) -> float:
    """Area that the loop [3, time] encloses in a plane, in mV^2."""
    a, b = (wave[axis] for axis in PLANES[plane])
    return float(abs(a @ np.roll(b, -1) - np.roll(a, -1) @ b) / 2)


def _cosines(vectors: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Cosines of the angles between vectors [3, n] and another [3]: [n]."""
    sizes = np.linalg.norm(vectors, axis=0) * np.linalg.norm(other)
    return np.clip(other @ vectors / np.maximum(sizes, 1e-12), -1, 1)


def _qrs(qrs: np.ndarray) -> dict[str, float]:
    values = _vector("qrs_peak", _peak(qrs)) | _vector("qrs_area", _area(qrs)) | _axes("qrs", qrs)
    n = qrs.shape[1]
    for share in QRS_SHARES:
        values |= _vector(f"qrs_at_{round(100 * share)}", qrs[:, min(int(share * n), n - 1)])
    return values | {f"qrs_loop_{plane}": _loop(qrs, plane) for plane in PLANES}


def _t(qrs: np.ndarray, t_wave: np.ndarray) -> dict[str, float]:
    """Measure the T wave, and how it lies to the QRS complex (Acar et al. 1999 for the total cosine)."""
    peak, area = _peak(t_wave), _area(t_wave)
    values = _vector("t_peak", peak) | _vector("t_area", area) | _axes("t", t_wave)
    sizes = np.linalg.norm(qrs, axis=0)
    for name, a, b in (("peak", _peak(qrs), peak), ("area", _area(qrs), area)):
        values[f"qrs_t_{name}_angle_deg"] = float(np.degrees(np.arccos(_cosines(a[:, None], b)[0])))
    values["total_cosine_r_to_t"] = float(_cosines(qrs[:, sizes >= _QRS_BODY * sizes.max()], peak).mean())
    values["t_loop"] = max(_loop(t_wave, plane) for plane in PLANES)
    return values


def _p(wave: np.ndarray) -> dict[str, float]:
    """Measure the P wave above the straight line that joins its ends."""
    raised = wave - np.linspace(wave[:, 0], wave[:, -1], wave.shape[1], axis=-1)
    half = max(raised.shape[1] // 2, 1)
    first, last = raised[:, :half].mean(-1), raised[:, half:].mean(-1)
    return _vector("p_peak", _peak(raised)) | _vector("p_first_half", first) | _vector("p_last_half", last)
