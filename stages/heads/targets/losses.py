"""Losses over stacked task columns, with missing labels masked: value per record, and gradient with respect to logits.

Lives here: squared, Huber, binary and multinomial cross-entropy, class-balance weights; Cox's partial likelihood is
called from here. Not here: its arithmetic (`survival.partial_likelihood`), what minimises losses (`in_memory.probe`,
`in_memory.lora`, `gate`).

Every function takes logits [..., C], whose last axis is laid out by `tasks.layout`, and broadcasts the leading axes.
A survival task's loss depends on who is at risk: the records along `axis` whose weight is above 0.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.heads.survival.partial_likelihood import terms_along
from stages.heads.targets.tasks import Block

LINEAR = ("regression", "survival")
"""Kinds whose logit is the answer itself: no class is weighed, no probability calibrated."""
HUBER_DELTA = 1.345
"""95 % efficiency at the normal distribution (Huber 1981), in units of the standardised target."""


def activate(logits: Tensor, blocks: tuple[Block, ...]) -> Tensor:
    """Turn logits into means: identity (regression, survival), sigmoid (binary, multilabel), softmax (multiclass)."""
    parts = []
    for block in blocks:
        part = logits[..., block.columns]
        if block.task.kind == "multiclass":
            part = part.softmax(-1)
        elif block.task.kind not in LINEAR:
            part = part.sigmoid()
        parts.append(part)
    return torch.cat(parts, -1)


def residuals_(
    logits: Tensor, y: Tensor, blocks: tuple[Block, ...], weight: Tensor | None = None, axis: int = -2
) -> None:
    """Turn logits [..., C], in place, into the gradient of the column losses there (squared error for regression)."""
    for block in blocks:
        c = block.columns
        part = logits[..., c]
        if block.task.kind == "survival":
            at_risk = None if weight is None else weight[..., c]
            part.copy_(terms_along(part, y[..., c], at_risk, axis).slopes()[0].movedim(-1, axis))
            continue
        if block.task.kind == "multiclass":
            part.copy_(part.softmax(-1))
        elif block.task.kind != "regression":
            part.sigmoid_()
        part.sub_(y[..., c])


def slopes(
    logits: Tensor, y: Tensor, blocks: tuple[Block, ...], weight: Tensor, axis: int = -2
) -> tuple[Tensor, Tensor]:
    """First and (diagonal) second derivative of the column losses by the logits, [..., C], of unit weight."""
    first, second = [], []
    for block in blocks:
        c = block.columns
        part, target = logits[..., c], y[..., c]
        if block.task.kind == "survival":
            one, two = (x.movedim(-1, axis) for x in terms_along(part, target, weight[..., c], axis).slopes())
        else:
            mean = activate(part, (replace(block, start=0, stop=block.stop - block.start),))
            one = mean - target
            two = torch.ones_like(one) if block.task.kind == "regression" else (mean * (1 - mean)).expand_as(one)
        first.append(one)
        second.append(two)
    return torch.cat(first, -1), torch.cat(second, -1)


def curvature_bounds(blocks: tuple[Block, ...]) -> Tensor:
    """Upper bound of each column's second derivative, [C]: 1 squared, 1/4 logistic, 1/2 softmax (Boehning 1992).

    Cox's has none for a record; its sum over all is at most the number of events, so that 1 is safe at the start.
    """
    bound = {"regression": 1.0, "binary": 0.25, "multilabel": 0.25, "multiclass": 0.5, "survival": 1.0}
    return torch.cat([torch.full((b.stop - b.start,), bound[b.task.kind]) for b in blocks])


def column_losses(
    logits: Tensor, y: Tensor, block: Block, *, huber: bool = False, weight: Tensor | None = None, axis: int = -2
) -> Tensor:
    """Loss of one task per record and column; multinomial loss stands in column 0 of its block, zeros elsewhere.

    Parameters
    ----------
    weight
        [..., C]; read of survival tasks alone. None: all records are at risk.
    """
    part, target = logits[..., block.columns], y[..., block.columns]
    if block.task.kind == "survival":
        at_risk = None if weight is None else weight[..., block.columns]
        return terms_along(part, target, at_risk, axis).losses().movedim(-1, axis)
    if block.task.kind == "regression":
        if huber:
            part, target = torch.broadcast_tensors(part, target)
            return F.huber_loss(part, target, reduction="none", delta=HUBER_DELTA)
        return 0.5 * (part - target) ** 2
    if block.task.kind == "multiclass":
        loss = -(target * part.log_softmax(-1)).sum(-1, keepdim=True)
        return F.pad(loss, (0, block.stop - block.start - 1))
    return F.softplus(part) - target * part


def task_losses(
    logits: Tensor, y: Tensor, weight: Tensor, blocks: tuple[Block, ...], *, huber: bool = False, axis: int = -2
) -> tuple[Tensor, Tensor]:
    """Loss and weight of every record and task.

    Parameters
    ----------
    logits, y, weight
        [..., C]; a weight of 0 marks a missing label.

    Returns
    -------
    loss, weight : [..., T]
        The loss is the weighted mean over a task's labelled columns, 0 where the record has no label; the weight is
        the mean weight of those columns, 0 where there are none.
    """
    losses, weights = [], []
    for block in blocks:
        loss = column_losses(logits, y, block, huber=huber, weight=weight, axis=axis)
        w = weight[..., block.columns]
        if block.task.kind == "multiclass":
            loss, w = loss[..., :1], w[..., :1]
        total = w.sum(-1)
        losses.append((loss * w).sum(-1) / total.clamp_min(1e-12))
        weights.append((total / (w > 0).sum(-1).clamp_min(1)).expand(losses[-1].shape))
    return torch.stack(losses, -1), torch.stack(weights, -1)


def balance_weights(y: Tensor, known: Tensor, train: Tensor, blocks: tuple[Block, ...]) -> Tensor:
    """Weights that make the classes of every task count alike, mean 1 over its labelled training records.

    Parameters
    ----------
    y, known
        [n, C].
    train
        bool [n].

    Returns
    -------
    [n, C], 0 where a label is missing.
    """
    out = known.clone()
    for block in blocks:
        if block.task.kind in LINEAR:
            continue
        t, k = y[:, block.columns], known[:, block.columns]
        kt = k * train[:, None]
        positives, seen = (t * kt).sum(0), kt.sum(0)
        if block.task.kind == "multiclass":
            present = (positives > 0).sum().clamp_min(1)
            per_class = seen / (present * positives.clamp_min(1))
            out[:, block.columns] = k * (t * per_class).sum(1, keepdim=True)
        else:
            up, down = seen / (2 * positives.clamp_min(1)), seen / (2 * (seen - positives).clamp_min(1))
            out[:, block.columns] = k * torch.where(t > 0, up, down)
    return out
