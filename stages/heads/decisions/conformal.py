"""heads/conformal.json: sets of classes and intervals that hold the truth with a stated coverage.

Lives here: the limits, their choice from a fit's held-out answers, sets and intervals, the file. Not here: measuring
the coverage on test records (`stages.scoring`). Light: no torch.

The limits are hierarchical conformal quantiles (Lee, Barber and Willett 2023): each patient counts once, however many
ECGs they have, and a patient who has not come yet counts as the worst there could be. A record of a new patient is then
covered with the stated probability, whatever the model and the distribution. The scores are out of sample by inner
folds, as in cross-conformal prediction (Vovk 2015), not from one split.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from stages.heads.decisions.kept import read_kept, write_kept
from stages.heads.decisions.settings import ConformalSection
from stages.heads.targets.tasks import TaskSpec

if TYPE_CHECKING:
    from stages.heads.decisions.held_out import HeldOut, HeldOutTask

FILE = "conformal.json"
SCHEMA_VERSION = 1
_ROUNDING = 1e-9


@dataclass(frozen=True)
class TaskLimits:
    """How far from the truth an answer may be.

    Attributes
    ----------
    limits
        For new ECGs. Of classes: the largest 1 - probability with which a class is in the set, [2] (binary: the
        negative, the positive class), [classes] (multiclass), [classes, 2] (multilabel: absent, present); infinite: the
        class is always in it. Of a regression: what is added to the value for the interval's ends, [2].
    of_folds
        [F, ...]: the same of each fit's own held-out answers, for that fit's test records.
    patients
        How many there are behind each limit.
    """

    kind: str
    classes: tuple[str, ...]
    limits: np.ndarray
    of_folds: np.ndarray
    patients: np.ndarray


@dataclass(frozen=True)
class Conformal:
    """The coverage, and task -> its limits; no tasks for a fit of before there were any.

    Examples
    --------
    >>> Conformal.load(Path("a fit of before")).sets("flag", np.array([0.2])) is None
    True
    """

    coverage: float = 0.9
    by_class: bool = True
    tasks: dict[str, TaskLimits] = field(default_factory=dict)

    def sets(self, task: str, probability: np.ndarray, fold: int | None = None) -> np.ndarray | None:
        """Return which classes each record's set holds; None where the task has no limits.

        Parameters
        ----------
        probability
            As `predict_proba` gives it: [n] (binary), [n, classes].
        fold
            One fold's limits; None: those for new ECGs.

        Returns
        -------
        bool: [n, 2] (binary: negative, positive), [n, classes] (multiclass), [n, classes, 2] (multilabel: absent,
        present).
        """
        found = self.tasks.get(task)
        if found is None or found.kind == "regression":
            return None
        limits = found.limits if fold is None else found.of_folds[fold]
        return scores_of_classes(found.kind, probability) <= limits + _ROUNDING

    def interval(self, task: str, value: np.ndarray, fold: int | None = None) -> np.ndarray | None:
        """Return the intervals [n, 2] of a regression task; None where it has no limits."""
        found = self.tasks.get(task)
        if found is None or found.kind != "regression":
            return None
        limits = found.limits if fold is None else found.of_folds[fold]
        return np.asarray(value, dtype=np.float64)[:, None] + limits

    @classmethod
    def choose(cls, held_out: HeldOut, tasks: Sequence[TaskSpec], settings: ConformalSection) -> Self:
        """Choose the limits of every task; a regression whose patients are too few for an interval has none.

        Nor has a survival task: whether a set or an interval held the time of a censored record is not known.
        """
        found = {task.name: _choose(held_out, task, settings) for task in tasks if task.kind != "survival"}
        kept = {
            name: limits
            for name, limits in found.items()
            if limits.kind != "regression" or (np.isfinite(limits.limits).all() and np.isfinite(limits.of_folds).all())
        }
        return cls(settings.coverage, settings.by_class, kept)

    def save(self, folder: Path) -> None:
        """Write `FILE` into a fit's folder; without tasks, no file."""
        content = {
            "coverage": self.coverage,
            "by_class": self.by_class,
            "tasks": {name: _to_json(task) for name, task in self.tasks.items()},
        }
        write_kept(folder / FILE, SCHEMA_VERSION, content)

    @classmethod
    def load(cls, folder: str | Path) -> Conformal:
        """Read `FILE` of a fit; without tasks where the fit has none.

        Raises
        ------
        StoreError
            A damaged file, or one of another schema.
        """

        def build(content: dict[str, Any]) -> Conformal:
            tasks = {name: _from_json(task) for name, task in content["tasks"].items()}
            return cls(content["coverage"], content["by_class"], tasks)

        return read_kept(Path(folder) / FILE, SCHEMA_VERSION, build) or cls()


