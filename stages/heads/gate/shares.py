"""How much each member of a task's logits counts: the mixture, and what is read beside it.

Lives here: the candidates, what they are judged by, and the shares that follow. Not here: the members (`gate.reader`).

Candidates are means of the members, in quarters. A share is that of the candidates' votes: one is cast per resample of
the records (the Bayesian bootstrap, Rubin 1981) for the candidate with the lowest out-of-sample loss (Yao et al. 2018
weigh models so). Few records leave many candidates, clear evidence leaves one. Taking the one that is best on all
records instead makes folds differ, and rare classes are ranked over all folds together.

A candidate is judged at its best slope per task and intercept per class, and by a loss in which both classes of a
column count alike. The shares then follow from how well records are ranked; calibration is mended afterwards.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stages.heads.targets.losses import column_losses, slopes
from stages.heads.targets.tasks import Block

Shares = list[list[tuple[float, ...]]]
"""Per fold and task: of the mixture, the reading of the task's own logits and, where tasks share, of all logits."""
QUARTERS = tuple((a / 4, b / 4, (4 - a - b) / 4) for a in range(5) for b in range(5 - a))
EQUAL, PRIOR = (0.5, 0.5, 0.0), 1.0
"""Where a Gaussian prior on the shares has its middle, and the summed loss that it asks per squared distance."""
RESAMPLES = 200
STEPS = 6
"""Newton steps for slope and intercepts."""
PRIOR_RECORDS = 0.5
"""Gaussian prior on an intercept, in records of greatest curvature times four."""


def fit_shares(members: list[Tensor], y: Tensor, weight: Tensor, blocks: tuple[Block, ...]) -> Shares:
    """Fit the shares of two or three members.

    Parameters
    ----------
    members
        Out-of-sample logits [F, n, C] of each.
    y, weight
        [F, n, C]; a weight of 0 leaves a label out.

    Returns
    -------
    Three numbers per fold and task, which add up to 1; the third is 0 of two members.
    """
    alike = equal_classes(y, weight, blocks)
    candidates = [c for c in QUARTERS if len(members) > 2 or c[2] == 0]
    labelled = torch.stack([(weight[..., b.columns] > 0).any(-1).float() for b in blocks], -1)
    losses = torch.stack([_candidate_loss(c, members, y, alike, blocks) for c in candidates])
    away = torch.tensor([sum((a - b) ** 2 for a, b in zip(c, EQUAL, strict=True)) for c in candidates])
    return [
        [
            vote(losses[:, f, labelled[f, :, t] > 0, t], PRIOR * away, torch.tensor(candidates))
            for t in range(len(blocks))
        ]
        for f in range(len(y))
    ]


def vote(losses: Tensor, prior: Tensor, candidates: Tensor) -> tuple[float, ...]:
    """Return the mean of the candidates [K, ...] that win a resample of the records' losses [K, n]."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.empty(RESAMPLES, losses.shape[1]).exponential_(generator=generator)
    counts = counts * (losses.shape[1] / counts.sum(1, keepdim=True).clamp_min(1e-9))
    return tuple(candidates[(counts @ losses.T + prior).argmin(1)].mean(0).tolist())


def _candidate_loss(
    candidate: tuple[float, ...], members: list[Tensor], y: Tensor, weight: Tensor, blocks: tuple[Block, ...]
) -> Tensor:
    """Loss of every record and task [F, n, T] under one mean of the members (multilabel: mean over the columns)."""
    joined = torch.stack([share * m for share, m in zip(candidate, members, strict=False) if share]).sum(0)
    joined = at_its_best(joined, y, weight, blocks)
    parts = []
    for block in blocks:
        loss = column_losses(joined, y, block, huber=True, weight=weight) * weight[..., block.columns]
        parts.append(loss.mean(-1) if block.task.kind == "multilabel" else loss.sum(-1))
    return torch.stack(parts, -1)


def equal_classes(y: Tensor, weight: Tensor, blocks: tuple[Block, ...]) -> Tensor:
    """Weigh the labels [F, n, C] so that both classes of a column count alike; a column of one class counts nothing.

    Regression, survival and multinomial tasks keep their weights.
    """
    out = weight.clone()
    for block in blocks:
        if block.task.kind in ("binary", "multilabel"):
            t, w = y[..., block.columns], weight[..., block.columns]
            total, positive = w.sum(1, keepdim=True), (w * t).sum(1, keepdim=True)
            negative = total - positive
            both = ((positive > 0) & (negative > 0)).float()
            counts = torch.where(t > 0, positive, negative).clamp_min(1e-9)
            out[..., block.columns] = w * both * total / (2 * counts)
    return out


def at_its_best(logits: Tensor, y: Tensor, weight: Tensor, blocks: tuple[Block, ...]) -> Tensor:
    """Give logits [F, n, C] each task's best slope and each column's best intercept, by Newton steps in turn."""
    sizes = torch.tensor([b.stop - b.start for b in blocks])
    member = torch.nn.functional.one_hot(torch.arange(len(blocks)).repeat_interleave(sizes)).float()
    regression = torch.tensor([b.task.kind == "regression" for b in blocks]).repeat_interleave(sizes)
    centre = (weight * logits).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp_min(1e-9)
    logits = logits - torch.where(regression, 0.0, centre)
    slope, intercept = torch.ones(len(logits), 1, logits.shape[-1]), torch.zeros(len(logits), 1, logits.shape[-1])

    def weighted() -> tuple[Tensor, Tensor]:
        first, second = slopes(logits * slope + intercept, y, blocks, weight)
        return weight * first, weight * second

    for _ in range(STEPS):
        first, second = weighted()
        step = first.sum(1, keepdim=True) / (second.sum(1, keepdim=True) + PRIOR_RECORDS)
        intercept = intercept - step.clamp(-1, 1)
        first, second = weighted()
        step = ((first * logits).sum(1, keepdim=True) @ member) / (
            (second * logits**2).sum(1, keepdim=True) @ member + 1e-6
        )
        slope = (slope - (step @ member.T).clamp(-0.5, 0.5)).clamp(0.2, 5.0)
    return logits * slope + intercept
