"""One expert's heads on many records, block by block: bounded memory, all folds, tasks and models in every product.

Lives here: `fit_expert_blockwise`, the counterpart of `stack.fit_expert` from `LARGE_RECORDS` training records on.
Not here: its parts (`blockwise.coordinates`, `blockwise.blocks`, `blockwise.whitening`, `descent`,
`blockwise.lora`), what is fitted on the result.

What is fitted is the same: robust standardisation, the convex probe, LoRA on it, a temperature. What differs is how:
each pass reads the records once for everything; the penalty is chosen on a sample, by one model a fold; and only
`rows`, the records that judge, are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cache.errors import InputError
from stages.heads.blockwise.blocks import Blocks
from stages.heads.blockwise.coordinates import FoldMaps, SharedScale
from stages.heads.blockwise.lora import fit_lora_blockwise
from stages.heads.blockwise.loss_pass import Judges, Labels, Pass
from stages.heads.blockwise.whitening import Whitening, WhiteScaling, fit_whitening
from stages.heads.crossfit import Masks
from stages.heads.descent import TOLERANCE, minimise
from stages.heads.expert_head import GATE_WIDTH, ExpertHead, FoldHead, HeadOptions, half_whitened
from stages.heads.in_memory.lora import LoraFit
from stages.heads.in_memory.probe import Problem, frozen_columns, prior_logits
from stages.heads.inputs.scaler import RobustScaler
from stages.heads.targets.calibration import fit_temperatures
from stages.heads.targets.losses import curvature_bounds, task_losses
from stages.heads.targets.tasks import Block

LARGE_RECORDS = 20_000
"""Training records in some fold from which on heads are fitted block by block."""
SAMPLE_RECORDS = 16_384
"""Training records of a fold, drawn at random, that its robust scaler's quantiles are taken from."""
PATH_RECORDS = 8_192
"""Training records on which the path of penalties is fitted: a penalty is the precision of a prior, which does not
change with their number."""


@dataclass(frozen=True)
class WorkSpace:
    """Where the work is done, and how many bytes of features may be kept there."""

    device: torch.device
    room: float


@dataclass(frozen=True)
class Features:
    """An expert's features [n, d], read by rows (a slice, or row numbers)."""

    read: Callable[[slice | np.ndarray], np.ndarray]
    n_records: int


@torch.no_grad()
def fit_expert_blockwise(
    name: str,
    features: Features,
    present: np.ndarray,
    targets: tuple[Tensor, Tensor],
    masks: Masks,
    rows: Tensor,
    columns: tuple[Block, ...],
    options: HeadOptions,
    place: WorkSpace,
) -> ExpertHead:
    """Fit one expert's heads.

    Parameters
    ----------
    present
        bool [n]: records that this expert saw.
    targets
        y and weight, [F, n, C].
    rows
        Records that judge, ascending; logits and coordinates are given of these.

    Raises
    ------
    InputError
        A fold with fewer than two training records of this expert.
    """
    train = masks.train.bool() & torch.from_numpy(present)
    labels = Labels(*targets, train, columns)
    scalers, length = _fit_scalers(name, features, train[:, 0].numpy(), options.seed)
    blocks = Blocks(features.read, features.n_records, SharedScale(scalers, place.device), place.room)
    whitening = fit_whitening(blocks, train[:, 0], length, options.seed)
    blocks.scale.centre_on(whitening.mean)
    judge = torch.where(torch.from_numpy(present)[rows], masks.judge[:, rows], -1)
    judges = Judges(blocks.take(rows), labels.take(rows), Masks(masks.train[:, :, rows], judge))
    strengths = _choose_strength(blocks, labels, judges, whitening, options)
    weight, bias, passes = _solve(Pass(blocks, labels), labels, whitening, strengths[:, None])
    fit = _low_rank(blocks, labels, judges, (weight, bias), options)
    known = (judges.labels.weight > 0).float() * judges.masks.judged[..., None]
    temperature = torch.ones(len(train), targets[0].shape[2])
    if options.calibrate:
        temperature = fit_temperatures(fit.logits, judges.labels.y, known, columns)
    variance = whitening.variance[:, :GATE_WIDTH]
    shown = whitening.axes[:, :, :GATE_WIDTH] * half_whitened(variance)[:, None]
    coordinates = FoldMaps(blocks.scale, shown, shown.new_zeros(len(train), shown.shape[2]))(judges.block)
    base = (weight[:, :, : fit.b.shape[-1]], bias[:, : fit.b.shape[-1]])
    return ExpertHead(
        [
            _fold_head(f, blocks.scale, whitening.mean, base, fit, temperature, shown, options)
            for f in range(len(train))
        ],
        _per_task(strengths, columns).tolist(),
        fit.epoch.tolist(),
        fit.history,
        fit.logits / temperature[:, None],
        coordinates.transpose(0, 1).cpu(),
        passes,
    )


