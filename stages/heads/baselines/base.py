"""The face that all reference methods share.

Lives here: `Reference`, and what its `fit` was called with (`Given`). Not here: the methods (`baselines.methods`,
`baselines.full_rank`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from stages.heads.crossfit import Split, check_groups, check_splits
from stages.heads.estimator import Estimator, Predictions, decide, mean_score
from stages.heads.inputs.expert_features import ExpertFeatures, read_features
from stages.heads.survival.baseline import fold_hazards
from stages.heads.targets.standardised import Targets, read_targets
from stages.heads.targets.tasks import TaskSpec, infer_tasks


@dataclass(frozen=True)
class Given:
    """The arguments of `fit`, and what all methods read of them."""

    features: Mapping[str, Any]
    targets: Mapping[str, Any]
    tasks: Sequence[TaskSpec] | None
    splits: Sequence[Sequence[Any]] | None
    groups: Any
    gate_signal: np.ndarray | None

    def read(self) -> dict[str, ExpertFeatures]:
        """Read every expert's features."""
        return read_features(self.features)

    def folds(self, n: int) -> tuple[list[Split], np.ndarray | None]:
        """Check splits and groups of `n` records; without splits all records train."""
        groups = check_groups(self.groups, n)
        return check_splits(self.splits if self.splits is not None else [(np.arange(n), [], [])], n, groups), groups

    def read_targets(self, folds: list[Split], n: int, on_unusable: str) -> Targets:
        """Lay out the targets, unbalanced."""
        tasks = tuple(self.tasks) if self.tasks is not None else infer_tasks(self.targets)
        skip = on_unusable == "skip"
        return read_targets(dict(self.targets), tasks, folds, n, skip_unusable=skip, balanced=False)


class Reference(Estimator, ABC):
    """Base: `fit(features, targets, tasks, splits=..., groups=...)`, `predict_proba(features, fold=...)`, `score`."""

    n_trainable_: int = 0

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
        self._fit(Given(features, targets, tasks, splits, groups, gate_signal))
        return self

    @abstractmethod
    def _fit(self, given: Given) -> None:
        """Fit all folds, and set `tasks_`, `n_folds_` and `n_trainable_`."""

    @abstractmethod
    def fold_means(self, features: Mapping[str, Any], fold: int, signal: np.ndarray | None) -> Predictions:
        """Probabilities or values of one fold's model."""

    n_folds_: int = 1
    hazards_: list[np.ndarray] | None = None
    """Per fold [T, horizons]: cumulative baseline hazards of survival tasks."""

    def _fit_hazards(self, given: Given, data: Targets, judged: np.ndarray) -> None:
        """Estimate baseline hazards from this method's log-hazards of records that judge it, [F, n]."""
        if not any(block.task.kind == "survival" for block in data.blocks):
            return
        n_columns = data.y.shape[2]
        width = max(len(block.task.horizons) for block in data.blocks)
        self.hazards_ = [np.zeros((len(data.blocks), width))] * len(judged)
        found = []
        for fold, rows in enumerate(judged):
            means = self.fold_means(given.features, fold, given.gate_signal)
            logits = np.zeros((len(rows), n_columns))
            for block in data.blocks:
                if block.task.kind == "survival":
                    logits[:, block.start] = means[block.task.name][:, 0]
            counted = data.known.numpy() * rows[:, None]
            found.append(fold_hazards(logits, data.y[fold].numpy(), counted, data.blocks))
        self.hazards_ = found

    def _hazards(self, fold: int) -> np.ndarray | None:
        return None if self.hazards_ is None else self.hazards_[fold]

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
        """Mean over tasks of R2, Harrell's C or accuracy."""
        return mean_score(self.tasks_, self.predict(features, gate_signal=gate_signal, fold=fold), targets)
