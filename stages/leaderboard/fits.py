"""One head's fit and its test predictions, kept in the state folder so that a killed run goes on with the next.

Lives here: what names a fit, fitting, reading it back. Not here: the heads and their training (`protocol`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from cache.errors import InputError, StoreError
from cache.files import replacing
from cache.fingerprint import fingerprint
from cache.record_columns import Texts, as_target_array
from cache.record_members import RecordMembers
from cache.records import ROW_GROUP_RECORDS, SPLITS, Target
from stages.heads.targets.tasks import TaskSpec, encode, unusable
from stages.leaderboard.inputs import TokenInputs, VectorInputs
from stages.leaderboard.protocol import FrozenHead, Judge, TaskLabels, predict, train
from stages.leaderboard.settings import LeaderboardSettings
from stages.scoring.blocks import PredictionBlock, has_label
from stages.scoring.metrics import HEADLINE, METRICS, score

VERSION = 1
"""Raised when the same settings would train another head."""


@dataclass(frozen=True)
class TaskRows:
    """One task's labelled records by split; rows of records.parquet, ascending.

    Attributes
    ----------
    values
        Labels of all records as `RecordRows.labels` gives them.
    centre, scale
        Of a regression's training labels; 0 and 1 otherwise.
    """

    records: RecordMembers
    target: Target
    values: np.ndarray
    labels: TaskLabels
    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    centre: float
    scale: float

    @classmethod
    def read(cls, records: RecordMembers, target: Target) -> TaskRows:
        """Read one task.

        Raises
        ------
        InputError
            The protocol has no loss for it, or its training labels cannot teach it.
        """
        if target.kind == "survival":
            raise InputError("the protocol has no loss for a time to an event; `ensemble evaluate` judges this task")
        task = TaskSpec(target.name, target.kind, target.classes, target.unit)
        values = records.labels(target)
        y, known = encode(task, values, len(records))
        usable = has_label(values) & records.readable
        train_rows, val_rows, test_rows = (np.flatnonzero(usable & records.split.equal(name)) for name in SPLITS)
        if reason := unusable(task, y[train_rows], known[train_rows]):
            raise InputError(reason)
        centre, scale = 0.0, 1.0
        if target.kind == "regression":
            centre, scale = float(y[train_rows].mean()), max(float(y[train_rows].std()), 1e-12)
        scaled = torch.from_numpy(((y - centre) / scale).astype(np.float32))
        labels = TaskLabels(task, scaled, torch.from_numpy(known.astype(np.float32)))
        return cls(records, target, values, labels, train_rows, val_rows, test_rows, centre, scale)

    @property
    def digest(self) -> str:
        """Digest of the labels and of who is in which split."""
        found = hashlib.sha256()
        for start in range(0, len(self.values), ROW_GROUP_RECORDS):
            found.update(self.truth(slice(start, start + ROW_GROUP_RECORDS)).tobytes())
        for part in (self.train, self.val, self.test):
            found.update(np.ascontiguousarray(part).tobytes())
        return found.hexdigest()

    def truth(self, rows: np.ndarray | slice) -> np.ndarray:
        """Return the labels of some records as `cache.target_array` does."""
        return as_target_array(self.values[rows], self.target)

    def answers(self, predicted: np.ndarray) -> np.ndarray:
        """Turn what a head says [n, columns] into the layout of predictions.parquet, in the task's unit."""
        said = predicted * self.scale + self.centre
        return said[:, 0] if self.target.kind in ("regression", "binary") else said

    def judge(self, rows: np.ndarray) -> Judge:
        """Return what scores predictions of `rows` by the headline metric, higher is better."""
        metric = HEADLINE[self.target.kind][0]
        sign = 1.0 if METRICS[metric].higher_is_better else -1.0
        records, truth = self.records, self.truth(rows)
        ids, fold = Texts.of(pa.chunked_array([records.ids(rows)])), np.zeros(len(rows), np.int64)
        patients, splits = records.people.patient.take(rows), records.split.take(rows)

        def judged(predicted: np.ndarray) -> float:
            block = PredictionBlock(ids, patients, splits, fold, truth, self.answers(predicted))
            return sign * float(score(self.target, block).values[metric][0])

        return judged


@dataclass(frozen=True)
class FinishedFit:
    """Test predictions of one head: rows of records.parquet, what is said of them, and facts of the fit."""

    rows: np.ndarray
    predictions: np.ndarray
    epoch: int
    validation: float
    parameters: int


def fit_head(
    inputs: VectorInputs | TokenInputs,
    task: TaskRows,
    settings: LeaderboardSettings,
    folder: Path,
    source: dict[str, Any],
) -> FinishedFit:
    """Train the head that reads these inputs and predict the test records, unless that was done before.

    Parameters
    ----------
    folder
        Of finished fits.
    source
        What the inputs were made from.

    Raises
    ------
    InputError
        No training or no test record has a vector.
    """
    identity = {"version": VERSION, "recipe": settings.recipe(), "source": source, "task": task.digest}
    key = fingerprint({**identity, "name": task.target.name, "about": list(task.target.classes)})
    path = folder / f"{key[:32]}.npz"
    if not path.is_file():
        _save(path, _fit(inputs, task, settings))
    return _load(path)


def _fit(inputs: VectorInputs | TokenInputs, task: TaskRows, settings: LeaderboardSettings) -> FinishedFit:
    seen: np.ndarray = np.max(inputs.present, axis=1)
    train_rows, val_rows, test_rows = (rows[seen[rows]] for rows in (task.train, task.val, task.test))
    if not len(train_rows) or not len(test_rows):
        empty = "training" if not len(train_rows) else "test"
        raise InputError(f"no labelled {empty} record has a vector")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        columns = task.labels.task.n_outputs
        if isinstance(inputs, TokenInputs):
            head: nn.Module = FrozenHead(inputs.dim, columns)
        else:
            head, inputs = nn.Linear(inputs.dim, columns), inputs.filled(train_rows)
        found = train(head, inputs, task.labels, (train_rows, val_rows), task.judge(val_rows), settings)
    said = task.answers(predict(found.head, inputs, task.labels.task, test_rows))
    n = sum(p.numel() for p in found.head.parameters())
    sign = 1.0 if METRICS[HEADLINE[task.target.kind][0]].higher_is_better else -1.0
    return FinishedFit(test_rows, said.astype(np.float32), found.epoch, sign * found.validation, n)


def _save(path: Path, fit: FinishedFit) -> None:
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **vars(fit))


def _load(path: Path) -> FinishedFit:
    try:
        with np.load(path, allow_pickle=False) as stored:
            numbers = (int(stored["epoch"]), float(stored["validation"]), int(stored["parameters"]))
            return FinishedFit(stored["rows"], stored["predictions"], *numbers)
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(f"{path}: not a finished fit ({error}); remove the file and run again") from error


def read_finetuned(path: Path, task: TaskRows) -> FinishedFit:
    """Read what a fine-tuned copy predicts, of the labelled test records among its rows.

    Raises
    ------
    StoreError
        A file that is none, or without any labelled test record.
    """
    found = _load(path)
    kept = np.isin(found.rows, task.test)
    if not kept.any():
        raise StoreError(f"{path}: predicts no test record of '{task.target.name}'; remove the file and run again")
    numbers = (found.epoch, found.validation, found.parameters)
    return FinishedFit(found.rows[kept], found.predictions[kept], *numbers)
