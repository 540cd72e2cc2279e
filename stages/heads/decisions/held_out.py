"""What a fit says of the records that none of the models behind an answer has learnt from.

Lives here: these answers in the tasks' units, beside the labels. Not here: how they come about (`fit`), what is chosen
on them (`operating_points`, `conformal`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from stages.heads.fold_model import to_means
from stages.heads.targets.tasks import Block, TaskSpec


@dataclass(frozen=True)
class HeldOutTask:
    """One task's labels and answers, record for record.

    Attributes
    ----------
    y_true
        float64 [n] (regression, binary, survival's signed times; missing NaN), int64 [n] (multiclass; missing -1),
        float64 [n, classes] (multilabel).
    y_pred
        [n], or [n, classes] of multiclass and multilabel; [n, 1 + horizons] of survival.
    groups
        [n] patients; without patients each record has a group of its own.
    """

    y_true: np.ndarray
    y_pred: np.ndarray
    groups: np.ndarray


@dataclass(frozen=True)
class HeldOut:
    """The gated ensemble's answers to validation records and, by inner folds, to training records; never to test ones.

    Attributes
    ----------
    y_true
        Task -> labels of the R records, as in `HeldOutTask`.
    y_pred
        Fold -> task -> answers.
    judged
        bool [F, R]: whether fold f has an answer that is out of sample.
    groups
        [R].
    """

    y_true: dict[str, np.ndarray]
    y_pred: list[dict[str, np.ndarray]]
    judged: np.ndarray
    groups: np.ndarray

    @property
    def n_folds(self) -> int:
        """How many fits there are."""
        return len(self.y_pred)

    def of_fold(self, task: str, fold: int) -> HeldOutTask:
        """Return what one fit says: what may decide about that fit's own test records."""
        rows = self.judged[fold]
        return HeldOutTask(self.y_true[task][rows], self.y_pred[fold][task][rows], self.groups[rows])

    def averaged(self, task: str) -> HeldOutTask:
        """Return each record's mean over the fits that hold it out: new ECGs are answered by the mean of all fits."""
        rows = self.judged.any(axis=0)
        weights = self.judged / np.maximum(self.judged.sum(axis=0), 1)
        stacked = np.stack([fold[task] for fold in self.y_pred]).astype(np.float64)
        mean = np.einsum("fr...,fr->r...", np.where(np.isfinite(stacked), stacked, 0.0), weights)
        return HeldOutTask(self.y_true[task][rows], mean[rows], self.groups[rows])


def held_out_answers(
    blocks: tuple[Block, ...],
    labels: tuple[Tensor, Tensor],
    mixed: Tensor,
    judged: Tensor,
    target_scale: tuple[np.ndarray, np.ndarray],
    groups: np.ndarray | None,
    hazards: list[np.ndarray | None],
) -> HeldOut:
    """Put a fit's out-of-sample logits into the tasks' units.

    Parameters
    ----------
    labels
        Standardised y [F, R, C], and known [R, C].
    mixed
        Calibrated logits of the gated ensemble [F, R, C].
    judged
        [F, R], above 0 where they are out of sample.
    target_scale
        Centre and scale [F, C] of regression targets.
    hazards
        Per fold [T, horizons], of survival tasks.
    """
    centre, scale = target_scale
    folds = range(len(mixed))
    y, known = labels[0][0].numpy(), labels[1].numpy() > 0
    return HeldOut(
        {b.task.name: _truth(b.task, y[:, b.columns], known[:, b.columns], centre[0], scale[0], b) for b in blocks},
        [to_means(mixed[f].numpy(), centre[f], scale[f], blocks, hazards[f]) for f in folds],
        judged.numpy() > 0,
        np.arange(len(y)) if groups is None else np.asarray(groups),
    )


def _truth(
    task: TaskSpec, y: np.ndarray, known: np.ndarray, centre: np.ndarray, scale: np.ndarray, block: Block
) -> np.ndarray:
    if task.kind == "multiclass":
        return np.where(known[:, 0], y.argmax(axis=1), -1).astype(np.int64)
    values = np.where(known, y.astype(np.float64), np.nan)
    if task.kind == "regression":
        values = values * scale[block.columns] + centre[block.columns]
    return values if task.kind == "multilabel" else values[:, 0]
