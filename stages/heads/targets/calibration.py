"""Calibration: temperature scaling on out-of-sample logits, and the numbers that describe calibration.

Lives here: temperatures (multilabel: one per class), expected calibration error, Brier score, reliability data. Not
here: where out-of-sample logits come from (`crossfit`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.heads.targets.losses import column_losses
from stages.heads.targets.tasks import Block

LOG_TEMPERATURES = torch.linspace(-1.6, 1.6, 65)
PRIOR_SD, CLASS_SD = 0.5, 0.25
"""Of a task's log T around 0, and of a class's around its task's: a class with three positives has its task's."""
LABELS_PER_RECORD = 150
"""Labels for which one record more of either class is counted in a base rate, from one to two."""


def fit_temperatures(
    logits: Tensor,
    y: Tensor,
    known: Tensor,
    blocks: tuple[Block, ...],
    prior_sd: float = PRIOR_SD,
    class_sd: float = CLASS_SD,
) -> Tensor:
    """Temperatures T that logits are divided by, the most probable on a grid (Guo et al. 2017, with a prior on log T).

    Parameters
    ----------
    logits, y, known
        [F, n, C], out of sample; `known` 0 leaves a label out.
    prior_sd, class_sd
        Standard deviation of a task's log T around 0, and of a class's around its task's.

    Returns
    -------
    [F, C]: one per class (multilabel; 1 where it has no positive), one per task repeated over its columns (binary,
        multiclass; survival, where 1 / T is the slope of the log-hazards), 1 (regression).
    """
    out = torch.ones(logits.shape[0], logits.shape[2])
    for block in blocks:
        if block.task.kind == "regression":
            continue
        totals = []
        for log_t in LOG_TEMPERATURES:
            loss = column_losses(logits * torch.exp(-log_t), y, block, weight=known) * known[..., block.columns]
            totals.append(loss.sum(1))
        total = torch.stack(totals)
        prior = 0.5 * (LOG_TEMPERATURES / prior_sd) ** 2
        of_task = LOG_TEMPERATURES[(total.sum(-1) + prior[:, None]).argmin(0)][:, None].expand(total.shape[1:])
        if block.task.kind == "multilabel":
            away = 0.5 * ((LOG_TEMPERATURES[:, None, None] - of_task) / class_sd) ** 2
            of_task = LOG_TEMPERATURES[(total + away).argmin(0)]
            # a class without positives says its base rate of every record, which no temperature improves
            positive = ((y[..., block.columns] > 0) * known[..., block.columns]).any(1)
            of_task = torch.where(positive, of_task, 0.0)
        out[:, block.columns] = torch.exp(of_task)
    return out


def rate_shift(y: Tensor, known: Tensor, blocks: tuple[Block, ...]) -> Tensor:
    """Logits [F, C] by which one or two records of either class, added to the labels, raise a class's base rate.

    A head's intercept follows the positives of its own fold. Of a class with one positive in a fold and three in the
    next, the folds then differ by a logit for nothing, and cannot be ranked together. "Add two successes and two
    failures" (Agresti and Coull 1998) takes most of that away; within a fold no rank changes. With fewer than 300
    labels it is fewer, but one at least (Laplace's rule of succession), because two would be too many for calibration.
    The heads count half a record of either class already (`prior_logits`).

    Parameters
    ----------
    y, known
        [F, n, C]; `known` 0 leaves a label out. Multinomial and regression tasks are not shifted.
    """
    positive, total = (y * known).sum(1), known.sum(1)
    negative, more = total - positive, (total / LABELS_PER_RECORD).clamp(1, 2)
    shift = torch.log((positive + more) * (negative + 0.5) / ((negative + more) * (positive + 0.5)))
    of_classes = torch.zeros(y.shape[-1])
    for block in blocks:
        of_classes[block.columns] = float(block.task.kind in ("binary", "multilabel"))
    return torch.where(of_classes > 0, shift, 0.0)


def reliability(p: np.ndarray, y: np.ndarray, n_bins: int = 10) -> dict[str, list[float]]:
    """Points of a reliability diagram: mean probability, observed rate and count per bin of equal counts.

    Parameters
    ----------
    p, y
        [n] predicted probability and outcome (0, 1); for multiclass, the top class's probability and whether it is
        right.
    """
    order = np.argsort(p, kind="stable")
    bins = [b for b in np.array_split(order, min(n_bins, max(1, len(p)))) if len(b)]
    return {
        "predicted": [float(p[b].mean()) for b in bins],
        "observed": [float(y[b].mean()) for b in bins],
        "count": [float(len(b)) for b in bins],
    }


def ece(p: np.ndarray, y: np.ndarray, n_bins: int = 10) -> float:
    """Compute the expected calibration error over bins of equal counts (Nguyen and O'Connor 2015) of one column."""
    points: dict[str, Any] = reliability(p, y, n_bins)
    gap = np.abs(np.array(points["predicted"]) - np.array(points["observed"]))
    return float(np.average(gap, weights=points["count"]))


def brier(p: np.ndarray, y: np.ndarray) -> float:
    """Mean squared difference of probability and outcome; for [n, classes] the sum over classes (Brier 1950)."""
    square = (np.asarray(p) - np.asarray(y)) ** 2
    return float(square.mean() if square.ndim == 1 else square.sum(1).mean())
