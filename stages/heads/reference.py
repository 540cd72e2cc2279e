"""The face that all reference methods share.

Lives here: `Reference`. Not here: the methods (`baselines`, `fullrank`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from stages.heads.estimator import Estimator, Predictions, decide, mean_score
from stages.heads.tasks import TaskSpec


class Reference(Estimator, ABC):
    """Base: `fit(features, targets, tasks, splits=..., groups=...)`, `predict_proba(features, fold=...)`, `score`."""

    n_trainable_: int = 0

    @abstractmethod
    def fit(
        self,
        features: Mapping[str, Any],
        targets: Mapping[str, Any],
        tasks: Sequence[TaskSpec] | None = None,
        *,
        splits: Sequence[Sequence[Any]] | None = None,
        groups: Any = None,
        gate_signal: np.ndarray | None = None,
    ) -> Self:
        """Fit all folds; arguments as `EnsembleHeads.fit`."""

    @abstractmethod
    def fold_means(self, features: Mapping[str, Any], fold: int, signal: np.ndarray | None) -> Predictions:
        """Probabilities or values of one fold's model."""

    n_folds_: int = 1

    def predict_proba(
        self, features: Mapping[str, Any], *, gate_signal: np.ndarray | None = None, fold: int | None = None
    ) -> Predictions:
        """Probabilities or values; `fold` None averages the folds."""
        folds = range(self.n_folds_) if fold is None else [fold]
        means = [self.fold_means(features, f, gate_signal) for f in folds]
        return {task.name: np.mean([m[task.name] for m in means], axis=0) for task in self.tasks_}

    def predict(
        self, features: Mapping[str, Any], *, gate_signal: np.ndarray | None = None, fold: int | None = None
    ) -> Predictions:
        """Values, classes or class indices."""
        return decide(self.tasks_, self.predict_proba(features, gate_signal=gate_signal, fold=fold))

    def score(
        self,
        features: Mapping[str, Any],
        targets: Mapping[str, Any],
        *,
        gate_signal: np.ndarray | None = None,
        fold: int | None = None,
    ) -> float:
        """Mean over tasks of R2 or accuracy."""
        return mean_score(self.tasks_, self.predict(features, gate_signal=gate_signal, fold=fold), targets)
