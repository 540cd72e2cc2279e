"""One pass over all records: gradients of the summed losses of every fold, model, penalty and column.

Lives here: `Labels` (targets of a block), the pass. Not here: the solver (`descent`), stochastic training
(`blockwise.lora`).

Cox's gradient depends on who is at risk, that is on log-hazards of all records. A pass with survival tasks reads the
records twice: for all log-hazards (one number a record, fold, model, penalty and task), then for the gradient.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.heads.blockwise.blocks import Blocks
from stages.heads.blockwise.coordinates import FoldGradients, FoldMaps, RecordBlock
from stages.heads.crossfit import Masks
from stages.heads.in_memory.probe import problem_groups
from stages.heads.targets.losses import residuals_
from stages.heads.targets.tasks import Block as Columns
from stages.heads.targets.tasks import layout


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
        self.survival = [b for b in labels.blocks if b.task.kind == "survival"]
        others = itertools.groupby(labels.blocks, lambda b: b.task.kind == "survival")
        self.separable = [tuple(run) for is_survival, run in others if not is_survival]

    def __call__(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return gradients of the summed losses, [F, D, k] and [F, k]."""
        scale = self.blocks.scale
        maps, gradients = FoldMaps(scale, weight, bias), FoldGradients(scale, weight.shape[2])
        of_survival = self._survival_residuals(maps)
        for rows, block in self._records():
            y, w = self.labels.of(rows, scale.device)
            logits = self._logits(maps, block)
            for columns in self.separable:
                inside = layout([b.task for b in columns])
                c = slice(columns[0].start, columns[-1].stop)
                residuals_(logits[..., c], y[:, :, :, None][..., c], inside)
            for number, of_task in enumerate(self.survival):
                logits[..., of_task.start] = of_survival[number][rows]
            gradients.add(block, logits.mul_(w[:, :, :, None]).flatten(2))
        return gradients.result()

    def _records(self) -> Iterable[tuple[slice | Tensor, RecordBlock]]:
        return self.blocks if self.alone is None else [(slice(0, self.labels.y.shape[1]), self.alone)]

    def _logits(self, maps: FoldMaps, block: RecordBlock) -> Tensor:
        """[b, F, M, S, C]."""
        return maps(block).view(len(block), *self.labels.train.shape[:2], self.n_strengths, -1)

    def _survival_residuals(self, maps: FoldMaps) -> list[Tensor]:
        """Gradients by the log-hazards of each survival task, [n, F, M, S]."""
        if not self.survival:
            return []
        columns, inside = [b.start for b in self.survival], layout([b.task for b in self.survival])
        logits = torch.cat([self._logits(maps, block)[..., columns] for _, block in self._records()])
        of = self.labels
        labels = Labels(of.y[..., columns], of.weight[..., columns], of.train, inside)
        y, w = labels.of(slice(0, of.y.shape[1]), logits.device)
        for f in range(logits.shape[1]):  # one by one: running sums are in double precision
            residuals_(logits[:, f], y[:, f, :, None], inside, w[:, f, :, None], axis=0)
        return list(logits.unbind(-1))
