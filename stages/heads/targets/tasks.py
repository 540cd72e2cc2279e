"""What a task is, and how targets of five kinds become one matrix of output columns with a mask.

Lives here: `TaskSpec`, the check of a user's targets, the column layout that every head shares. Not here: losses
(`targets.losses`), which task columns exist in a cohort (the caller knows).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from cache.errors import InputError, UsageError

Kind = Literal["regression", "binary", "multiclass", "multilabel", "survival"]
FEWEST_EVENTS = 10
"""Among a fold's training labels of a survival task; of fewer a log-hazard is guessed."""


@dataclass(frozen=True)
class TaskSpec:
    """One thing to predict.

    Attributes
    ----------
    name
        As in the targets' dict.
    kind
        "regression" (float), "binary" (0, 1), "multiclass" (index into `classes`), "multilabel" (0/1 per class),
        "survival" (time of the event, or minus the time of censoring: `cache.follow_up`).
    classes
        Names: two for binary (negative, positive; may be empty), one per class otherwise; empty for regression.
    unit
        Of a regression target, such as "ms" or "years", or of a survival target's times.
    horizons
        Times, ascending, until which a survival task's probabilities are predicted.
    parents
        (class, another task, the class of it that this one is a kind of), of `yes_or_no_classes`; that task may be
        absent from a fit.
    """

    name: str
    kind: Kind
    classes: tuple[str, ...] = ()
    unit: str = ""
    horizons: tuple[float, ...] = ()
    parents: tuple[tuple[str, str, str], ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise UsageError(f"task '{self.name}': kind '{self.kind}' is none of {', '.join(get_args(Kind))}")
        object.__setattr__(self, "classes", tuple(str(c) for c in self.classes))
        if self.kind in ("multiclass", "multilabel") and not self.classes:
            raise UsageError(f"task '{self.name}': a {self.kind} task needs the names of its classes")
        object.__setattr__(self, "horizons", tuple(float(h) for h in self.horizons))
        ascending = all(a < b for a, b in itertools.pairwise((0.0, *self.horizons)))
        if self.kind == "survival" and not (self.horizons and ascending):
            raise UsageError(f"task '{self.name}': a survival task needs horizons above 0, ascending")
        object.__setattr__(self, "parents", tuple((str(c), str(t), str(p)) for c, t, p in self.parents))
        for child, task, parent in self.parents:
            if child not in self.yes_or_no_classes:
                raise UsageError(f"task '{self.name}': '{child}' has a parent, and is no class that is there or not")
            if task == self.name:
                raise UsageError(f"task '{self.name}': parent '{parent}' of '{child}' must be of another task")

    @property
    def yes_or_no_classes(self) -> tuple[str, ...]:
        """Classes that a record has or has not: all of a multilabel task, the positive one of a binary task."""
        return {"multilabel": self.classes, "binary": self.classes[1:]}.get(self.kind, ())

    @property
    def n_outputs(self) -> int:
        """Number of output columns of a head."""
        return len(self.classes) if self.kind in ("multiclass", "multilabel") else 1

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict that `TaskSpec(**d)` reads; horizons and parents only where there are some."""
        content = {**asdict(self), "classes": list(self.classes), "horizons": list(self.horizons)}
        content["parents"] = [list(link) for link in self.parents]
        return {key: value for key, value in content.items() if key not in ("horizons", "parents") or value}


@dataclass(frozen=True)
class Block:
    """Columns `start:stop` of every logits array belong to `task`."""

    task: TaskSpec
    start: int
    stop: int

    @property
    def columns(self) -> slice:
        """The block as a slice of the last axis."""
        return slice(self.start, self.stop)


def layout(tasks: Iterable[TaskSpec]) -> tuple[Block, ...]:
    """Lay the tasks' output columns side by side, in the order given."""
    blocks, start = [], 0
    for task in tasks:
        blocks.append(Block(task, start, start + task.n_outputs))
        start += task.n_outputs
    return tuple(blocks)


def n_columns(blocks: tuple[Block, ...]) -> int:
    """Total number of output columns."""
    return blocks[-1].stop if blocks else 0


def infer_tasks(targets: Mapping[str, Any]) -> tuple[TaskSpec, ...]:
    """Guess each task's kind from its array: 2-D is multilabel, strings multiclass, {0, 1} binary, floats regression.

    Whole numbers from 0 with three to twenty different values count as class indices; give `tasks` where that is wrong,
    and for survival targets, which look like a regression's.
    """
    return tuple(_infer(name, np.asarray(values)) for name, values in targets.items())


def _infer(name: str, values: np.ndarray) -> TaskSpec:
    if values.ndim == 2:
        return TaskSpec(name, "multilabel", tuple(str(k) for k in range(values.shape[1])))
    if values.dtype.kind in "OUS":
        present = [v for v in values.tolist() if isinstance(v, str)]
        if present:
            return TaskSpec(name, "multiclass", tuple(sorted(set(present))))
        values = values.astype(float)
    known = np.unique(values[np.isfinite(values)]) if values.dtype.kind == "f" else np.unique(values)
    known = known[known >= 0] if values.dtype.kind in "iu" else known
    if len(known) and set(known.tolist()) <= {0, 1}:
        return TaskSpec(name, "binary", ("0", "1"))
    whole = len(known) > 0 and bool(np.all(known == np.round(known))) and known.min() == 0
    if whole and 3 <= len(known) <= 20:
        return TaskSpec(name, "multiclass", tuple(str(k) for k in range(int(known.max()) + 1)))
    return TaskSpec(name, "regression")


def encode(task: TaskSpec, values: Any, n_records: int) -> tuple[np.ndarray, np.ndarray]:
    """Turn one task's targets into columns.

    Parameters
    ----------
    values
        [n] (regression: NaN missing; binary: 0, 1, NaN or -1 missing; multiclass: index or class name, NaN, -1 or
        None missing) or [n, classes] of 0, 1, NaN (multilabel). Survival: signed times [n], NaN missing.

    Returns
    -------
    y, known : [n, n_outputs]
        y (float64 for regression and survival, else float32) is one-hot for multiclass and 0 where missing; `known`
        (float32) is 1 where a label is there.

    Raises
    ------
    InputError
        Wrong shape, or a value that is no class.
    """
    array = np.asarray(values)
    wanted = (n_records, task.n_outputs) if task.kind == "multilabel" else (n_records,)
    if array.shape != wanted:
        raise InputError(f"task '{task.name}': targets have shape {array.shape}, expected {wanted}")
    if task.kind == "multiclass":
        return _encode_classes(task, array)
    is_value = task.kind in ("regression", "survival")
    if is_value or array.dtype != np.float32:
        array = array.astype(np.float64)
    array = array.reshape(n_records, -1)
    known = np.isfinite(array) if is_value else np.isfinite(array) & (array != -1)
    if task.kind == "survival" and (array == 0).any():
        raise InputError(f"task '{task.name}': a time of 0; times must be above 0 (minus where censored)")
    if not is_value:
        wrong = array[known & (array != 0) & (array != 1)]
        if wrong.size:
            raise InputError(f"task '{task.name}': label {wrong[0]:g} is neither 0, 1 nor missing")
    # float64 regression targets are standardised before they meet a head; float32 here would round large units
    y = np.zeros(array.shape, np.float64 if is_value else np.float32)
    np.copyto(y, array, where=known, casting="same_kind")
    return y, known.astype(np.float32)


def _encode_classes(task: TaskSpec, array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    n_classes = task.n_outputs
    if array.dtype.kind in "OUS":
        index_of = {name: k for k, name in enumerate(task.classes)}
        index = np.array([_class_index(task, index_of, v) for v in array.tolist()])
    else:
        values = array.astype(np.float64)
        index = np.where(np.isfinite(values), values, -1)
    wrong = index[(index < -1) | (index >= n_classes) | (index != np.round(index))]
    if wrong.size:
        raise InputError(f"task '{task.name}': class index {wrong[0]:g} is outside 0..{n_classes - 1}")
    known = index >= 0
    y = np.zeros((len(index), n_classes), np.float32)
    y[np.flatnonzero(known), index[known].astype(int)] = 1
    return y, np.repeat(known[:, None], n_classes, axis=1).astype(np.float32)


def _class_index(task: TaskSpec, index_of: Mapping[str, int], value: Any) -> float:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return -1
    if isinstance(value, str):
        if value not in index_of:
            raise InputError(f"task '{task.name}': '{value}' is none of its classes ({', '.join(task.classes)})")
        return index_of[value]
    return float(value)


def unusable(task: TaskSpec, y: np.ndarray, known: np.ndarray) -> str | None:
    """Say why these training rows cannot teach the task, or None where they can.

    Parameters
    ----------
    y, known
        [rows, n_outputs], of the training rows alone.
    """
    if not known.any():
        return "no training record has a label"
    if task.kind == "regression":
        values = y[known[:, 0] > 0, 0]
        return None if np.ptp(values) > 0 else f"every training label is {values[0]:g}"
    if task.kind == "survival":
        n_events = int(((y > 0) & (known > 0)).sum())
        return None if n_events >= FEWEST_EVENTS else f"{n_events} events in training; {FEWEST_EVENTS} are needed"
    # in double precision: single precision stops counting at 16.8 million
    positives, seen = np.einsum("rc,rc->c", y, known, dtype=np.float64), known.sum(0, dtype=np.float64)
    if task.kind == "multiclass":
        one = f"every training label is '{task.classes[int(np.argmax(positives))]}'"
        return None if np.count_nonzero(positives) >= 2 else one
    both = np.any((positives > 0) & (positives < seen))
    return None if both else "the training labels hold one class only"
