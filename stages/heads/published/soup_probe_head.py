"""ECG-Soup's probe head, trained: what the low-rank heads are compared with as published.

Lives here: `ProbeHeads`. Not here: the module (`layer_mix.ProbeHead`), the other reference methods
(`baselines.methods`).
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.heads.baselines.base import Given, Reference
from stages.heads.baselines.full_rank import average_experts, training_masks
from stages.heads.estimator import Predictions
from stages.heads.inputs.expert_features import mix_layers, read_features
from stages.heads.inputs.scaler import RobustScaler
from stages.heads.layers.layer_mix import ProbeHead
from stages.heads.targets.calibration import fit_temperatures
from stages.heads.targets.losses import task_losses
from stages.heads.targets.tasks import Block

LEARNING_RATE, WEIGHT_DECAY, BATCH = 1e-3, 0.05, 64
"""Of ECG-Soup's linear probe."""
FEATURES = ("ppa",)
"""The layer-normed mean of the layers; an expert without layers gives its embedding."""


class ProbeHeads(Reference):
    """Per expert, fold and task BN - Dropout - Linear - ReLU - BN - Dropout - Linear, experts averaged.

    Reads standardised PPA-mixed layers, or the embedding of an expert without layers. AdamW 1e-3, weight decay 0.05,
    batch 64; the epoch of the lowest validation loss is kept. Without validation rows, a fifth of the training groups
    is held out for that.

    Parameters
    ----------
    epochs, patience
        At most so many; epochs without a better one after which a head is finished.
    on_unusable, seed
        As `EnsembleHeads`.
    """

    def __init__(self, *, epochs: int = 100, patience: int = 10, on_unusable: str = "error", seed: int = 42) -> None:
        self.epochs = epochs
        self.patience = patience
        self.on_unusable = on_unusable
        self.seed = seed

    def _fit(self, given: Given) -> None:
        """Train every expert's heads, one after the other."""
        read = given.read()
        n = len(next(iter(read.values())))
        folds, groups = given.folds(n)
        data = given.read_targets(folds, n, self.on_unusable)
        train, judged = training_masks(folds, n, groups, self.seed)
        self.data_, self.tasks_ = data, tuple(b.task for b in data.blocks)
        self.skipped_, self.n_folds_ = data.skipped, len(folds)
        self.experts_: dict[str, tuple[list[RobustScaler], list[list[ProbeHead]], Tensor]] = {}
        for name, value in read.items():
            x = mix_layers(name, value, FEATURES, None)
            seen = torch.from_numpy(value.present).float()
            self.experts_[name] = self._fit_expert(x, train * seen, judged * seen)
        trained = [head for _, heads, _ in self.experts_.values() for head in heads[0]]
        self.n_trainable_ = sum(p.numel() for head in trained for p in head.parameters())
        self._fit_hazards(given, data, judged.numpy())

    def _fit_expert(
        self, x: np.ndarray, train: Tensor, judged: Tensor
    ) -> tuple[list[RobustScaler], list[list[ProbeHead]], Tensor]:
        data, scalers, heads, logits = self.data_, [], [], []
        for f, mask in enumerate(train):
            rows = torch.nonzero(mask).ravel()
            scalers.append(RobustScaler.fit(x[rows.numpy()]))
            z = torch.from_numpy(scalers[-1].transform(x))
            val = torch.nonzero(judged[f]).ravel()
            heads.append([self._train(z, rows, val, f, block) for block in data.blocks])
            logits.append(_logits(heads[-1], z))
        temperature = fit_temperatures(torch.stack(logits), data.y, data.known * judged[..., None], data.blocks)
        return scalers, heads, temperature

    def _train(self, z: Tensor, train: Tensor, val: Tensor, fold: int, block: Block) -> ProbeHead:
        """Train one head on coordinates [n, d], and return it as it was after its best epoch."""
        alone = (replace(block, start=0, stop=block.stop - block.start),)
        y, weight = self.data_.y[fold, :, block.columns], self.data_.weight[fold, :, block.columns]

        def loss_of(head: ProbeHead, rows: Tensor) -> Tensor:
            loss, w = task_losses(head(z[rows]), y[rows], weight[rows], alone, huber=True)
            return (loss * w).sum() / w.sum().clamp_min(1e-9)

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            head = ProbeHead(z.shape[1], alone[0].stop)
            optimiser = torch.optim.AdamW(head.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
            best, kept, since = torch.inf, deepcopy(head.state_dict()), 0
            for _ in range(self.epochs):
                head.train()
                for rows in train[torch.randperm(len(train))].split(BATCH):
                    if len(rows) > 1:  # one record has no variance to normalise by
                        optimiser.zero_grad()
                        loss_of(head, rows).backward()
                        optimiser.step()
                with torch.no_grad():
                    loss, since = float(loss_of(head.eval(), val)), since + 1
                if loss < best:
                    best, kept, since = loss, deepcopy(head.state_dict()), 0
                if since >= self.patience:
                    break
        head.load_state_dict(kept)
        return head.eval()

    def fold_means(self, features: Mapping[str, Any], fold: int, signal: np.ndarray | None) -> Predictions:  # noqa: ARG002
        """Average the experts' calibrated logits."""
        logits, present = [], []
        for name, value in read_features(features).items():
            scalers, heads, temperature = self.experts_[name]
            z = torch.from_numpy(scalers[fold].transform(mix_layers(name, value, FEATURES, None)))
            logits.append((_logits(heads[fold], z) / temperature[fold]).numpy())
            present.append(value.present.astype(np.float32))
        return average_experts(logits, present, self.data_, fold, self._hazards(fold))


@torch.no_grad()
def _logits(heads: list[ProbeHead], z: Tensor) -> Tensor:
    """Logits [n, C] of all tasks."""
    return torch.cat([head(z) for head in heads], 1)
