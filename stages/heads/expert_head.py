"""One expert's fitted heads: arrays of every fold and their prediction.

Not here: how they are fitted (`in_memory`, `blockwise`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from stages.heads.in_memory.lora import LoraOptions
from stages.heads.inputs.scaler import RobustScaler
from stages.heads.targets.tasks import Block

GATE_WIDTH = 64
"""Leading principal coordinates that an expert shows the gate."""


BLOCK_RECORDS = 4096
"""Rows that are predicted at a time."""


@dataclass(frozen=True)
class FoldHead:
    """One expert's head in one fold; every array is float32.

    Attributes
    ----------
    scaler
        Features -> standardised x; the head sees x - `centre`.
    weight, bias
        Base of all tasks, [C, d] and [C]: the probe.
    lora_a, lora_b
        [T, R, d] and [C, R]; empty first axis where LoRA was not trained.
    scaling
        alpha / rank.
    temperature
        [C], of this expert alone.
    projection
        [d, G] onto the gate's coordinates.
    """

    scaler: RobustScaler
    centre: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    lora_a: np.ndarray
    lora_b: np.ndarray
    scaling: float
    temperature: np.ndarray
    projection: np.ndarray

    def standardise(self, x: np.ndarray) -> np.ndarray:
        """Give what the head's linear maps read, float32 [n, d]."""
        return self.scaler.transform(x) - self.centre

    def effective_weight(self, blocks: tuple[Block, ...]) -> np.ndarray:
        """Add the low-rank part to the base, [C, d]."""
        weight = self.weight.copy()
        for t, block in enumerate(blocks[: len(self.lora_a)]):
            weight[block.columns] += np.float32(self.scaling) * (self.lora_b[block.columns] @ self.lora_a[t])
        return weight

    def __call__(self, x: np.ndarray, blocks: tuple[Block, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Calibrated logits [n, C] and gate coordinates [n, G] of raw features [n, d]."""
        # In double: the last bits of a single-precision product depend on threads and on the other rows.
        maps = np.concatenate([self.effective_weight(blocks).T, self.projection], axis=1, dtype=np.float64)
        parts = [self.standardise(x[i : i + BLOCK_RECORDS]) @ maps for i in range(0, len(x), BLOCK_RECORDS)]
        out = np.concatenate(parts).astype(np.float32) if parts else np.empty((0, maps.shape[1]), np.float32)
        n = len(self.bias)
        return (out[:, :n] + self.bias) / self.temperature, out[:, n:]


@dataclass
class ExpertHead:
    """One expert's fitted folds, and the out-of-sample values that the gate is trained on (those are not saved)."""

    folds: list[FoldHead]
    strengths: list[list[float]]
    """Chosen penalty per fold and task."""
    lora_epochs: list[list[int]]
    history: list[list[list[float]]] = field(default_factory=list)
    logits: Tensor | None = None
    """[F, rows, C] calibrated, out of sample where `Masks.judged`, else model 0's; of the records that judge."""
    coordinates: Tensor | None = None
    """[F, rows, G]."""
    passes: int | None = None
    """Passes over the records that the probe took, where it was fitted block by block."""


@dataclass(frozen=True)
class HeadOptions:
    """Settings of one expert's heads."""

    strengths: tuple[float, ...]
    lora: LoraOptions | None
    calibrate: bool
    seed: int
    max_steps: int = 200


def half_whitened(variance: Tensor) -> Tensor:
    """Choose what coordinates of these variances [F, G] are multiplied by before the gate sees them.

    Standard deviation 1 for the leading one, and (sd_k / sd_1)^(1/2) for the k-th, so that axes of noise neither drown
    what varies most nor vanish beside it.
    """
    scales = torch.where(variance > 1e-12, variance.clamp_min(1e-12).rsqrt(), 0.0)
    return scales * (variance / variance.amax(1, keepdim=True).clamp_min(1e-12)) ** 0.25
