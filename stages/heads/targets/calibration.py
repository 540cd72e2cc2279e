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
PRIOR_SD = 0.5
"""Of log T around 0: a class with three positives stays near T = 1."""


def fit_temperatures(logits: Tensor, y: Tensor, known: Tensor, blocks: tuple[Block, ...]) -> Tensor:
    """Temperatures T that logits are divided by, the most probable on a grid (Guo et al. 2017, with a prior on log T).

    Parameters
    ----------
    logits, y, known
        [F, n, C], out of sample; `known` 0 leaves a label out.

    Returns
    -------
    [F, C]: one per class (multilabel), one per task repeated over its columns (binary, multiclass), 1 (regression).
    """
    out = torch.ones(logits.shape[0], logits.shape[2])
    prior = 0.5 * (LOG_TEMPERATURES / PRIOR_SD) ** 2
    for block in blocks:
        if block.task.kind == "regression":
            continue
        totals = []
        for k, log_t in enumerate(LOG_TEMPERATURES):
            loss = column_losses(logits * torch.exp(-log_t), y, block) * known[..., block.columns]
            total = loss.sum(1)
            if block.task.kind != "multilabel":
                total = total.sum(-1, keepdim=True)
            totals.append(total + prior[k])
        best = torch.stack(totals).argmin(0)
        out[:, block.columns] = torch.exp(LOG_TEMPERATURES[best])
    return out


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
