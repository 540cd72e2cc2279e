"""A fitted ensemble: arrays alone, and prediction from them.

Lives here: `FoldModel` and the pure functions from features to mixed logits. Not here: fitting (`fit`), files
(`persist`), the scikit-learn face (`ensemble`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from stages.heads.expert_head import FoldHead
from stages.heads.gate.hierarchy import FoldHierarchy
from stages.heads.gate.inputs import InputScale, shared_inputs, signal_summary, task_inputs
from stages.heads.gate.reader import FoldReader
from stages.heads.gate.weights import FoldGate, mix
from stages.heads.survival.baseline import survival_at
from stages.heads.targets.losses import activate
from stages.heads.targets.tasks import Block


@dataclass
class FoldModel:
    """Everything one fold needs to predict."""

    heads: dict[str, FoldHead]
    gate: FoldGate
    signal_scale: InputScale | None
    temperature: np.ndarray
    """[C], of the mixed logits."""
    target_centre: np.ndarray
    target_scale: np.ndarray
    """[C]: a regression target is centre + scale * logit; 0 and 1 for the others."""
    interval: np.ndarray
    """[2, C] out-of-sample residual quantiles of regression tasks, in target units."""
    reader: FoldReader | None = None
    """What is read across classes and tasks, beside the mixture; fits of before it existed have none."""
    hazards: np.ndarray | None = None
    """[1 + E, T, horizons] cumulative baseline hazards of survival tasks: of the mixture, then of each expert alone."""
    hierarchy: FoldHierarchy | None = None
    """What parents add to the calibrated logits; None where no class has one."""


@dataclass(frozen=True)
class Output:
    """What one fold says: per-expert logits [n, E, C] (NaN where absent), weights [n, T, E], mixed logits [n, C]."""

    experts: np.ndarray
    weights: np.ndarray
    mixed: np.ndarray

    def spread(self, rows: np.ndarray, n: int) -> Output:
        """Put what it says of some rows in their places among n; NaN in all others."""
        return Output(*(spread_rows(part, rows, n) for part in (self.experts, self.weights, self.mixed)))


def spread_rows(values: np.ndarray, rows: np.ndarray, n: int) -> np.ndarray:
    """Put values [len(rows), ...] in their places among n, NaN in all others.

    >>> spread_rows(np.array([7.0]), np.array([1]), 3)
    array([nan,  7., nan])
    """
    whole = np.full((n, *values.shape[1:]), np.nan, values.dtype)
    whole[rows] = values
    return whole


def run_fold(
    model: FoldModel,
    matrices: dict[str, np.ndarray],
    present: np.ndarray,
    signal: np.ndarray | None,
    sources: tuple[str, ...],
    blocks: tuple[Block, ...],
) -> Output:
    """Predict with one fold's model.

    Parameters
    ----------
    matrices
        Expert -> [n, d] features.
    present
        [n, E], in the order of `matrices`.
    """
    results = [model.heads[name](x, blocks) for name, x in matrices.items()]
    logits = np.stack([r[0] for r in results], 1)
    widest = max(r[1].shape[1] for r in results)
    coordinates = np.stack([np.pad(r[1], ((0, 0), (0, widest - r[1].shape[1]))) for r in results], 1)
    summary = None if signal is None or model.signal_scale is None else model.signal_scale(signal_summary(signal))
    held = model.gate.held
    read = present if held is None else present * ~held
    shared = shared_inputs(sources, coordinates, read, summary)
    per_task = task_inputs(sources, logits, read, blocks)
    weights = model.gate.weights(shared, per_task, present)
    mixed = mix_arrays(weights, logits, present, blocks)
    if model.reader is not None:
        mixed = model.reader(mixed, logits, present)
    mixed = mixed / model.temperature
    if model.hierarchy is not None:
        mixed = model.hierarchy(mixed)
    experts = np.where(present[..., None] > 0, logits, np.float32(np.nan))
    return Output(experts, weights, mixed)


def mix_arrays(weights: np.ndarray, logits: np.ndarray, present: np.ndarray, blocks: tuple[Block, ...]) -> np.ndarray:
    """Weighted sum [n, C] of logits [n, E, C]; NaN for a record that no expert saw."""
    logits = np.where(present[..., None] > 0, logits, np.float32(0))
    out = mix(torch.from_numpy(weights), torch.from_numpy(logits), blocks).numpy()
    out[~present.astype(bool).any(1)] = np.nan
    return out


def to_means(
    logits: np.ndarray,
    centre: np.ndarray,
    scale: np.ndarray,
    blocks: tuple[Block, ...],
    hazards: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Turn logits [n, C] into what each task is asked for.

    Parameters
    ----------
    hazards
        [T, horizons], of survival tasks.

    Returns
    -------
    task -> value in its unit [n]; probability of the positive class [n]; probabilities [n, K]; or, of survival, [n, 1 +
    horizons]: the log-hazard, and the probabilities that the event has not come until each horizon.
    """
    means = activate(torch.from_numpy(np.ascontiguousarray(logits)), blocks).numpy()
    out = {}
    for t, block in enumerate(blocks):
        part = means[..., block.columns]
        if block.task.kind == "survival":
            assert hazards is not None
            of_task = hazards[t, : len(block.task.horizons)]
            out[block.task.name] = np.concatenate([part, survival_at(part[..., 0], of_task)], axis=-1)
            continue
        if block.task.kind == "regression":
            part = part.astype(np.float64) * scale[block.columns] + centre[block.columns]
        single = block.task.kind in ("regression", "binary")
        out[block.task.name] = part[..., 0] if single else part
    return out
