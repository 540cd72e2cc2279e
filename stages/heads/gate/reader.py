"""What the gate's mixture cannot say: one class's logit read from those of other classes, experts and tasks.

Lives here: `FoldReader` (a linear map of all experts' logits, and how much it counts beside the mixture), and how both
are fitted. Not here: weights over experts (`gate.weights`, `gate.training`).

The mixture weighs the experts' logits of a class by record. Stacking (Wolpert 1992) reads a class from all logits of
its task, which helps rare classes most, and cannot know which record it has. So a task's logit is a mean of up to three
members: the mixture, the reading of its own task's logits, and the reading of all tasks' logits. The mean of the first
two is kept unless another combination is better out of sample by more than one standard error.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stages.heads.crossfit import Masks, paired_gain
from stages.heads.expert_head import HeadOptions
from stages.heads.in_memory.expert import choose_strength
from stages.heads.in_memory.probe import Problem, Rotation, probe_logits
from stages.heads.targets.losses import residuals_, task_losses
from stages.heads.targets.tasks import Block, layout

MIXTURE, OWN, ALL = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
BOTH, THREE = (0.5, 0.5, 0.0), (1 / 3, 1 / 3, 1 / 3)
SLOPE_STEPS = 4


@dataclass(frozen=True)
class FoldReader:
    """One fold's linear map of all experts' logits.

    Attributes
    ----------
    weight, bias
        [E * C, C], [C]: the members that read, weighed by their shares.
    share
        [C]: of the mixture; the members' shares add up to 1.
    """

    weight: np.ndarray
    bias: np.ndarray
    share: np.ndarray

    def __call__(self, mixed: np.ndarray, logits: np.ndarray, present: np.ndarray) -> np.ndarray:
        """Join the mixture [n, C] with what is read of logits [n, E, C] of the experts present [n, E]."""
        # In double: the last bits of a single-precision product depend on threads and on the other rows.
        seen = impute(torch.from_numpy(logits).double(), torch.from_numpy(present)).numpy()
        read = seen @ self.weight.astype(np.float64) + self.bias
        return (mixed * self.share + read).astype(np.float32)


def impute(logits: Tensor, present: Tensor) -> Tensor:
    """Give an absent expert the mean logits of those present: [..., n, E, C] -> [..., n, E * C]."""
    alive = (present > 0).to(logits)[..., None]
    logits = torch.where(alive > 0, logits, 0.0)
    mean = logits.sum(-2, keepdim=True) / alive.sum(-2, keepdim=True).clamp_min(1)
    return torch.where(alive > 0, logits, mean).flatten(-2)


@dataclass(frozen=True)
class ReaderFit:
    """Readers per fold, joined out-of-sample logits [F, n, C], and each fold and task's shares of the three members."""

    folds: list[FoldReader]
    logits: Tensor
    shares: list[list[tuple[float, float, float]]]


@dataclass(frozen=True)
class _Member:
    """A linear map of the experts' logits: held-out logits [F, n, C], weight [F, E * C, C], bias [F, C]."""

    logits: Tensor
    weight: Tensor
    bias: Tensor


def fit_readers(
    mixed: Tensor,
    outputs: Tensor,
    present: Tensor,
    labels: tuple[Tensor, Tensor],
    masks: Masks,
    blocks: tuple[Block, ...],
    options: HeadOptions,
    *,
    share_tasks: bool,
) -> ReaderFit:
    """Fit the members that read, and choose each task's shares out of sample.

    Parameters
    ----------
    mixed
        [F, n, C] held-out logits of the mixture.
    outputs, present
        [F, n, E, C] out-of-sample logits of the experts, [n, E].
    labels
        y and weight, [F, n, C].
    masks
        Model 0 is trained on every record with out-of-sample logits, the others each leave one inner fold out.
    """
    x = impute(outputs, present)
    groups = [list(range(len(blocks)))] if share_tasks and len(blocks) > 1 else []
    own = _fit_member(x, outputs.shape[2], labels, masks, blocks, options, [[t] for t in range(len(blocks))])
    members = [own, *(_fit_member(x, outputs.shape[2], labels, masks, blocks, options, [g]) for g in groups)]
    candidates = [BOTH, MIXTURE, OWN, *([THREE, ALL] if groups else [])]
    shares = _choose_shares(mixed, members, labels, masks, blocks, candidates)
    return _join(mixed, members, shares, blocks)


