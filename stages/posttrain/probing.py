"""Preview linear probing: the head of the new task, fitted on frozen features, from which fine-tuning starts.

The problem is convex, so it is solved (L-BFGS, the penalty chosen on validation records) where the paper runs some
epochs of AdamW: the same head, in seconds, without a learning rate.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stages.heads.targets.losses import task_losses
from stages.heads.targets.tasks import Block, n_columns

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""L2 penalties on weights of standardised features, beside the mean loss."""


@dataclass(frozen=True)
class Labelled:
    """Records with labels: model input or features [n, ...], targets and label weights [n, columns]."""

    x: Tensor
    y: Tensor
    known: Tensor


class Head(nn.Module):
    """Standardised features, one linear map. The scaling is that of the frozen backbone's training features.

    Parameters
    ----------
    absolute_error
        Whether regressions lose the absolute error instead of half the squared one.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int, blocks: tuple[Block, ...], *, absolute_error: bool = False) -> None:
        super().__init__()
        self.blocks, self.absolute_error = blocks, absolute_error
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.linear = nn.Linear(width, n_columns(blocks))
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def standardise(self, features: Tensor) -> None:
        """Take mean and deviation from features [n, width]; a constant feature keeps its scale."""
        deviation = features.std(0, correction=0)
        self.mean.copy_(features.mean(0))
        self.scale.copy_(torch.where(deviation > 1e-6, deviation, 1.0))

    def forward(self, features: Tensor) -> Tensor:
        """[batch, width] -> logits [batch, columns]."""
        return self.linear((features - self.mean) / self.scale)

    def loss(self, logits: Tensor, y: Tensor, known: Tensor) -> Tensor:
        """Mean loss over records; each has at least one label."""
        logits = logits.float()
        if self.absolute_error and all(block.task.kind == "regression" for block in self.blocks):
            return ((logits - y).abs() * known).mean()
        losses, _ = task_losses(logits, y, known, self.blocks)
        return losses.mean()


def fit_probe(head: Head, train: Labelled, validation: Labelled | None) -> float:
    """Fit the head on frozen features; return the penalty that validation records chose.

    Without validation records the middle penalty is taken.
    """
    head.standardise(train.x)
    strengths = STRENGTHS if validation is not None else (STRENGTHS[len(STRENGTHS) // 2],)
    best = (float("inf"), strengths[0], {k: v.clone() for k, v in head.state_dict().items()})
    for strength in sorted(strengths, reverse=True):
        _minimise(head, train, strength)
        judged = validation or train
        with torch.no_grad():
            loss = float(head.loss(head(judged.x), judged.y, judged.known))
        if loss < best[0]:
            best = (loss, strength, {k: v.clone() for k, v in head.state_dict().items()})
    head.load_state_dict(best[2])
    return best[1]


def _minimise(head: Head, train: Labelled, strength: float) -> None:
    optimizer = torch.optim.LBFGS(head.linear.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        loss = head.loss(head(train.x), train.y, train.known) + strength / 2 * head.linear.weight.square().sum()
        loss.backward()
        return float(loss.detach())

    optimizer.step(closure)
