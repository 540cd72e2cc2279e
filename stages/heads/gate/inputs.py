"""What the gate reads: the experts' cached coordinates, their own predictions, a summary of the signal, or several.

Lives here: building and standardising those inputs. Not here: the gate (`gate`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cache.errors import InputError, UsageError
from stages.heads.targets.tasks import Block

SOURCES = ("embedding", "predictions", "signal")
ALIASES = {"both": ("embedding", "signal"), "all": SOURCES, "none": ()}
N_SEGMENTS, N_BANDS, MIN_WAVEFORM = 32, 24, 256


def parse_sources(gate_input: str | tuple[str, ...]) -> tuple[str, ...]:
    """Read "signal", "embedding", "predictions", a tuple or `+`-joined list of them, "both", "all" or "none"."""
    names = gate_input.split("+") if isinstance(gate_input, str) else list(gate_input)
    sources: list[str] = []
    for name in (n.strip() for n in names):
        sources += ALIASES.get(name, (name,))
    wrong = [s for s in sources if s not in SOURCES]
    if wrong:
        raise UsageError(f"gate_input '{wrong[0]}' is none of {', '.join((*SOURCES, *ALIASES))}")
    return tuple(s for s in SOURCES if s in sources)


def signal_summary(signal: np.ndarray) -> np.ndarray:
    """Summarise each record's gate signal as a vector.

    Parameters
    ----------
    signal
        [n, p], or [n, lead, time]. A row shorter than 256 values is taken as it is; a longer one is a waveform and
        becomes, per lead: mean, standard deviation, skewness, extremes, 32 segment means and 24 log band powers (the
        last do not depend on where the beats fall, which raw samples do).

    Returns
    -------
    float32 [n, q]; NaN samples count as the lead's mean, a lead without any value as 0.
    """
    x = np.asarray(signal, np.float32)
    if x.ndim not in (2, 3):
        raise InputError(f"gate_signal has shape {x.shape}, expected [records, values] or [records, leads, samples]")
    if x.shape[-1] < MIN_WAVEFORM:
        return np.where(np.isnan(x), np.float32(0), x).reshape(len(x), -1)
    x = x.reshape(len(x), -1, x.shape[-1])
    known = ~np.isnan(x)
    mean = np.where(known, x, 0).sum(-1) / np.maximum(known.sum(-1), 1)
    centred = np.where(known, x - mean[..., None], 0)
    sd = np.sqrt((centred**2).mean(-1))
    skew = (centred**3).mean(-1) / np.maximum(sd, 1e-6) ** 3
    power = np.abs(np.fft.rfft(centred, axis=-1)[..., 1:]) ** 2
    edges = np.unique(np.geomspace(1, power.shape[-1], N_BANDS + 1).astype(int)) - 1
    bands = np.log(np.add.reduceat(power, edges[:-1], axis=-1) + 1e-6)
    usable = x.shape[-1] // N_SEGMENTS * N_SEGMENTS
    segments = centred[..., :usable].reshape(*x.shape[:2], N_SEGMENTS, -1).mean(-1)
    parts = [mean[..., None], sd[..., None], skew[..., None], centred.max(-1)[..., None], centred.min(-1)[..., None]]
    return np.concatenate([*parts, segments, bands], axis=-1).reshape(len(x), -1).astype(np.float32)


@dataclass(frozen=True)
class InputScale:
    """Mean and standard deviation of the signal summary over one fold's training rows."""

    mean: np.ndarray
    sd: np.ndarray

    @classmethod
    def fit(cls, x: np.ndarray) -> InputScale:
        """Fit on [rows, q]."""
        sd = x.std(0)
        return cls(x.mean(0).astype(np.float32), np.where(sd > 1e-6, sd, np.inf).astype(np.float32))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Standardise, pulled in to 5 standard deviations."""
        return np.clip((x - self.mean) / self.sd, -5, 5)


def shared_inputs(
    sources: tuple[str, ...], coordinates: np.ndarray, present: np.ndarray, summary: np.ndarray | None
) -> np.ndarray:
    """Build the inputs common to all tasks, [n, G]: presence, coordinates, the standardised signal summary.

    Parameters
    ----------
    coordinates
        [n, E, G_e]; those of an absent expert are read as 0.
    """
    parts = [1.0 - present]
    if "embedding" in sources:
        seen = np.where(present[..., None] > 0, np.clip(coordinates, -6, 6), 0)
        parts.append(seen.reshape(len(present), -1))
    if "signal" in sources and summary is not None:
        parts.append(summary)
    return np.concatenate(parts, axis=1).astype(np.float32)


def task_inputs(
    sources: tuple[str, ...], outputs: np.ndarray, present: np.ndarray, blocks: tuple[Block, ...]
) -> np.ndarray:
    """Build the inputs of each task, [n, T, 2 E]: each expert's leading logit or value, and its distance from the mean.

    Parameters
    ----------
    outputs
        [n, E, C] calibrated logits.
    """
    if "predictions" not in sources:
        return np.zeros((len(outputs), len(blocks), 0), np.float32)
    alive = present[..., None]
    logits = np.where(alive > 0, np.clip(outputs, -6, 6), 0)
    mean = logits.sum(1, keepdims=True) / np.maximum(alive.sum(1, keepdims=True), 1)
    parts = []
    for block in blocks:
        of_task = logits[..., block.columns]
        apart = np.abs(of_task - mean[..., block.columns]).mean(-1) * present
        parts.append(np.concatenate([of_task.max(-1) * present, apart], axis=1))
    return np.stack(parts, axis=1).astype(np.float32)