def _fit_member(
    x: Tensor,
    n_experts: int,
    labels: tuple[Tensor, Tensor],
    masks: Masks,
    blocks: tuple[Block, ...],
    options: HeadOptions,
    groups: list[list[int]],
) -> _Member:
    """Fit one penalised linear model per group of tasks, which reads the logits of these tasks."""
    n_folds, n, width = x.shape
    n_columns = width // n_experts
    member = _Member(
        torch.zeros(n_folds, n, n_columns), x.new_zeros(n_folds, width, n_columns), x.new_zeros(n_folds, n_columns)
    )
    for group in groups:
        columns = torch.cat([torch.arange(blocks[t].start, blocks[t].stop) for t in group])
        read = (torch.arange(n_experts)[:, None] * n_columns + columns).ravel()
        inside = layout([blocks[t].task for t in group])
        for f in range(n_folds):
            one = masks.fold(f)
            part = x[f][:, read].numpy()
            rotation = Rotation.fit(part[one.train[0, 0].numpy() > 0])
            z = torch.from_numpy(rotation.transform(part))[None]
            y, weight = (label[f : f + 1][..., columns] for label in labels)
            weights, _ = choose_strength(Problem(z, y, weight, one.train, inside), one, options)
            member.logits[f][:, columns] = one.out_of_sample(probe_logits(z, weights))[0]
            axes, mean = torch.from_numpy(rotation.axes), torch.from_numpy(rotation.mean)
            maps = axes @ weights[0, 0, : axes.shape[1]]
            member.weight[f][read[:, None], columns] = maps
            member.bias[f][columns] = weights[0, 0, -1] - mean @ maps
    return member


def _choose_shares(
    mixed: Tensor,
    members: list[_Member],
    labels: tuple[Tensor, Tensor],
    masks: Masks,
    blocks: tuple[Block, ...],
    candidates: list[tuple[float, float, float]],
) -> list[list[tuple[float, float, float]]]:
    """Per fold and task: the first candidate, unless another is better by more than one standard error."""
    judged = labels[1] * masks.judged[..., None]
    gains: list[Tensor] = []
    incumbent = torch.zeros(())
    for k, candidate in enumerate(candidates):
        joined = mixed * candidate[0]
        for share, member in zip(candidate[1:], members, strict=False):
            joined = joined + share * member.logits
        joined = joined * _best_slopes(joined, labels[0], judged, blocks)[:, None]
        loss, row = task_losses(joined, labels[0], judged, blocks, huber=True)
        incumbent = loss if k == 0 else incumbent
        gain = paired_gain(incumbent, loss, row)
        gains.append(torch.where(gain.accepted, gain.mean, 0.0))
    return [[candidates[k] for k in row] for row in torch.stack(gains).argmax(0).tolist()]


def _best_slopes(logits: Tensor, y: Tensor, weight: Tensor, blocks: tuple[Block, ...]) -> Tensor:
    """Slope of each task's logits, [F, C], at which its loss is least: a mean is less sure than its members."""
    sizes = torch.tensor([b.stop - b.start for b in blocks])
    member = torch.nn.functional.one_hot(torch.arange(len(blocks)).repeat_interleave(sizes)).float()
    slope = torch.ones(len(logits), logits.shape[-1])
    for _ in range(SLOPE_STEPS):
        residual = logits * slope[:, None]
        residuals_(residual, y, blocks)
        p = (residual + y).clamp(0, 1)
        regression = torch.tensor([b.task.kind == "regression" for b in blocks]).repeat_interleave(sizes)
        curvature = torch.where(regression, 1.0, p * (1 - p))
        down = ((weight * residual * logits).sum(1) @ member) / (
            (weight * curvature * logits**2).sum(1) @ member + 1e-6
        )
        slope = (slope - (down @ member.T).clamp(-0.5, 0.5)).clamp(0.2, 5.0)
    return slope


def _join(
    mixed: Tensor, members: list[_Member], shares: list[list[tuple[float, float, float]]], blocks: tuple[Block, ...]
) -> ReaderFit:
    sizes = torch.tensor([b.stop - b.start for b in blocks])
    of_column = torch.tensor(shares).repeat_interleave(sizes, dim=1)
    logits = mixed * of_column[..., 0][:, None]
    weight, bias = torch.zeros_like(members[0].weight), torch.zeros_like(members[0].bias)
    for k, member in enumerate(members):
        share = of_column[..., k + 1]
        logits = logits + share[:, None] * member.logits
        weight, bias = weight + share[:, None] * member.weight, bias + share * member.bias
    folds = [
        FoldReader(weight[f].numpy().copy(), bias[f].numpy().copy(), of_column[f, :, 0].numpy().copy())
        for f in range(len(shares))
    ]
    return ReaderFit(folds, logits, shares)


def shifted(fit: ReaderFit, shift: Tensor, n_experts: int) -> ReaderFit:
    """Carry readers of logits that were raised by `shift` [F, C] over to plain ones, and take it off what they give."""
    folds = []
    for fold, by in zip(fit.folds, shift.numpy(), strict=True):
        raised = np.tile(by, n_experts) @ fold.weight
        folds.append(FoldReader(fold.weight, fold.bias + raised - by * (1 - fold.share), fold.share))
    return ReaderFit(folds, fit.logits - shift[:, None], fit.shares)
