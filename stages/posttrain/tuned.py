"""A backbone with the head of one task, to be fine-tuned: forward, features, groups of learning rates.

Not here: the loop (`stages.training`), the order of the steps (`stage`).
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stages.experts import Expert
from stages.heads.targets.losses import activate
from stages.posttrain.drop_path import StochasticDepth, residual_blocks
from stages.posttrain.inputs import RecordInputs
from stages.posttrain.joint import JointHead
from stages.posttrain.probing import Head
from stages.training.augment import augmented
from stages.training.memory import in_batches
from stages.training.settings import Augmentation


class Tuned(nn.Module):
    """Expert and head; takes prepared input [batch, windows, ...], the mean over windows of the embedding is scored."""

    def __init__(self, expert: Expert, head: Head | JointHead, depth: StochasticDepth | None) -> None:
        super().__init__()
        residual_blocks(expert)  # refuses an expert without a network
        self.expert, self.depth = expert, depth
        self.backbone: Any = expert.module
        self.head = head

    def features(self, x: Tensor) -> Tensor:
        """[batch, windows, ...] -> float32 [batch, width]."""
        if self.depth is not None:
            self.depth.n_records = len(x)
        embedding = self.expert.encode(x.flatten(0, 1)).embedding.float()
        return embedding.unflatten(0, x.shape[:2]).mean(1)

    def forward(self, x: Tensor, y: Tensor, known: Tensor) -> Tensor:
        """Loss of prepared input [batch, windows, ...] on targets [batch, columns]."""
        return self.head.loss(self.head(self.features(x)), y, known)

    @torch.no_grad()
    def frozen_features(self, inputs: RecordInputs, rows: np.ndarray, batch: int) -> Tensor:
        """Return the features [row, width] of judged inputs `rows`, in eval mode, on the network's device."""
        was_training, device = self.training, self.head.mean.device
        self.eval()

        def of(part: slice) -> Tensor:
            return self.features(inputs.read(rows[part]).to(device))

        parts = in_batches(len(rows), batch, of)
        self.train(was_training)
        return torch.cat(parts) if parts else torch.zeros(0, len(self.head.mean), device=device)

    def probabilities(self, features: Tensor) -> Tensor:
        """Probabilities (regression: standardised values) [n, columns] of features, on the CPU."""
        with torch.no_grad():
            return activate(self.head(features.to(self.head.mean.device)).float(), self.head.blocks).cpu()


def rate_groups(tuned: Tuned, layer_decay: float, half_decay: float = 1.0) -> list[dict[str, Any]]:
    """Parameter groups whose learning rate falls by `layer_decay` from block to block towards the input.

    What stands before the first block counts as one block more; the head and what follows the last have the full rate.
    With a `half_decay` the later blocks, and what follows the last, have that share of the head's rate, and what stands
    before has its square. Blocks are early as `Expert.early_blocks` says, or in the first half.
    """
    paths = [f"{path}." for path, _ in residual_blocks(tuned.expert)]
    groups: dict[int, list[nn.Parameter]] = {}
    reached = -1
    for name, parameter in tuned.backbone.named_parameters():
        inside = next((index for index, path in enumerate(paths) if name.startswith(path)), None)
        reached = max(reached, -1 if inside is None else inside)
        behind = len(paths) if reached == len(paths) - 1 else -1
        if parameter.requires_grad:
            groups.setdefault(behind if inside is None else inside, []).append(parameter)
    if half_decay != 1:
        return _two_groups(groups, early_blocks(tuned.expert), half_decay, list(tuned.head.parameters()))
    groups.setdefault(len(paths), []).extend(tuned.head.parameters())
    return [
        {"params": parameters, "scale": layer_decay ** (len(paths) - index)}
        for index, parameters in sorted(groups.items())
    ]


def early_blocks(expert: Expert) -> set[int]:
    """Return the numbers of the blocks that train most slowly with a `half_decay`."""
    paths = [path for path, _ in residual_blocks(expert)]
    if expert.early_blocks is None:
        return set(range(len(paths) // 2))
    return {index for index, path in enumerate(paths) if re.fullmatch(expert.early_blocks, path)}


def _two_groups(
    groups: dict[int, list[nn.Parameter]], slow: set[int], decay: float, head: list[nn.Parameter]
) -> list[dict[str, Any]]:
    slow = {-1, *slow}  # and what stands before the first block
    early = [parameter for index, part in sorted(groups.items()) if index in slow for parameter in part]
    late = [parameter for index, part in sorted(groups.items()) if index not in slow for parameter in part]
    scaled = ((early, decay**2), (late, decay), (head, 1.0))
    return [{"params": parameters, "scale": scale} for parameters, scale in scaled if parameters]


class TaskBatches:
    """Labelled records as the loop fetches them: as they are, or changed and mixed."""

    def __init__(
        self,
        inputs: RecordInputs,
        positions: np.ndarray,
        y: Tensor,
        known: Tensor,
        *,
        augment: Augmentation | None = None,
        mixup: float = 0.0,
    ) -> None:
        self.inputs, self.positions, self.y, self.known = inputs, positions, y, known
        self.augment, self.mixup = augment or Augmentation(), mixup

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.positions)

    def fetch(self, rows: np.ndarray, generator: np.random.Generator) -> tuple[Tensor, ...]:
        """Return input, targets and label weights of records `rows`."""
        x = self.inputs.draw(self.positions[rows], generator)
        chosen = torch.from_numpy(self.positions[rows])
        batch = x, self.y[chosen], self.known[chosen]
        if self.augment.changes:
            batch = (augmented(x, self.augment, generator), *batch[1:])
        return mixed(*batch, self.mixup, generator) if self.mixup else batch


def mixed(
    x: Tensor, y: Tensor, known: Tensor, strength: float, generator: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Mix every record with another of its batch (mixup: Zhang et al., ICLR 2018, arXiv 1710.09412).

    Labels are mixed as the records are; one that either of the two lacks is missing.

    Parameters
    ----------
    x, y, known
        Input, targets and label weights, each with the records as its first axis.
    strength
        Parameter of the Beta distribution that the share, one for the batch, is drawn from.
    """
    share = generator.beta(strength, strength)
    share = max(share, 1 - share)
    other = torch.from_numpy(generator.permutation(len(x)))
    return share * x + (1 - share) * x[other], share * y + (1 - share) * y[other], known * known[other]


def set_dropout(module: nn.Module, rate: float | None) -> None:
    """Set every dropout layer's rate; None leaves the expert's own."""
    for layer in module.modules():
        if rate is not None and isinstance(layer, nn.Dropout):
            layer.p = rate
