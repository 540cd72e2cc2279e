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
from stages.heads.targets.tasks import Block, TaskSpec, encode, layout, n_columns, unusable


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
    known = np.concatenate([v[1] for v in encoded.values()], 1)
    differ = any(block.task.kind == "regression" for block in blocks)
    ys = np.empty((len(splits) if differ else 1, n_records, n_columns(blocks)), np.float32)
    centre, scale = np.zeros((len(splits), n_columns(blocks))), np.ones((len(splits), n_columns(blocks)))
    for block in blocks:  # one by one: those of all tasks together in double precision would be the most of a fit
        values, labelled = encoded.pop(block.task)
        if block.task.kind == "regression":
            column = block.start
            for f, (train, _, _) in enumerate(splits):
                centre[f, column], scale[f, column] = _centre_and_scale(values[train, 0], labelled[train, 0])
                ys[f, :, column] = np.where(
                    labelled[:, 0] > 0, (values[:, 0] - centre[f, column]) / scale[f, column], 0
                )
        else:
            ys[:, :, block.columns] = values
    columns, weight = torch.from_numpy(ys), torch.from_numpy(known)
    return Targets(
        blocks,
        columns.expand(len(splits), -1, -1),
        _balanced(columns, weight, splits, blocks) if balanced else weight.expand(len(splits), -1, -1),
        weight,
        centre,
        scale,
        skipped,
        balanced,
    )


def _balanced(y: Tensor, known: Tensor, splits: list[Split], blocks: tuple[Block, ...]) -> Tensor:
    """Weights that make classes count alike among each fold's training records, [F, n, C]."""
    weights = []
    for (train, _, _), of_fold in zip(splits, y.expand(len(splits), -1, -1), strict=True):
        mask = torch.zeros(len(known))
        mask[torch.from_numpy(train)] = 1
        weights.append(balance_weights(of_fold, known, mask, blocks))
    return torch.stack(weights)


def _centre_and_scale(y: np.ndarray, known: np.ndarray) -> tuple[float, float]:
    """Median and robust spread of a regression target's training values."""
    values = y[known > 0]
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    # half of the records at one value leave no interquartile range
    return middle, max((high - low) / 1.349, values.std() / 3)
