"""Which of a fit's tasks this study can judge: targets joined by name, and classes by theirs.

Nothing is guessed: where names differ, the settings say which is which, or the task is left out with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cache.errors import UsageError
from cache.records import Target
from stages.external.settings import ExternalFit
from stages.heads import TaskSpec
from stages.learning.data import Data


@dataclass(frozen=True)
class JudgedTask:
    """A task of the fit with this study's truth.

    Attributes
    ----------
    target
        As the fit knows it; of multilabel tasks, with the classes that this study has.
    truth
        As `cache.target_array` gives it, in the fit's classes.
    columns
        Places of the judged classes among the fit's.
    n_other_class
        Records whose class the fit does not know; they have no label here.
    """

    target: Target
    truth: np.ndarray
    columns: np.ndarray
    n_other_class: int = 0

    def predicted(self, answers: np.ndarray) -> np.ndarray:
        """Return the fit's answers [n] or [n, classes] in the judged classes."""
        return answers[:, self.columns] if self.target.kind == "multilabel" else answers


def judged_tasks(tasks: Sequence[TaskSpec], data: Data, asked: ExternalFit) -> tuple[list[JudgedTask], dict[str, str]]:
    """Return the tasks that can be judged, and task -> why another one cannot.

    Raises
    ------
    UsageError
        The settings name a task, target or class that does not exist.
    """
    known = {target.name: target for target in data.tasks}
    _check_names(tasks, known, asked)
    judged, left_out = [], {}
    for task in tasks:
        target = known.get(asked.targets.get(task.name, task.name))
        if target is None:
            left_out[task.name] = f"this study has no target '{task.name}'; evaluate.fits.NAME.targets may name another"
            continue
        fault = _fault(task, target)
        found = None if fault else _joined(task, target, data.targets[target.name], asked.classes.get(task.name, {}))
        if isinstance(found, JudgedTask):
            judged.append(found)
        else:
            left_out[task.name] = fault or str(found)
    return judged, left_out


def _check_names(tasks: Sequence[TaskSpec], known: Mapping[str, Target], asked: ExternalFit) -> None:
    names = [task.name for task in tasks]
    for key in (*asked.targets, *asked.classes):
        if key not in names:
            raise UsageError(f"evaluate.fits: the fit has no task '{key}'; it has: {', '.join(names)}")
    for task, name in asked.targets.items():
        if name not in known:
            raise UsageError(
                f"evaluate.fits: targets.{task}: this study has no target '{name}'; it has: {', '.join(known)}"
            )
    for task, classes in asked.classes.items():
        theirs = next(spec for spec in tasks if spec.name == task)
        target = known.get(asked.targets.get(task, task))
        for ours, other in classes.items():
            if target is not None and ours not in target.classes:
                raise UsageError(f"evaluate.fits: classes.{task}: '{ours}' is no class of this study's '{target.name}'")
            if other not in theirs.classes:
                raise UsageError(f"evaluate.fits: classes.{task}: '{other}' is no class of the fit's '{task}'")


def _fault(task: TaskSpec, target: Target) -> str:
    if target.kind != task.kind:
        return f"it is {task.kind} in the fit and {target.kind} here"
    if task.kind in ("regression", "survival") and task.unit and target.unit and task.unit != target.unit:
        return f"its unit is {task.unit} in the fit and {target.unit} here"
    return ""


MAY_SAY = "evaluate.fits.NAME.classes may say which is which"


def _joined(task: TaskSpec, target: Target, truth: np.ndarray, names: Mapping[str, str]) -> JudgedTask | str:
    """Return the truth in the fit's classes, or why the classes cannot be joined."""
    theirs = Target(task.name, task.kind, task.unit, tuple(task.classes), target.description, tuple(task.horizons))
    if task.kind in ("regression", "survival"):
        return JudgedTask(theirs, truth, np.arange(0))
    named = [names.get(name, name) for name in target.classes]
    places = np.array([theirs.classes.index(name) if name in theirs.classes else -1 for name in named], dtype=np.int64)
    found = places[places >= 0].tolist()
    if len(found) != len(set(found)):
        return f"two classes of this study are one class of the fit; {MAY_SAY}"
    unnamed = task.kind == "binary" and not theirs.classes and not target.classes
    whole = len(found) == 2 if task.kind == "binary" else bool(found)
    if not whole and not unnamed:
        classes = [", ".join(names) or "without names" for names in (theirs.classes, target.classes)]
        return f"its classes are {classes[0]} in the fit and {classes[1]} here; {MAY_SAY}"
    return {"binary": _binary, "multiclass": _multiclass, "multilabel": _multilabel}[task.kind](theirs, truth, places)


def _binary(theirs: Target, truth: np.ndarray, places: np.ndarray) -> JudgedTask:
    return JudgedTask(theirs, 1 - truth if places.tolist() == [1, 0] else truth, np.arange(2))


def _multiclass(theirs: Target, truth: np.ndarray, places: np.ndarray) -> JudgedTask:
    code = np.append(places, -1)[truth]  # a missing label is -1, and stays it
    n_other = int(((truth >= 0) & (code < 0)).sum())
    return JudgedTask(theirs, code.astype(truth.dtype), np.arange(len(theirs.classes)), n_other)


def _multilabel(theirs: Target, truth: np.ndarray, places: np.ndarray) -> JudgedTask:
    shared = np.flatnonzero(places >= 0)
    shared = shared[np.argsort(places[shared])]
    classes = tuple(theirs.classes[k] for k in places[shared])
    return JudgedTask(replace(theirs, classes=classes), truth[:, shared], places[shared])
