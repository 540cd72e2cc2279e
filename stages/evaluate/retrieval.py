"""How often the records nearest to a test record have its class: retrieval precision, in the space of all experts."""

from __future__ import annotations

import numpy as np

from cache.records import Target
from stages.evaluate.methods import Setting
from stages.heads.baselines.nearest import JointSpace, neighbours
from stages.heads.inputs.expert_features import read_features

NEAREST = 10


def retrieval_precision(setting: Setting) -> dict[str, dict[str, dict[str, float]]]:
    """Return task -> class -> {"precision_at_10", "by_chance", "records"}, for tasks that have classes.

    Of each test record with the class, the share of its ten nearest training records (those with a label; cosine, all
    experts' standardised embeddings) that have it too, averaged over records; by chance it is the class's share of the
    training records.
    """
    data, features = setting.data, read_features(setting.data.features)
    truths = {task.name: _hot(task, data.targets[task.name]) for task in data.tasks if task.kind not in _NO_CLASSES}
    shares: dict[str, list[np.ndarray]] = {name: [] for name in truths}
    chance: dict[str, list[np.ndarray]] = {name: [] for name in truths}
    for train, _, test in setting.splits:
        space = JointSpace.fit(features, train)
        kept, queries = (space.vectors({n: part.take(rows) for n, part in features.items()}) for rows in (train, test))
        near = np.concatenate([found for _, found in neighbours(queries, kept, NEAREST)])
        for name, hot in truths.items():
            has_class = (hot[test] == 1) & np.asarray(queries.any(axis=1))[:, None]
            shares[name].append(np.where(has_class, _mean(hot[train][near], axis=1), np.nan))
            chance[name].append(_mean(hot[train], axis=0))
    return {
        task.name: _by_class(_names(task), np.concatenate(shares[task.name]), np.mean(chance[task.name], axis=0))
        for task in data.tasks
        if task.name in truths
    }


_NO_CLASSES = ("regression", "survival")


def _names(task: Target) -> tuple[str, ...]:
    return task.classes or ("0", "1")


def _hot(task: Target, truth: np.ndarray) -> np.ndarray:
    """Return labels as [n, classes] of 0 and 1; NaN: missing."""
    if task.kind == "multilabel":
        return truth.astype(np.float64)
    codes = truth.astype(np.float64)
    hot = (codes[:, None] == np.arange(len(_names(task)))).astype(np.float64)
    hot[~(codes >= 0)] = np.nan
    return hot


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    known = np.isfinite(values)
    count = known.sum(axis)
    return np.divide(np.where(known, values, 0).sum(axis), count, out=np.full(count.shape, np.nan), where=count > 0)


def _by_class(names: tuple[str, ...], shares: np.ndarray, chance: np.ndarray) -> dict[str, dict[str, float]]:
    """Average over the records of each class; a class without a test record is left out."""
    counted = np.isfinite(shares).sum(0)
    return {
        name: {"precision_at_10": float(_mean(shares[:, k], 0)), "by_chance": float(chance[k]), "records": int(n)}
        for k, (name, n) in enumerate(zip(names, counted, strict=True))
        if n
    }
