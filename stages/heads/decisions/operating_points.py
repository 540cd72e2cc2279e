"""heads/operating_points.json: the threshold of every class, chosen on records that no model learnt from.

Lives here: the file, its choice from a fit's held-out answers, its reading. Not here: the rules (`rules`), judging a
threshold on test records (`stages.scoring`). Light: no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from cache.errors import UsageError
from stages.heads.decisions.kept import read_kept, write_kept
from stages.heads.decisions.rules import ChosenThreshold, choose_threshold
from stages.heads.decisions.settings import OperatingPointsSection, OperatingRule
from stages.heads.targets.tasks import TaskSpec

if TYPE_CHECKING:
    from stages.heads.decisions.held_out import HeldOut, HeldOutTask

FILE = "operating_points.json"
SCHEMA_VERSION = 1
WITH_THRESHOLDS = ("binary", "multiclass", "multilabel")
"""Kinds whose classes have a threshold; each class of a multiclass task has one against the rest."""


@dataclass(frozen=True)
class TaskPoints:
    """The thresholds of one task.

    Attributes
    ----------
    rule
        By which they were chosen.
    classes
        Names: the positive one of a binary task, every one of a multiclass or multilabel task.
    thresholds
        [classes], for new ECGs: chosen on the mean of the fits' held-out answers. NaN: the labels could not decide.
    of_folds
        [F, classes]: what each fit's own held-out answers choose, for that fit's test records.
    facts
        Per class what the choice gave on the records that chose it.
    """

    rule: OperatingRule
    classes: tuple[str, ...]
    thresholds: np.ndarray
    of_folds: np.ndarray
    facts: tuple[ChosenThreshold, ...]


@dataclass(frozen=True)
class OperatingPoints:
    """Task -> its thresholds; empty for a fit of before there were any.

    Examples
    --------
    >>> OperatingPoints.load(Path("a fit of before")).thresholds("flag") is None
    True
    """

    tasks: dict[str, TaskPoints] = field(default_factory=dict)

    def thresholds(self, task: str, fold: int | None = None) -> np.ndarray | None:
        """Return the thresholds [classes] of a task, NaN where undecided; None where it has none.

        Parameters
        ----------
        fold
            One fit's; None: those for the mean of all fits, which new ECGs get.
        """
        found = self.tasks.get(task)
        if found is None:
            return None
        return found.thresholds if fold is None else found.of_folds[fold]

    def above(self, task: str, probability: np.ndarray, fold: int | None = None) -> np.ndarray | None:
        """Say of each record and class whether the probability reaches the threshold.

        Parameters
        ----------
        probability
            [n] of a binary task, [n, classes] of the others, as `predict_proba` gives them.

        Returns
        -------
        Of the same shape: 1 above, 0 below, NaN where either number is missing; None where the task has no thresholds.
        """
        found = self.thresholds(task, fold)
        if found is None:
            return None
        p = np.asarray(probability, dtype=np.float64)
        limit = found[0] if p.ndim == 1 else found
        return np.where(np.isfinite(p) & np.isfinite(limit), p >= limit, np.nan)

    @classmethod
    def choose(cls, held_out: HeldOut, tasks: Sequence[TaskSpec], rules: OperatingPointsSection) -> Self:
        """Choose every threshold of a fit."""
        chosen = [task for task in tasks if task.kind in WITH_THRESHOLDS]
        return cls({task.name: _choose(held_out, task, rules.of(task.name)) for task in chosen})

    def save(self, folder: Path) -> None:
        """Write `FILE` into a fit's folder; without tasks, no file."""
        tasks = {name: _to_json(task) for name, task in self.tasks.items()}
        write_kept(folder / FILE, SCHEMA_VERSION, {"tasks": tasks})

    @classmethod
    def load(cls, folder: str | Path) -> OperatingPoints:
        """Read `FILE` of a fit; empty where the fit has none.

        Raises
        ------
        StoreError
            A damaged file, or one of another schema.
        """

        def build(content: dict[str, Any]) -> OperatingPoints:
            return cls({name: _from_json(task) for name, task in content["tasks"].items()})

        return read_kept(Path(folder) / FILE, SCHEMA_VERSION, build) or cls()


