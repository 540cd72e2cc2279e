"""The benchmark's heads and how it trains them: AdamW at a constant rate, the epoch of the best validation metric.

Lives here: the two heads, the loss, the loop. Not here: where inputs come from (`inputs`), intervals (`board`).

Facts (AI4HealthUOL/ecg-fm-benchmarking 6367295: main_lite.py, main_lite_base.py, main_lite_ecg.py): binary
cross-entropy, or the absolute error of a regression; an epoch sees each record once, in one crop drawn at random; the
last incomplete batch is dropped; predictions (probabilities) of a record's crops are averaged; the kept epoch is that
of the best macro AUROC on validation records.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.heads.layers.attention_pool import HEADS, AttentionPool
from stages.heads.targets.losses import activate
from stages.heads.targets.tasks import TaskSpec, layout
from stages.leaderboard.settings import LeaderboardSettings

PREDICT_ROWS = 128
Judge = Callable[[np.ndarray], float]
"""Metric of validation predictions [record, columns]; higher is better; NaN where undefined."""


class HeadInputs(Protocol):
    """What a head reads: records with one or more crops."""

    @property
    def present(self) -> np.ndarray:
        """Which crops there are, bool [record, crop]."""

    def read(self, rows: np.ndarray, crops: np.ndarray) -> Tensor:
        """Return float32 [k, dim], or [k, token, dim], of one crop of each row."""


class FrozenHead(nn.Module):
    """Attention pooling over tokens [batch, token, dim], straight to the columns; no bias, as published.

    16 heads, or as many below that as divide the width.
    """

    def __init__(self, dim: int, columns: int) -> None:
        super().__init__()
        heads = next(n for n in range(min(HEADS, dim), 0, -1) if dim % n == 0)
        self.pool = AttentionPool(dim, heads)
        self.c_proj = nn.Linear(dim, columns, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """[batch, token, dim] -> logits [batch, columns]."""
        return self.c_proj(self.pool(tokens))


@dataclass(frozen=True)
class TaskLabels:
    """Targets of all records, standardised where they are a regression's: y and known, float32 [record, columns]."""

    task: TaskSpec
    y: Tensor
    known: Tensor


@dataclass(frozen=True)
class TrainedHead:
    """A trained head, the epoch that was kept (from 1) and its metric on validation records."""

    head: nn.Module
    epoch: int
    validation: float


def protocol_loss(logits: Tensor, y: Tensor, known: Tensor, kind: str) -> Tensor:
    """Loss of a batch: each column's mean over its labelled records, averaged over the columns that have some.

    Multiclass tasks, which the benchmark writes as one column a class, have cross-entropy.
    """
    if kind == "multiclass":
        rows = known[:, 0] > 0
        return -(y * logits.log_softmax(-1)).sum(-1)[rows].mean() if rows.any() else logits.sum() * 0
    if kind == "regression":
        losses = (logits - y).abs()
    else:
        losses = F.binary_cross_entropy_with_logits(logits, y, reduction="none")
    n = known.sum(0)
    return ((losses * known).sum(0) / n.clamp_min(1))[n > 0].sum() / (n > 0).sum().clamp_min(1)


def train(
    head: nn.Module,
    inputs: HeadInputs,
    labels: TaskLabels,
    rows: tuple[np.ndarray, np.ndarray],
    judge: Judge,
    settings: LeaderboardSettings,
) -> TrainedHead:
    """Train a head on the rows of the first split and keep the epoch that does best on those of the second.

    Where no epoch has a defined metric (a validation split of one class) the last one is kept.
    """
    train_rows, val_rows = rows
    rng = np.random.default_rng(settings.seed)
    optimiser = torch.optim.AdamW(head.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    best = (-np.inf, settings.epochs, copied(head))
    for epoch in range(1, settings.epochs + 1):
        for batch in batches(train_rows, settings.batch_size, rng):
            optimiser.zero_grad()
            x, chosen = inputs.read(batch, drawn_crops(inputs.present[batch], rng)), torch.from_numpy(batch)
            protocol_loss(head(x), labels.y[chosen], labels.known[chosen], labels.task.kind).backward()
            optimiser.step()
        value = judge(predict(head, inputs, labels.task, val_rows)) if len(val_rows) else np.nan
        if value > best[0]:
            best = (value, epoch, copied(head))
    if not np.isfinite(best[0]):
        return TrainedHead(head, settings.epochs, np.nan)
    head.load_state_dict(best[2])
    return TrainedHead(head, best[1], float(best[0]))


def batches(rows: np.ndarray, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Shuffle rows into batches; an incomplete last one is dropped, unless it is the only one."""
    shuffled = rows[rng.permutation(len(rows))]
    whole = max(1, len(rows) // size)
    return [shuffled[k * size : (k + 1) * size] for k in range(whole)]


def drawn_crops(present: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw one of the crops that are there, of each record [k] of bool [k, crop]."""
    return np.argmax(np.where(present, rng.random(present.shape), -1.0), axis=1)


def predict(head: nn.Module, inputs: HeadInputs, task: TaskSpec, rows: np.ndarray) -> np.ndarray:
    """Return the mean over a record's crops of its predictions, float32 [record, columns]; regressions standardised."""
    blocks = layout([task])
    total = np.zeros((len(rows), task.n_outputs), np.float32)
    with torch.no_grad():
        for start in range(0, len(rows), PREDICT_ROWS):
            part = slice(start, start + PREDICT_ROWS)
            present = inputs.present[rows[part]]
            records, crops = np.nonzero(present)
            said = activate(head(inputs.read(rows[part][records], crops)), blocks).numpy()
            np.add.at(total[part], records, said / present.sum(1)[records, None])
    return total


def copied(head: nn.Module) -> dict[str, Any]:
    """Copy a head's parameters."""
    return {name: value.clone() for name, value in head.state_dict().items()}
