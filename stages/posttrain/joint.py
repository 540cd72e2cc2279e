"""A head that is trained with its backbone from the start, for several tasks and an embedding in several parts.

Where an embedding is that of several networks side by side (`Expert.embedding_parts`), each part has its own linear map
and its own loss, so that no network leans on another; what is predicted is the mean of their logits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stages.heads.targets.losses import task_losses
from stages.heads.targets.tasks import Block, n_columns


class JointHead(nn.Module):
    """Batch normalisation, dropout, and one linear map for each part of the embedding.

    Attributes
    ----------
    mean
        Running mean of the features: where the head is, and its device.
    """

    def __init__(self, width: int, blocks: tuple[Block, ...], parts: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.blocks, self.parts = blocks, parts
        self.norm, self.dropout = nn.BatchNorm1d(width), nn.Dropout(dropout)
        self.linears = nn.ModuleList(nn.Linear(width // parts, n_columns(blocks)) for _ in range(parts))

    @property
    def mean(self) -> Tensor:
        """Running mean of the features [width]."""
        mean = self.norm.running_mean
        assert mean is not None
        return mean

    def forward(self, features: Tensor) -> Tensor:
        """[batch, width] -> logits [batch, part, columns] in training, their mean over parts [batch, columns] else."""
        features = self.dropout(self.norm(features)).unflatten(1, (self.parts, -1))
        logits = torch.stack([linear(features[:, k]) for k, linear in enumerate(self.linears)], dim=1)
        return logits if self.training else logits.mean(1)

    def loss(self, logits: Tensor, y: Tensor, known: Tensor) -> Tensor:
        """Mean loss over records, parts and tasks; a task that a record has no label of counts as 0."""
        if logits.ndim == 3:
            y, known = y[:, None], known[:, None]
        losses, _ = task_losses(logits.float(), y, known, self.blocks)
        return losses.mean()
