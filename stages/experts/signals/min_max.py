"""The input path that MERL, its ViT and MELP share: MIMIC's lead order, 10 s at 500 Hz, one scale for all leads.

Lives here: from millivolts to windows in [0, 1]. Not here: what the networks do with them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from stages.experts.signals import dsp

RATE_HZ = 500
WINDOW_SECONDS = 10
LEADS = ("I", "II", "III", "aVR", "aVF", "aVL", "V1", "V2", "V3", "V4", "V5", "V6")
"""MIMIC's order, aVF before aVL: pretraining read its files as they are."""
EPS = 1e-8
SHORTEST_S = 1.0
INT16_STEPS = 1000
"""Steps from 0 to 1 of the records that MERL was pretrained on."""
MISSING_LEADS = "gaps bridged linearly, ends held; a missing lead is 0 mV before the scaling"


def windows_policy(seconds: float) -> str:
    """Say how a record becomes windows, for a spec."""
    return (
        f"evenly placed windows of {seconds:g} s, mean of their vectors; a shorter record, from 1 s, goes on with 0 mV"
    )


def scaled_windows(
    signals_mv: np.ndarray | Tensor,
    rate_hz: float,
    *,
    eps: float = EPS,
    int16: bool = False,
    n_samples: int = WINDOW_SECONDS * RATE_HZ,
) -> Tensor:
    """[batch, 12, time] in mV -> [batch, windows, 12 in MIMIC's order, 5000 at 500 Hz], each window in [0, 1].

    One minimum and one maximum over all leads and samples of a window (the authors' fine-tuning loader). A record
    shorter than a window goes on with 0 mV before that, as MERL's CPSC2018 records of 5 s. A constant window is zeros.

    Parameters
    ----------
    int16
        Cut to the whole 1/1000 below: the records of MERL's pretraining went through 16-bit integers.
    n_samples
        Length of a window, where the network is for another one than 10 s.
    """
    signals = dsp.pick_leads(dsp.fill_gaps(dsp.as_signals(signals_mv)), LEADS)
    x = dsp.resample_rate(signals, rate_hz, RATE_HZ)
    lacking = max(0, n_samples - x.shape[-1])
    windows = dsp.even_windows(np.pad(x, ((0, 0), (0, 0), (0, lacking))), n_samples)
    scaled = joint_scale(windows, eps)
    if int16:
        scaled = np.floor(scaled * INT16_STEPS) / INT16_STEPS
    return torch.from_numpy(np.ascontiguousarray(scaled, dtype=np.float32))


def joint_scale(windows: np.ndarray, eps: float) -> np.ndarray:
    """Scale each window [batch, window, lead, time] to [0, 1], by one minimum and one maximum over leads and time."""
    low, high = windows.min(axis=(2, 3), keepdims=True), windows.max(axis=(2, 3), keepdims=True)
    spread = high - low
    return np.divide(windows - low, spread + eps, out=np.zeros_like(windows), where=spread > 0)
