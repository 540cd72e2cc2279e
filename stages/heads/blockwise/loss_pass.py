"""One pass over all records: gradients of the summed losses of every fold, model, penalty and column.

Lives here: `Labels` (targets of a block), the pass. Not here: the solver (`descent`), stochastic training
(`blockwise.lora`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stages.heads.blockwise.blocks import Blocks
from stages.heads.blockwise.coordinates import FoldGradients, FoldMaps, RecordBlock
from stages.heads.crossfit import Masks
from stages.heads.in_memory.probe import problem_groups
from stages.heads.targets.losses import residuals_
from stages.heads.targets.tasks import Block as Columns


@dataclass(frozen=True)
class Labels:
    """Targets and weights [F, n, C] and training masks [F, M, n] of all records, wherever they lie."""

    y: Tensor
    weight: Tensor
    train: Tensor
    blocks: tuple[Columns, ...]

    def of(self, rows: slice | Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Targets [b, F, 1, C] and training weights [b, F, M, C] of some records."""
        y = self.y[:, rows].transpose(0, 1)[:, :, None].to(device)
        weight = self.weight[:, rows].transpose(0, 1)[:, :, None].to(device)
        return y, weight * self.train[:, :, rows].permute(2, 0, 1)[..., None].to(device)

    def take(self, rows: Tensor) -> Labels:
        """Select records."""
        return Labels(self.y[:, rows], self.weight[:, rows], self.train[:, :, rows], self.blocks)


@dataclass(frozen=True)
class Judges:
    """The records that judge: shared coordinates, labels, and which model may judge which."""

    block: RecordBlock
    labels: Labels
    masks: Masks

    def logits(self, maps: FoldMaps, n_models: int) -> Tensor:
        """[F, M, rows, C] (or more columns, as the maps have them), on the CPU."""
        out = maps(self.block)
        return out.view(*out.shape[:2], n_models, -1).permute(1, 2, 0, 3).cpu()


class Pass:
    """Gradients of linear models, over all blocks or over one that is given.

    Parameters
    ----------
    n_strengths
        S: columns are [M, S, C].
    """

    def __init__(self, blocks: Blocks, labels: Labels, n_strengths: int = 1, alone: RecordBlock | None = None) -> None:
        self.blocks, self.labels, self.n_strengths, self.alone = blocks, labels, n_strengths, alone
        self.groups = problem_groups(labels.blocks)

    def __call__(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return gradients of the summed losses, [F, D, k] and [F, k]."""
        scale = self.blocks.scale
        maps, gradients = FoldMaps(scale, weight, bias), FoldGradients(scale, weight.shape[2])
        n_folds, n_models = self.labels.train.shape[:2]
        whole = slice(0, self.labels.y.shape[1])
        for rows, block in self.blocks if self.alone is None else [(whole, self.alone)]:
            y, w = self.labels.of(rows, scale.device)
            logits = maps(block).view(len(block), n_folds, n_models, self.n_strengths, -1)
            residuals_(logits, y[:, :, :, None], self.labels.blocks)
            gradients.add(block, logits.mul_(w[:, :, :, None]).view(len(block), n_folds, -1))
        return gradients.result()
