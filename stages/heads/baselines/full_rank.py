"""Full-rank heads: an MLP per expert and task, trained without restriction; what the low-rank heads are compared with.

Lives here: `FullRank`. Not here: the other reference methods (`baselines.methods`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.heads.baselines.base import Given, Reference
from stages.heads.crossfit import Split, make_masks
from stages.heads.estimator import Predictions
from stages.heads.fold_model import mix_arrays, to_means
from stages.heads.in_memory.probe import Rotation, pad_stack
from stages.heads.inputs.expert_features import mix_layers, parse_mix, read_features
from stages.heads.inputs.scaler import RobustScaler
from stages.heads.targets.calibration import fit_temperatures
from stages.heads.targets.losses import task_losses
from stages.heads.targets.standardised import Targets
from stages.heads.targets.tasks import Block

LEARNING_RATE, WEIGHT_DECAY, DROPOUT = 1e-3, 0.05, 0.25


class FullRank(Reference):
    """Per expert and task Linear(d, hidden) - ReLU - Dropout - Linear(hidden, outputs), experts averaged.

    The last axis of features is rotated to principal coordinates first, which a full first layer cannot tell from the
    features themselves. Best validation epoch kept per fold and task; without validation rows, a fifth of the training
    groups is held out for that.

    Parameters
    ----------
    hidden, epochs, patience, layer_mix, on_unusable, seed
        Width of the hidden layer, and as `EnsembleHeads`.
    """

    def __init__(
        self,
        *,
        hidden: int = 64,
        epochs: int = 40,
        patience: int = 8,
        layer_mix: str = "embedding+ppa",
        on_unusable: str = "error",
        seed: int = 42,
    ) -> None:
        self.hidden = hidden
        self.epochs = epochs
        self.patience = patience
        self.layer_mix = layer_mix
        self.on_unusable = on_unusable
        self.seed = seed

    def _fit(self, given: Given) -> None:
        """Train every expert's MLPs, all folds and tasks at once."""
        read = given.read()
        n = len(next(iter(read.values())))
        folds, groups = given.folds(n)
        data = given.read_targets(folds, n, self.on_unusable)
        train, judged = training_masks(folds, n, groups, self.seed)
        self.data_, self.tasks_ = data, tuple(b.task for b in data.blocks)
        self.skipped_, self.n_folds_ = data.skipped, len(folds)
        self.experts_: dict[str, tuple[list[RobustScaler], list[Rotation], list[Tensor], Tensor]] = {}
        for name, value in read.items():
            x = mix_layers(name, value, parse_mix(self.layer_mix), None)
            self.experts_[name] = self._fit_expert(x, torch.from_numpy(value.present).float(), train, judged, data)
        self.n_trainable_ = sum(p[0].numel() for e in self.experts_.values() for p in e[2])
        self._fit_hazards(given, data, judged.numpy())

    def _fit_expert(
        self, x: np.ndarray, present: Tensor, train: Tensor, judged: Tensor, data: Targets
    ) -> tuple[list[RobustScaler], list[Rotation], list[Tensor], Tensor]:
        train, judged = train * present, judged * present
        scalers, rotations, parts = [], [], []
        for mask in train:
            rows = torch.nonzero(mask).ravel().numpy()
            scalers.append(RobustScaler.fit(x[rows]))
            standard = scalers[-1].transform(x)
            rotations.append(Rotation.fit(standard[rows], self.seed))
            parts.append(rotations[-1].transform(standard))
        z = pad_stack(parts)
        parameters, logits = self._train(z, train, judged, data)
        known = data.known * judged[..., None]
        return scalers, rotations, parameters, fit_temperatures(logits, data.y, known, data.blocks)

    def _train(self, z: Tensor, train: Tensor, judged: Tensor, data: Targets) -> tuple[list[Tensor], Tensor]:
        """Train [F, T] MLPs; returns the parameters of each one's best epoch, and all logits [F, n, C]."""
        generator = torch.Generator().manual_seed(self.seed)
        p = _start(z.shape[0], z.shape[2], self.hidden, data.blocks, generator)
        optimiser = torch.optim.AdamW(p, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, foreach=True)
        best = torch.full((z.shape[0], len(data.blocks)), torch.inf)
        kept, since = [v.detach().clone() for v in p], 0
        rows = torch.nonzero(train.amax(0)).ravel()
        batch = int(min(2048, max(32, len(rows) // 8)))
        for _ in range(self.epochs):
            for part in rows[torch.randperm(len(rows), generator=generator)].split(batch):
                logits = _mlp(p, z[:, part], data.blocks, generator)
                loss = _mean_loss(logits, data, train, part).sum()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            with torch.no_grad():
                loss = _mean_loss(_mlp(p, z, data.blocks, None), data, judged, slice(None))
            better, since = loss < best, since + 1
            if bool(better.any()):
                best, since = torch.where(better, loss, best), 0
                kept = _keep(better, [v.detach() for v in p], kept, data.blocks)
            if since >= self.patience:
                break
        return kept, _mlp(kept, z, data.blocks, None)

    def fold_means(self, features: Mapping[str, Any], fold: int, signal: np.ndarray | None) -> Predictions:  # noqa: ARG002
        """Average the experts' calibrated logits."""
        data, logits, present = self.data_, [], []
        for name, value in read_features(features).items():
            scalers, rotations, p, temperature = self.experts_[name]
            x = scalers[fold].transform(mix_layers(name, value, parse_mix(self.layer_mix), None))
            z = torch.from_numpy(rotations[fold].transform(x))
            of_fold = [v[fold : fold + 1] for v in p]
            of_fold[0] = of_fold[0][:, :, : z.shape[1]]
            logits.append((_mlp(of_fold, z[None], data.blocks, None)[0] / temperature[fold]).numpy())
            present.append(value.present.astype(np.float32))
        return average_experts(logits, present, data, fold, self._hazards(fold))


def training_masks(folds: list[Split], n: int, groups: np.ndarray | None, seed: int) -> tuple[Tensor, Tensor]:
    """Training and validation masks [F, n]; without validation rows, a fifth of the training groups validates."""
    if all(len(val) for _, val, _ in folds):
        masks = make_masks(folds, n, groups, 0, seed)
        return masks.train[:, 0], masks.judged
    masks = make_masks([(tr, np.empty(0, np.int64), te) for tr, _, te in folds], n, groups, 5, seed)
    return masks.train[:, 1], (masks.judge == 1).float()


def average_experts(
    logits: list[np.ndarray], present: list[np.ndarray], data: Targets, fold: int, hazards: np.ndarray | None
) -> Predictions:
    """Mean of the present experts' logits (each [n, C], presence [n]) as probabilities and values."""
    seen = np.stack(present, 1)
    weights = seen / np.maximum(seen.sum(1, keepdims=True), 1)
    weights = np.repeat(weights[:, None], len(data.blocks), 1).astype(np.float32)
    mixed = mix_arrays(weights, np.stack(logits, 1), seen, data.blocks)
    return to_means(mixed, data.centre[fold], data.scale[fold], data.blocks, hazards)


def _start(
    n_folds: int, width: int, hidden: int, blocks: tuple[Block, ...], generator: torch.Generator
) -> list[Tensor]:
    """W1 [F, T, r, H] (coordinates have mean squared length 1), b1 [F, T, H], W2 [F, H, C], b2 [F, C]."""
    w1 = torch.randn(1, len(blocks), width, hidden, generator=generator)
    w2 = torch.randn(1, hidden, blocks[-1].stop, generator=generator) * hidden**-0.5
    tensors = [
        w1.expand(n_folds, -1, -1, -1).contiguous(),
        torch.zeros(n_folds, len(blocks), hidden),
        w2.expand(n_folds, -1, -1).contiguous(),
        torch.zeros(n_folds, blocks[-1].stop),
    ]
    return [t.requires_grad_() for t in tensors]


def _mlp(p: list[Tensor], z: Tensor, blocks: tuple[Block, ...], generator: torch.Generator | None) -> Tensor:
    """Logits [F, b, C]; dropout where a generator is given."""
    w1, b1, w2, b2 = p
    hidden = (torch.einsum("fnr,ftrh->ftnh", z, w1) + b1[:, :, None]).relu()
    if generator is not None:
        kept = torch.rand(hidden.shape, generator=generator) >= DROPOUT
        hidden = hidden * kept / (1 - DROPOUT)
    return torch.cat([hidden[:, t] @ w2[..., b.columns] for t, b in enumerate(blocks)], -1) + b2[:, None]


def _mean_loss(logits: Tensor, data: Targets, mask: Tensor, rows: Tensor | slice) -> Tensor:
    """Weighted mean loss [F, T] of the rows given."""
    weight = data.weight[:, rows] * mask[:, rows, None]
    loss, w = task_losses(logits, data.y[:, rows], weight, data.blocks, huber=True)
    return (loss * w).sum(1) / w.sum(1).clamp_min(1e-9)


def _keep(better: Tensor, new: list[Tensor], old: list[Tensor], blocks: tuple[Block, ...]) -> list[Tensor]:
    """Take `new` for the folds and tasks [F, T] that are better."""
    sizes = torch.tensor([b.stop - b.start for b in blocks])
    columns = better.repeat_interleave(sizes, 1)
    masks = (better[:, :, None, None], better[:, :, None], columns[:, None], columns)
    return [torch.where(m, v, k) for m, v, k in zip(masks, new, old, strict=True)]
