"""One expert's heads for all folds and tasks: standardise, rotate, probe, LoRA, calibrate; and the fitted arrays.

Lives here: `fit_expert` (training) and `ExpertHead` (what is kept, and its prediction). Not here: how experts are
weighed (`gate`), the numerical parts (`inputs.scaler`, `in_memory.probe`, `in_memory.lora`, `targets.calibration`).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cache.errors import InputError
from stages.heads.crossfit import Masks
from stages.heads.expert_head import GATE_WIDTH, ExpertHead, FoldHead, HeadOptions, half_whitened
from stages.heads.in_memory.lora import LoraFit, fit_lora
from stages.heads.in_memory.probe import Problem, Rotation, fit_path, pad_stack, probe_logits
from stages.heads.inputs.scaler import RobustScaler
from stages.heads.targets.calibration import fit_temperatures
from stages.heads.targets.losses import task_losses
from stages.heads.targets.tasks import Block

PATH_RECORDS = 5_000
"""The penalty is chosen on at most this many training and as many judged records."""


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
