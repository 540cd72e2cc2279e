"""What the gate's mixture cannot say: one class's logit read from those of other classes, experts and tasks.

Lives here: `FoldReader` (a linear map of all experts' logits, and how much it counts beside the mixture), and how both
are fitted. Not here: weights over experts (`gate.weights`, `gate.training`).

The mixture weighs the experts' logits of a class by record. Stacking (Wolpert 1992) reads a class from all logits of
its task, which helps rare classes most, and cannot know which record it has. So a task's logit is a mean of up to three
members: the mixture, the reading of its own task's logits, and the reading of all tasks' logits. How much each counts
is fitted out of sample, by `gate.shares`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from stages.heads.crossfit import Masks
from stages.heads.expert_head import HeadOptions
from stages.heads.gate.shares import Shares, fit_shares
from stages.heads.in_memory.expert import choose_strength
from stages.heads.in_memory.probe import Problem, Rotation, probe_logits
from stages.heads.targets.losses import HUBER_DELTA
from stages.heads.targets.tasks import Block, layout

TO_SPREAD = 1.4826
"""Median absolute deviation -> standard deviation of a normal distribution."""


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
    shares: Shares


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
    huber: bool = True,
) -> ReaderFit:
    """Fit the members that read, and each task's shares out of sample.

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
    judged = labels[1] * masks.judged[..., None]
    y = without_outliers(mixed, labels[0], judged, blocks) if huber else labels[0]
    wanted = [[[t] for t in range(len(blocks))]]
    if share_tasks and len(blocks) > 1:
        wanted.append([list(range(len(blocks)))])
    read = [_fit_member(x, outputs.shape[2], (y, labels[1]), masks, blocks, options, groups) for groups in wanted]
    shares = fit_shares([mixed, *(member.logits for member in read)], labels[0], judged, blocks)
    return _join(mixed, read, shares, blocks)


def without_outliers(mixed: Tensor, y: Tensor, weight: Tensor, blocks: tuple[Block, ...]) -> Tensor:
    """Pull regression targets [F, n, C] to within 1.345 standard deviations of what the mixture [F, n, C] says.

    Least squares on such targets is a step towards Huber's estimate (Huber 1981, section 7.8), with the mixture's
    residuals of known records as the measure. Without it a few targets far off turn the reading of all records.
    """
    y = y.clone()
    for block in blocks:
        if block.task.kind == "regression":
            c = block.start
            for f in range(len(y)):
                residual = y[f, :, c] - mixed[f, :, c]
                limit = HUBER_DELTA * TO_SPREAD * residual[weight[f, :, c] > 0].abs().median()
                y[f, :, c] = mixed[f, :, c] + residual.clamp(-limit, limit)
    return y


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


def _join(mixed: Tensor, members: list[_Member], shares: Shares, blocks: tuple[Block, ...]) -> ReaderFit:
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


def raised(fit: ReaderFit, by: Tensor) -> ReaderFit:
    """Raise what readers give by `by` [F, C]."""
    folds = [replace(fold, bias=fold.bias + b) for fold, b in zip(fit.folds, by.numpy(), strict=True)]
    return ReaderFit(folds, fit.logits + by[:, None], fit.shares)