def _fit_scalers(name: str, features: Features, train: np.ndarray, seed: int) -> tuple[list[RobustScaler], list[float]]:
    """Scalers of all folds, and the mean squared length of what they give less its mean."""
    subset = np.flatnonzero(train.sum(1) < 2)
    if len(subset):
        raise InputError(
            f"expert '{name}': fold {subset[0]} has {train[subset[0]].sum()} training records with its features"
        )
    # at random: rows at equal distances may all fall between those of a split that repeats itself
    order = np.random.default_rng(seed).permutation(features.n_records)
    drawn = [np.sort(order[mask[order]][:SAMPLE_RECORDS]) for mask in train]
    chosen = np.unique(np.concatenate(drawn))
    sample = features.read(chosen)
    parts = [sample[np.searchsorted(chosen, rows)] for rows in drawn]
    scalers = [RobustScaler.fit(part) for part in parts]
    return scalers, [float(s.transform(part).var(0).sum()) for s, part in zip(scalers, parts, strict=True)]


def _choose_strength(
    blocks: Blocks, labels: Labels, judges: Judges, whitening: Whitening, options: HeadOptions
) -> Tensor:
    """Penalty of every fold and column, [F, C], chosen by the out-of-sample loss of a path fitted to a sample."""
    if len(options.strengths) == 1:
        return torch.full((labels.y.shape[0], labels.y.shape[2]), float(options.strengths[0]))
    # validation rows judge model 0; without them, the rows of the first inner fold judge the model without them
    model = 0 if bool((judges.masks.judge == 0).any()) else 1
    judged = judges.labels.weight * (judges.masks.judge == model)[..., None]
    order = torch.randperm(labels.train.shape[2], generator=torch.Generator().manual_seed(options.seed))
    rows = order[labels.train[:, model].any(0)[order]][:PATH_RECORDS].sort().values
    subset = labels.take(rows)
    subset = Labels(subset.y, subset.weight, subset.train[:, model : model + 1], subset.blocks)
    path = torch.tensor(options.strengths)
    n_folds, n_cols = labels.y.shape[0], labels.y.shape[2]
    penalties = path[None, :, None].expand(n_folds, -1, n_cols)
    weight, bias, _ = _solve(Pass(blocks, subset, len(path), blocks.take(rows)), subset, whitening, penalties)
    maps = FoldMaps(blocks.scale, weight, bias)
    logits = judges.logits(maps, 1)[:, 0].view(n_folds, len(judged[0]), len(path), n_cols)
    losses = []
    for s in range(len(path)):
        loss, w = task_losses(logits[:, :, s], judges.labels.y, judged, labels.blocks)
        losses.append((loss * w).sum(1) / w.sum(1).clamp_min(1e-9))
    best = path[torch.stack(losses).argmin(0)]
    sizes = torch.tensor([b.stop - b.start for b in labels.blocks])
    return best.repeat_interleave(sizes, dim=1)


def _per_task(columns: Tensor, blocks: tuple[Block, ...]) -> Tensor:
    return columns[:, [b.start for b in blocks]]


