"""Labels softened by an ensemble's out-of-fold predictions: distillation without a look at what is distilled.

A predictions.parquet of a study with `fit_heads.folds: all` holds, for every record, what a fit that has not seen its
patient says of it. A share of each label is replaced by that (Hinton et al. 2015, arXiv 1503.02531): a network
trained on it remembers single records less.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from cache.errors import InputError
from stages.scoring.predictions import open_predictions

if TYPE_CHECKING:
    from stages.posttrain.cohort import LabelledCohort

METHOD = "gate"


def taught(data: LabelledCohort, path: Path, share: float) -> torch.Tensor:
    """Mix labels with predictions.

    Parameters
    ----------
    data
        Labels [position, columns], in the tasks' units.
    path
        predictions.parquet of the same records.
    share
        Of the prediction; the label keeps the rest. A record without a prediction keeps its label.

    Returns
    -------
    [position, columns].

    Raises
    ------
    InputError
        A file without out-of-fold predictions of one of the tasks for these records.
    """
    given = open_predictions(path)
    ids = data.records.ids(data.rows)
    found = np.full(tuple(data.y.shape), np.nan)
    for block in data.blocks:
        task = block.task.name
        said = given.read(task, METHOD, "test") if METHOD in given.methods(task) else None
        at = said.records.within(ids) if said is not None else np.empty(0, int)
        if said is None or not (at >= 0).any():
            raise InputError(
                f"teacher {path}: has no out-of-fold {METHOD} predictions of task '{task}' for these records"
            )
        found[at[at >= 0], block.columns] = said.y_pred.reshape(len(at), -1)[at >= 0]
    predictions = torch.from_numpy(found)
    known = torch.isfinite(predictions) & (data.known > 0)
    mixed = (1 - share) * data.y.double() + share * torch.nan_to_num(predictions)
    return torch.where(known, mixed, data.y.double()).float()