def scores_of_classes(kind: str, probability: np.ndarray) -> np.ndarray:
    """Return 1 - probability of each class a set may hold, of the shape that `Conformal.sets` has."""
    p = np.asarray(probability, dtype=np.float64)
    return 1.0 - p if kind == "multiclass" else np.stack([p, 1.0 - p], axis=-1)


def patient_quantile(scores: np.ndarray, groups: np.ndarray, level: float) -> float:
    """Return the hierarchical conformal quantile of scores; infinite where the patients are too few for the level.

    Parameters
    ----------
    scores
        [n].
    groups
        [n] patients. Each has the weight 1 / (patients + 1), shared by their records; so has infinity.

    Examples
    --------
    >>> patient_quantile(np.arange(9.0), np.arange(9), 0.9)
    8.0
    >>> patient_quantile(np.arange(8.0), np.arange(8), 0.9)
    inf
    """
    _, patient, counts = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.argsort(scores, kind="stable")
    reached = np.cumsum((1.0 / counts[patient])[order]) / (len(counts) + 1)
    position = int(np.searchsorted(reached, level - _ROUNDING))
    return float(scores[order[position]]) if position < len(scores) else math.inf


def _choose(held_out: HeldOut, task: TaskSpec, settings: ConformalSection) -> TaskLimits:
    limits, patients = _limits(task.kind, held_out.averaged(task.name), settings)
    folds = [_limits(task.kind, held_out.of_fold(task.name, fold), settings)[0] for fold in range(held_out.n_folds)]
    classes = task.classes or (("0", "1") if task.kind == "binary" else ())
    return TaskLimits(task.kind, classes, limits, np.stack(folds), patients)


def _limits(kind: str, found: HeldOutTask, settings: ConformalSection) -> tuple[np.ndarray, np.ndarray]:
    """Return the limits of one task, and the patients behind each."""
    if kind == "regression":
        return _offsets(found, settings.coverage)
    scores = scores_of_classes(kind, found.y_pred)
    if kind == "multilabel":
        parts = [
            _class_limits(scores[:, k], found.y_true[:, k], found.groups, settings) for k in range(scores.shape[1])
        ]
        return np.stack([limits for limits, _ in parts]), np.stack([patients for _, patients in parts])
    return _class_limits(scores, found.y_true, found.groups, settings)


def _offsets(found: HeldOutTask, coverage: float) -> tuple[np.ndarray, np.ndarray]:
    """Return what each end lies away from the value: half of what is not covered is left to either side."""
    residual = found.y_true - found.y_pred
    known = np.isfinite(residual)
    residual, groups = residual[known], found.groups[known]
    level = 1 - (1 - coverage) / 2
    ends = [-patient_quantile(-residual, groups, level), patient_quantile(residual, groups, level)]
    return np.array(ends), np.array([len(np.unique(groups))] * 2)


def _class_limits(
    scores: np.ndarray, truth: np.ndarray, groups: np.ndarray, settings: ConformalSection
) -> tuple[np.ndarray, np.ndarray]:
    """Return the limit of each class, from the scores [n, classes] of the true one; a missing truth is NaN or -1."""
    known = np.isfinite(truth) & (truth >= 0) & np.isfinite(scores).all(axis=1)
    label, groups = truth[known].astype(np.int64), groups[known]
    of_truth = np.take_along_axis(scores[known], label[:, None], axis=1)[:, 0]
    pooled, everybody = patient_quantile(of_truth, groups, settings.coverage), len(np.unique(groups))
    n_classes = scores.shape[1]
    limits, patients = np.full(n_classes, pooled), np.full(n_classes, everybody)
    for k in range(n_classes) if settings.by_class else ():
        of_class = patient_quantile(of_truth[label == k], groups[label == k], settings.coverage)
        if math.isfinite(of_class):  # a class of too few patients has the limit of all
            limits[k], patients[k] = of_class, len(np.unique(groups[label == k]))
    return limits, patients


def _to_json(task: TaskLimits) -> dict[str, Any]:
    return {
        "kind": task.kind,
        "classes": list(task.classes),
        "limits": _nulls(task.limits.tolist()),
        "folds": _nulls(task.of_folds.tolist()),
        "patients": task.patients.tolist(),
    }


def _nulls(value: Any) -> Any:
    """Write infinity, which JSON has not, as null."""
    if isinstance(value, list):
        return [_nulls(item) for item in value]
    return value if math.isfinite(value) else None


def _numbers(value: Any) -> Any:
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return math.inf if value is None else float(value)


def _from_json(content: dict[str, Any]) -> TaskLimits:
    return TaskLimits(
        content["kind"],
        tuple(content["classes"]),
        np.array(_numbers(content["limits"])),
        np.array(_numbers(content["folds"])),
        np.array(content["patients"]),
    )
