"""The heart vector over ten seconds and its projection on the leads.

Not here: the waves (waves.py), the beats (beats.py), what electrodes add (noise.py).
"""

from __future__ import annotations

import numpy as np

from stages.synthetic.beats import SECONDS, SyntheticBeats
from stages.synthetic.patients import Traits
from stages.synthetic.physiology import Atria, State
from stages.synthetic.waves import CENTRE, FALL, RISE, VECTOR, Beat, Wave

RATE_HZ = 500
N_SAMPLES = int(SECONDS * RATE_HZ)
LEADS = ("I", "II", "III", "aVR", "aVF", "aVL", "V1", "V2", "V3", "V4", "V5", "V6")
# Dower, Machado, Osborne: On deriving the electrocardiogram from vectorcardiographic leads. Clin Cardiol 1980;3:87.
# Rows I, II, V1..V6; columns x, y, z of Frank's leads.
DOWER = np.array(
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
_REACH = (int(0.42 * RATE_HZ), int(0.80 * RATE_HZ))  # samples before and after the onset of QRS that a beat touches
# Limb leads of MIMIC's order (I, II, III, aVR, aVF, aVL) from I and II: Einthoven and Goldberger.
_LIMB = np.array([[1, 0], [0, 1], [-1, 1], [-0.5, -0.5], [-0.5, 1], [1, -0.5]])


def lead_fields(traits: Traits) -> np.ndarray:
    """Return [record, 8, 3]: Dower's rows, with each chest electrode shifted along its row and its gain varied."""
    n = len(traits.axis_deg)
    chest = DOWER[2:]
    position = np.clip(np.arange(6) + traits.chest, 0, 5)
    low = np.minimum(position.astype(int), 4)
    part = (position - low)[..., None]
    fields = np.empty((n, 8, 3))
    fields[:, :2] = DOWER[:2]
    fields[:, 2:] = ((1 - part) * chest[low] + part * chest[low + 1]) * traits.body_gain[..., None]
    return fields


def heart_vector(rng: np.random.Generator, state: State, beats: SyntheticBeats, tables: np.ndarray) -> np.ndarray:
    """Return the heart vector [record, 3, time] in mV: every beat's waves, fibrillation or flutter waves, breathing."""
    n = len(state.report)
    padded = np.zeros((n, 3, N_SAMPLES + 2 * sum(_REACH)))
    waves, first = _render(rng, beats, tables)
    rank = np.arange(len(first)) - np.searchsorted(beats.record, beats.record)
    axes, window = np.arange(3)[None, :, None], np.arange(sum(_REACH))
    for k in range(int(rank.max()) + 1):
        rows = np.flatnonzero(rank == k)
        at = (first[rows, None] + window)[:, None]
        padded[beats.record[rows, None, None], axes, at] += waves[rows]
    vector = padded[..., sum(_REACH) : sum(_REACH) + N_SAMPLES]
    vector = _breathe(rng, vector, beats)
    _add_fibrillation(rng, vector, state)
    _add_flutter(rng, vector, state, beats)
    return vector


def _render(rng: np.random.Generator, beats: SyntheticBeats, tables: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each beat's vector [beat, 3, window] and the index of its first sample in the padded record."""
    table = tables[beats.record, beats.kind].copy()
    table[:, Wave.P_RIGHT : Wave.Q, VECTOR] *= beats.p_kept[:, None, None]
    table[:, Wave.Q :, VECTOR] *= np.exp(rng.normal(0, 0.02, len(table)))[:, None, None]
    table[:, Wave.T, VECTOR] *= np.exp(rng.normal(0, 0.03, len(table)))[:, None]
    sample = np.floor(beats.onset_s * RATE_HZ).astype(int)
    late_s = beats.onset_s - sample / RATE_HZ
    time = (np.arange(sum(_REACH)) - _REACH[0]) / RATE_HZ
    x = (time - late_s[:, None])[:, None, :] - table[..., CENTRE, None]
    x /= np.where(x < 0, table[..., RISE, None], table[..., FALL, None])
    waves = np.matmul(table[..., VECTOR].transpose(0, 2, 1), np.exp(-0.5 * x * x))
    return waves, sample - _REACH[0] + sum(_REACH)


def _breathe(rng: np.random.Generator, vector: np.ndarray, beats: SyntheticBeats) -> np.ndarray:
    """Swell and turn the vector with the breath: the diaphragm moves the heart under the electrodes."""
    n = len(vector)
    time = np.arange(N_SAMPLES) / RATE_HZ
    breath = np.sin(2 * np.pi * beats.breath_hz[:, None] * time + beats.breath_phase[:, None])
    swell = 1 + rng.uniform(0.005, 0.05, n)[:, None] * breath
    angle = rng.uniform(0, 0.05, n)[:, None] * breath
    x, y, z = vector[:, 0] * swell, vector[:, 1] * swell, vector[:, 2] * swell
    return np.stack([x - angle * y, y + angle * x, z], axis=1)


def _add_fibrillation(rng: np.random.Generator, vector: np.ndarray, state: State) -> None:
    rows = np.flatnonzero(state.atria == Atria.FIBRILLATION)
    time = np.arange(N_SAMPLES) / RATE_HZ
    size = rng.lognormal(np.log(0.045), 0.45, len(rows))
    total = np.zeros((len(rows), N_SAMPLES))
    centre = rng.uniform(5.0, 7.5, len(rows))
    for _ in range(4):
        hz, phase, wander = (
            rng.normal(centre, 0.6),
            rng.uniform(0, 2 * np.pi, len(rows)),
            rng.uniform(0.1, 0.5, len(rows)),
        )
        total += np.sin(
            2 * np.pi * hz[:, None] * time + 1.8 * np.sin(2 * np.pi * wander[:, None] * time + phase[:, None])
        )
    direction = np.array([-0.25, 0.75, -0.95]) + rng.normal(0, 0.2, (len(rows), 3))
    vector[rows] += 0.5 * direction[..., None] * (size[:, None] * total)[:, None]


def _add_flutter(rng: np.random.Generator, vector: np.ndarray, state: State, beats: SyntheticBeats) -> None:
    """Saw teeth, slowly down and quickly up in the inferior leads."""
    rows = np.flatnonzero(state.atria == Atria.FLUTTER)
    cycles = np.arange(N_SAMPLES) / RATE_HZ / beats.flutter_s[rows, None] + rng.random(len(rows))[:, None]
    saw = sum(np.sin(2 * np.pi * k * cycles) / k * np.exp(-0.25 * k) for k in range(1, 6))
    size = rng.uniform(0.09, 0.20, len(rows))
    direction = np.array([-0.05, 0.95, -0.35])
    vector[rows] += direction[None, :, None] * (size[:, None] * saw)[:, None]


def project(vector: np.ndarray, fields: np.ndarray) -> np.ndarray:
    """Return the eight independent leads I, II, V1..V6, [record, 8, time] in mV."""
    return np.matmul(fields, vector)


def twelve_leads(eight: np.ndarray) -> np.ndarray:
    """Return the twelve leads in MIMIC's order from I, II, V1..V6, [record, 12, time]; the identities hold exactly."""
    return np.concatenate([np.matmul(_LIMB, eight[:, :2]), eight[:, 2:]], axis=1)


def axes_deg(tables: np.ndarray) -> np.ndarray:
    """Return the ruling beat's frontal axes of P, QRS and T, [record, 3] in degrees, from net areas in I and aVF."""
    ruling = tables[:, Beat.NORMAL]
    area = ruling[..., VECTOR] * (ruling[..., RISE] + ruling[..., FALL])[..., None]
    groups = [slice(Wave.P_RIGHT, Wave.Q), slice(Wave.Q, Wave.ST), slice(Wave.T, Wave.U)]
    net = np.stack([area[:, group].sum(axis=1) for group in groups], axis=1) @ DOWER[:2].T
    lead_i, lead_avf = net[..., 0], net[..., 1] - net[..., 0] / 2
    return np.rad2deg(np.arctan2(2 / np.sqrt(3) * lead_avf, lead_i))
