"""One expert's heads for all folds and tasks: standardise, rotate, probe, LoRA, calibrate; and the fitted arrays.

Lives here: `fit_expert` (training) and `ExpertHead` (what is kept, and its prediction). Not here: how experts are
weighed (`gate`), the numerical parts (`scaler`, `probe`, `lora`, `calibration`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from cache.errors import InputError
from stages.heads.calibration import fit_temperatures
from stages.heads.crossfit import Masks
from stages.heads.lora import LoraFit, LoraOptions, fit_lora
from stages.heads.losses import task_losses
from stages.heads.probe import Problem, Rotation, fit_path, pad_stack, probe_logits
from stages.heads.scaler import RobustScaler
from stages.heads.tasks import Block

GATE_WIDTH = 64
"""Leading principal coordinates that an expert shows the gate."""


BLOCK_RECORDS = 4096
"""Rows that are predicted at a time."""
PATH_RECORDS = 5_000
"""The penalty is chosen on at most this many training and as many judged records."""


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


def fit_expert(
    name: str,
    matrices: list[np.ndarray],
    present: np.ndarray,
    targets: tuple[Tensor, Tensor],
    masks: Masks,
    rows: Tensor,
    blocks: tuple[Block, ...],
    options: HeadOptions,
) -> ExpertHead:
    """Fit one expert's heads on its feature matrices (one per fold, [n, d] each; the same object where folds share it).

    Parameters
    ----------
    present
        bool [n]: records that this expert saw; the others teach it nothing.
    targets
        y and weight, [F, n, C].
    rows
        Records that judge, whose logits and coordinates are kept.
    """
    seen = torch.from_numpy(present.astype(np.float32))
    own = Masks(masks.train * seen, torch.where(seen > 0, masks.judge, -1))
    scalers, rotations, parts = [], [], []
    for f, x in enumerate(matrices):
        train = torch.nonzero(own.train[f, 0]).ravel().numpy()
        if len(train) < 2:
            raise InputError(f"expert '{name}': fold {f} has {len(train)} training records with its features")
        scaler = RobustScaler.fit(x[train])
        standard = scaler.transform(x)
        rotation = Rotation.fit(standard[train], options.seed)
        scalers.append(scaler)
        rotations.append(rotation)
        parts.append(rotation.transform(standard))
    problem = Problem(pad_stack(parts), targets[0], targets[1], own.train, blocks)
    weights, chosen = choose_strength(problem, own, options)
    base = probe_logits(problem.z, weights)
    fit = _low_rank(problem, base, own, options)
    known = (targets[1] > 0).float() * own.judged[..., None]
    temperature = torch.ones(base.shape[0], base.shape[-1])
    if options.calibrate:
        temperature = fit_temperatures(fit.logits, targets[0], known, blocks)
    coordinates, scales = _gate_coordinates(problem)
    scaling = options.lora.scaling if options.lora else 1.0
    folds = [
        _fold_head(f, scalers[f], rotations[f], weights, fit, temperature, scales, scaling, options.lora is not None)
        for f in range(len(matrices))
    ]
    logits = (fit.logits / temperature[:, None])[:, rows]
    return ExpertHead(folds, chosen.tolist(), fit.epoch.tolist(), fit.history, logits, coordinates[:, rows])


def choose_strength(problem: Problem, masks: Masks, options: HeadOptions) -> tuple[Tensor, Tensor]:
    """Fit the path and keep, per fold and task, the strength of the lowest out-of-sample loss.

    With more than twice `PATH_RECORDS` records the strength is chosen on random subsets of that many training and
    judged ones (it is the precision of a prior, which does not change with their number), and then fitted to all.

    Returns
    -------
    weights [F, M, r + 1, C], strengths [F, T].
    """
    large = problem.z.shape[1] > 2 * PATH_RECORDS
    rows = _subset(masks, options.seed)
    few, few_masks = (problem.take(rows), masks.take(rows)) if large else (problem, masks)
    strengths = torch.tensor(options.strengths)
    path = fit_path(few, strengths, max_steps=options.max_steps)
    best = _path_losses(few, few_masks, path).argmin(0)
    weights = torch.empty_like(path[:, :, 0])
    for f in range(best.shape[0]):
        for t, block in enumerate(problem.blocks):
            weights[f, ..., block.columns] = path[f, :, best[f, t], :, block.columns]
    if large:
        sizes = torch.tensor([b.stop - b.start for b in problem.blocks])
        chosen = strengths[best].repeat_interleave(sizes, dim=1)[:, None]
        weights = fit_path(problem, chosen, start=weights[:, :, None], max_steps=options.max_steps)[:, :, 0]
    return weights, strengths[best]


def _subset(masks: Masks, seed: int) -> Tensor:
    """Up to `PATH_RECORDS` training and as many judged records of any fold, in order."""
    order = torch.randperm(masks.judge.shape[1], generator=torch.Generator().manual_seed(seed))
    train = order[masks.train[:, 0].amax(0)[order] > 0][:PATH_RECORDS]
    judged = order[masks.judged.amax(0)[order] > 0][:PATH_RECORDS]
    return torch.cat([train, judged]).unique()


def _path_losses(problem: Problem, masks: Masks, path: Tensor) -> Tensor:
    """Out-of-sample loss of every strength, [S, F, T]."""
    judged = problem.weight * masks.judged[..., None]
    losses = []
    for s in range(path.shape[2]):
        logits = masks.out_of_sample(probe_logits(problem.z, path[:, :, s]))
        loss, weight = task_losses(logits, problem.y, judged, problem.blocks)
        losses.append((loss * weight).sum(1) / weight.sum(1).clamp_min(1e-9))
    return torch.stack(losses)


def _low_rank(problem: Problem, base: Tensor, masks: Masks, options: HeadOptions) -> LoraFit:
    """Train LoRA, or pass the probe on where it is switched off."""
    if options.lora is not None:
        return fit_lora(problem, base, masks, options.lora, options.seed)
    n_folds, n_tasks = base.shape[0], len(problem.blocks)
    nothing = base.new_zeros(n_folds, problem.z.shape[2], 0, 1)
    epoch = torch.zeros(n_folds, n_tasks, dtype=torch.long)
    return LoraFit(nothing, base.new_zeros(n_folds, 1, base.shape[-1]), masks.out_of_sample(base), epoch, [])


def _gate_coordinates(problem: Problem) -> tuple[Tensor, Tensor]:
    """Leading coordinates [F, n, G], and what they were multiplied by [F, G]."""
    lead = problem.z[..., :GATE_WIDTH]
    train = problem.train[:, 0, :, None]
    scales = half_whitened((lead**2 * train).sum(1) / train.sum(1))
    return lead * scales[:, None], scales


def half_whitened(variance: Tensor) -> Tensor:
    """Choose what coordinates of these variances [F, G] are multiplied by before the gate sees them.

    Standard deviation 1 for the leading one, and (sd_k / sd_1)^(1/2) for the k-th, so that axes of noise neither drown
    what varies most nor vanish beside it.
    """
    scales = torch.where(variance > 1e-12, variance.clamp_min(1e-12).rsqrt(), 0.0)
    return scales * (variance / variance.amax(1, keepdim=True).clamp_min(1e-12)) ** 0.25


def _fold_head(
    f: int,
    scaler: RobustScaler,
    rotation: Rotation,
    weights: Tensor,
    fit: LoraFit,
    temperature: Tensor,
    scales: Tensor,
    scaling: float,
    with_lora: bool,
) -> FoldHead:
    """Carry one fold from principal coordinates back to standardised features."""
    axes = torch.from_numpy(rotation.axes)
    rank = axes.shape[1]
    w = weights[f, 0]
    empty = np.zeros((0, 1, len(axes)), np.float32)
    a = torch.einsum("dr,rtk->tkd", axes, fit.a[f, :rank]).contiguous().numpy() if with_lora else empty
    width = min(rank, scales.shape[1])
    projection = np.zeros((len(axes), scales.shape[1]), np.float32)
    projection[:, :width] = (axes[:, :width] * scales[f, :width]).numpy()
    return FoldHead(
        scaler=scaler,
        centre=rotation.mean,
        weight=np.ascontiguousarray((axes @ w[:rank]).T.numpy()),
        bias=w[-1].numpy().copy(),
        lora_a=a,
        lora_b=np.ascontiguousarray(fit.b[f].T.numpy()),
        scaling=scaling,
        temperature=temperature[f].numpy().copy(),
        projection=projection,
    )