def check_rules(rules: OperatingPointsSection, tasks: Sequence[TaskSpec]) -> None:
    """Refuse a rule for a task that has no thresholds, before anything is fitted.

    Raises
    ------
    UsageError
        Naming the task, and those that have thresholds.
    """
    known = [task.name for task in tasks if task.kind in WITH_THRESHOLDS]
    for name in rules.tasks:
        if name not in known:
            raise UsageError(
                f"fit_heads.operating_points.tasks: '{name}' is no task with classes of this study; "
                f"there are: {', '.join(known) or 'none'}"
            )


def class_names(task: TaskSpec) -> tuple[str, ...]:
    """Return the names of the classes that have a threshold; of a binary task the positive one."""
    if task.kind == "binary":
        return (task.classes[1] if task.classes else "1",)
    return task.classes


def _choose(held_out: HeldOut, task: TaskSpec, rule: OperatingRule) -> TaskPoints:
    facts = _columns(task.kind, held_out.averaged(task.name), rule)
    folds = [_columns(task.kind, held_out.of_fold(task.name, fold), rule) for fold in range(held_out.n_folds)]
    return TaskPoints(
        rule,
        class_names(task),
        np.array([found.threshold for found in facts]),
        np.array([[found.threshold for found in fold] for fold in folds]),
        facts,
    )


def labels_by_class(kind: str, y_true: np.ndarray, n_classes: int) -> np.ndarray:
    """Return the labels [n, columns] that each threshold is about: 1 the record has the class, 0 not, NaN unknown.

    Parameters
    ----------
    y_true
        As `HeldOutTask` has it: of a multiclass task numbers of classes, of which one column a class is made, each
        against the rest.

    Examples
    --------
    >>> labels_by_class("multiclass", np.array([1, -1]), 2)
    array([[ 0.,  1.],
           [nan, nan]])
    """
    if kind != "multiclass":
        return y_true.reshape(len(y_true), -1)
    known = np.isfinite(y_true) & (y_true >= 0)
    found = np.full((len(y_true), n_classes), np.nan)
    found[known] = y_true[known].astype(np.int64)[:, None] == np.arange(n_classes)
    return found


def _columns(kind: str, found: HeldOutTask, rule: OperatingRule) -> tuple[ChosenThreshold, ...]:
    predicted = found.y_pred.reshape(len(found.y_pred), -1)
    truth = labels_by_class(kind, found.y_true, predicted.shape[1])
    return tuple(choose_threshold(predicted[:, k], truth[:, k], rule) for k in range(truth.shape[1]))


def _to_json(task: TaskPoints) -> dict[str, Any]:
    classes = {}
    for k, name in enumerate(task.classes):
        facts = {key: _or_null(value) for key, value in asdict(task.facts[k]).items()}
        classes[name] = {**facts, "folds": [_or_null(value) for value in task.of_folds[:, k].tolist()]}
    return {"rule": task.rule.rule, "value": task.rule.value, "classes": classes}


def _or_null(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _from_json(content: dict[str, Any]) -> TaskPoints:
    found = content["classes"]
    facts: list[dict[str, Any]] = [
        {k: math.nan if v is None else v for k, v in entry.items() if k != "folds"} for entry in found.values()
    ]
    folds = [[math.nan if v is None else v for v in entry["folds"]] for entry in found.values()]
    return TaskPoints(
        OperatingRule(rule=content["rule"], value=content["value"]),
        tuple(found),
        np.array([entry["threshold"] for entry in facts]),
        np.array(folds).T,
        tuple(ChosenThreshold(**entry) for entry in facts),
    )
