"""Targets as heads learn them: laid out in columns, regression standardised by each fold's training rows.

Not here: what a task is (`targets.tasks`), losses (`targets.losses`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache.errors import InputError
from stages.heads.crossfit import Split
from stages.heads.targets.losses import balance_weights
from stages.heads.targets.tasks import Block, TaskSpec, encode, layout, unusable


@dataclass
class Targets:
    """Standardised targets of all folds: y, weight [F, n, C]; known [n, C]; centre, scale [F, C]."""

    blocks: tuple[Block, ...]
    y: Tensor
    weight: Tensor
    known: Tensor
    centre: np.ndarray
    scale: np.ndarray
    skipped: dict[str, str]
    balanced: bool = False
    """Whether weights make the classes count alike; else they are 1 or, for a missing label, 0."""

    def take(self, rows: Tensor) -> Targets:
        """Select records."""
        return replace(self, y=self.y[:, rows], weight=self.weight[:, rows], known=self.known[rows])


def read_targets(
    targets: dict[str, Any],
    tasks: tuple[TaskSpec, ...],
    splits: list[Split],
    n_records: int,
    *,
    skip_unusable: bool,
    balanced: bool,
) -> Targets:
    """Check and lay out the targets, standardising regression by each fold's training rows.

    Raises
    ------
    InputError
        A task that some fold's training rows cannot teach (no label, one class), unless `skip_unusable`.
    """
    encoded, skipped = {}, {}
    for task in tasks:
        if task.name not in targets:
            raise InputError(f"task '{task.name}': no targets; there are: {', '.join(targets)}")
        y, known = encode(task, targets[task.name], n_records)
        reasons = [unusable(task, y[train], known[train]) for train, _, _ in splits]
        reason = next((f"fold {f}: {r}" for f, r in enumerate(reasons) if r), None)
        if reason and not skip_unusable:
            raise InputError(f"task '{task.name}' cannot be learnt, {reason}; leave it out or skip unusable tasks")
        if reason:
            skipped[task.name] = reason
        else:
            encoded[task] = (y, known)
    if not encoded:
        listed = "; ".join(f"{k}: {v}" for k, v in skipped.items())
        raise InputError(f"no task can be learnt ({listed})")
    blocks = layout(encoded)
    y = np.concatenate([v[0] for v in encoded.values()], 1)
    known = np.concatenate([v[1] for v in encoded.values()], 1)
    ys: list[Tensor] = []
    centres, scales, weights = [], [], []
    tensor = torch.from_numpy(known)
    differ = any(block.task.kind == "regression" for block in blocks)
    for train, _, _ in splits:
        centre, scale = _target_scale(y, known, train, blocks)
        if differ or not ys:
            ys.append(torch.from_numpy(np.where(known > 0, (y - centre) / scale, 0).astype(np.float32)))
        centres.append(centre)
        scales.append(scale)
        mask = torch.zeros(n_records)
        mask[torch.from_numpy(train)] = 1
        if balanced:
            weights.append(balance_weights(ys[-1], tensor, mask, blocks))
    return Targets(
        blocks,
        torch.stack(ys) if differ else ys[0].expand(len(splits), -1, -1),
        torch.stack(weights) if balanced else tensor.expand(len(splits), -1, -1),
        tensor,
        np.stack(centres),
        np.stack(scales),
        skipped,
        balanced,
    )


def _target_scale(
    y: np.ndarray, known: np.ndarray, train: np.ndarray, blocks: tuple[Block, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Median and robust spread of regression targets; 0 and 1 for the others."""
    centre, scale = np.zeros(y.shape[1]), np.ones(y.shape[1])
    for block in blocks:
        if block.task.kind == "regression":
            values = y[train, block.start][known[train, block.start] > 0]
            low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
            centre[block.start] = middle
            # half of the records at one value leave no interquartile range
            scale[block.start] = max((high - low) / 1.349, values.std() / 3)
    return centre, scale
