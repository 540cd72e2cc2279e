"""scikit-learn manners, shared by `EnsembleHeads` and the reference methods: parameters, decisions, scores.

Lives here: what does not depend on how a method is fitted. Not here: any method.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from cache.errors import UsageError
from stages.heads.survival.concordance import harrells_c
from stages.heads.targets.tasks import TaskSpec, encode

Predictions = dict[str, np.ndarray]


class Estimator:
    """Base of estimators whose constructor only stores its parameters."""

    tasks_: tuple[TaskSpec, ...]

    def get_params(self, deep: bool = True) -> dict[str, Any]:  # noqa: ARG002
        """Return the constructor's parameters (`deep` is scikit-learn's, and changes nothing)."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **params: Any) -> Self:
        """Set constructor parameters.

        Raises
        ------
        UsageError
            A parameter that does not exist.
        """
        known = self.get_params()
        for name, value in params.items():
            if name not in known:
                raise UsageError(f"{type(self).__name__} has no parameter '{name}'; it has: {', '.join(known)}")
            setattr(self, name, value)
        return self

    def __sklearn_tags__(self) -> Any:
        """Describe the estimator to scikit-learn."""
        from sklearn.base import BaseEstimator

        return BaseEstimator().__sklearn_tags__()

    def __repr__(self) -> str:
        """Show the parameters that differ from their defaults."""
        defaults = {k: p.default for k, p in inspect.signature(type(self)).parameters.items()}
        changed = [f"{k}={v!r}" for k, v in self.get_params().items() if v != defaults[k]]
        return f"{type(self).__name__}({', '.join(changed)})"


def decide(tasks: tuple[TaskSpec, ...], means: Predictions) -> Predictions:
    """Probabilities -> class 0 or 1 (binary, each class of multilabel), class index (multiclass); -1 where NaN.

    Values stay values; of a survival task the log-hazard is kept.
    """
    out = {}
    for task in tasks:
        p = means[task.name]
        if task.kind == "regression":
            out[task.name] = p
        elif task.kind == "survival":
            out[task.name] = p[:, 0]
        elif task.kind == "multiclass":
            unknown = np.asarray(np.isnan(p).any(axis=1))
            out[task.name] = np.where(unknown, -1, np.argmax(np.where(unknown[:, None], 0, p), axis=1))
        else:
            out[task.name] = np.where(np.isnan(p), -1, p >= 0.5).astype(int)
    return out


def mean_score(tasks: tuple[TaskSpec, ...], predicted: Predictions, targets: Mapping[str, Any]) -> float:
    """Mean over tasks of R2, Harrell's C (survival) or accuracy (others), on labelled records; higher is better."""
    return float(np.mean([_task_score(t, predicted[t.name], targets[t.name]) for t in tasks]))


def _task_score(task: TaskSpec, predicted: np.ndarray, values: Any) -> float:
    y, known = encode(task, values, len(predicted))
    seen = known[:, 0] > 0
    if task.kind == "regression":
        truth = y[seen, 0]
        return 1 - float(((truth - predicted[seen]) ** 2).sum() / max(((truth - truth.mean()) ** 2).sum(), 1e-12))
    if task.kind == "survival":
        return harrells_c(y[seen, 0], predicted[seen])
    if task.kind == "multiclass":
        return float((y.argmax(1) == predicted)[seen].mean())
    return float((y == predicted.reshape(y.shape))[known > 0].mean())