def _solve(work: Pass, labels: Labels, whitening: Whitening, strengths: Tensor) -> tuple[Tensor, Tensor, int]:
    """Fit probes of every fold, model, penalty [F, S, C] and column: weights [F, D, k], intercepts [F, k]."""
    device = work.blocks.scale.device
    n_folds, n_models, _ = labels.train.shape
    nothing = torch.zeros(n_folds, labels.y.shape[1], 0)
    problem = Problem(nothing, labels.y, labels.weight, labels.train, labels.blocks)
    prior, frozen = prior_logits(problem), frozen_columns(problem)
    n_strengths = strengths.shape[1]
    penalty = (strengths * whitening.length.cpu()[:, None, None])[:, None].expand(-1, n_models, -1, -1)
    of_fold = zip(labels.weight, labels.train[:, 0], strict=True)
    largest = torch.stack([torch.where(train[:, None], w, 0).amax(0) for w, train in of_fold]).clamp_min(1e-6)
    curvature = curvature_bounds(labels.blocks) * largest * _counts(labels)
    member = torch.nn.functional.one_hot(work.groups).float()
    still = ((frozen.float() @ member) > 0)[:, :, None].expand(-1, -1, n_strengths, -1).flatten(1, 2)
    curvature = curvature[:, None].expand(-1, n_models * n_strengths, -1).flatten(1).to(device)
    penalty = penalty.flatten(1).to(device)
    start = prior[:, :, None].expand(-1, -1, n_strengths, -1).flatten(1).to(device)
    scaling = WhiteScaling(whitening, curvature, penalty)
    scaled = torch.zeros(n_folds, whitening.axes.shape[1] + 1, start.shape[1], device=device)
    scaled[:, -1] = start / scaling.intercept[:, 0]
    limit = TOLERANCE * max(1.0, labels.y.shape[1] / 1000)
    return minimise(work, scaling, penalty, scaled, work.groups, still.to(device), limit)


def _counts(labels: Labels) -> Tensor:
    """How many records a column's curvature is a sum over, [F, C]: training ones or, of Cox's, those with the event."""
    counts = labels.train[:, 0].sum(1)[:, None].expand(-1, labels.y.shape[2]).float()
    for block in (b for b in labels.blocks if b.task.kind == "survival"):
        came = (labels.y[..., block.start] > 0) & (labels.weight[..., block.start] > 0) & labels.train[:, 0]
        counts = counts.index_copy(1, torch.tensor([block.start]), came.sum(1, keepdim=True).clamp_min(1).float())
    return counts


def _low_rank(
    blocks: Blocks, labels: Labels, judges: Judges, base: tuple[Tensor, Tensor], options: HeadOptions
) -> LoraFit:
    """Train LoRA, or pass the probe on where it is switched off."""
    n_folds, n_models, _ = labels.train.shape
    out_of_sample = judges.masks.out_of_sample(judges.logits(FoldMaps(blocks.scale, *base), n_models))
    if options.lora is not None:
        return fit_lora_blockwise(blocks, labels, judges, base, out_of_sample, options.lora, options.seed)
    nothing = torch.zeros(n_folds, blocks.scale.width, 0, 1)
    epoch = torch.zeros(n_folds, len(labels.blocks), dtype=torch.long)
    return LoraFit(nothing, torch.zeros(n_folds, 1, labels.y.shape[2]), out_of_sample, epoch, [])


def _fold_head(
    f: int,
    scale: SharedScale,
    mean: Tensor,
    base: tuple[Tensor, Tensor],
    fit: LoraFit,
    temperature: Tensor,
    shown: Tensor,
    options: HeadOptions,
) -> FoldHead:
    """Cut one fold's own columns out of the shared ones."""
    of_fold = torch.from_numpy(scale.columns(f))

    def cut(x: Tensor) -> np.ndarray:
        return np.ascontiguousarray(x.cpu()[of_fold].numpy())

    empty = np.zeros((0, 1, len(of_fold)), np.float32)
    a = np.ascontiguousarray(cut(fit.a[f]).transpose(1, 2, 0)) if options.lora is not None else empty
    return FoldHead(
        scaler=scale.scalers[f],
        centre=cut(mean[f]),
        weight=np.ascontiguousarray(cut(base[0][f]).T),
        bias=base[1][f].cpu().numpy().copy(),
        lora_a=a,
        lora_b=np.ascontiguousarray(fit.b[f].cpu().T.numpy()),
        scaling=options.lora.scaling if options.lora else 1.0,
        temperature=temperature[f].numpy().copy(),
        projection=cut(shown[f]),
    )
