"""Where in the ten seconds a fit's attention looks: mean weight of each second over test records, by task and class.

Not here: the attention itself (`stages.heads.layers.attention`), the picture (`stages.report.attention_figures`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from cache.records import Target
from stages.heads import EnsembleHeads
from stages.heads.inputs.expert_features import ExpertFeatures
from stages.learning.data import Data
from stages.learning.folds import Split

ROWS = 4096
"""Records whose seconds are read at once."""
Json = dict[str, Any]


def mean_attention(heads: EnsembleHeads, data: Data, splits: list[Split]) -> Json:
    """Average the attention that test records get from the fold that has not seen them.

    Returns
    -------
    expert -> task -> {"n", "seconds": [10 shares that sum to 1], "classes": {CLASS: {"n", "seconds"}}}; empty where the
    fit has no attention (`layer_mix` without it). A second that an expert has not seen has weight 0.
    """
    found: Json = {}
    for name, mixes in heads.mixers_.items():
        if mixes[0].attention is None:
            continue
        sums = {task.name: _Sums(task, data.targets[task.name]) for task in data.tasks}
        for mix, (_, _, test) in zip(mixes, splits, strict=True):
            for rows in np.array_split(test, -(-len(test) // ROWS) or 1):
                weights = mix.attention.weights(_segments(data, name, rows))
                for k, task in enumerate(heads.tasks_):
                    sums[task.name].add(rows, weights[k])
        found[name] = {task: one.means() for task, one in sums.items()}
    return found


def _segments(data: Data, expert: str, rows: np.ndarray) -> ExpertFeatures:
    parts = data.features[expert]
    return ExpertFeatures(parts["embedding"][rows], views={"segments": parts["segments"][rows]})


class _Sums:
    """Weights of one task added up, over all records and over those of each class."""

    def __init__(self, target: Target, values: np.ndarray) -> None:
        self.members = dict(_members(target, values))
        self.sums: dict[str | None, tuple[int, np.ndarray]] = {}

    def add(self, rows: np.ndarray, weights: np.ndarray) -> None:
        """Add weights [k, second] of records; one without any known second counts nowhere."""
        known = np.isfinite(weights).all(-1)
        for name, mask in ((None, known), *((name, known & of[rows]) for name, of in self.members.items())):
            n, total = self.sums.get(name, (0, np.zeros(weights.shape[1])))
            self.sums[name] = (n + int(mask.sum()), total + weights[mask].sum(0, dtype=np.float64))

    def means(self) -> Json:
        """Return means rounded to 1e-6, of classes that have records."""
        said = {name: _mean(n, total) for name, (n, total) in self.sums.items() if n}
        return {**said.pop(None, {"n": 0, "seconds": []}), "classes": said}


def _mean(n: int, total: np.ndarray) -> Json:
    return {"n": n, "seconds": [round(float(value), 6) for value in total / n]}


def _members(target: Target, values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Give each class with the mask [record] of those that have it; none for a value or a time."""
    if target.kind == "binary":
        for k, name in enumerate(target.classes or ("0", "1")):
            yield name, values == k
    elif target.kind == "multiclass":
        for k, name in enumerate(target.classes):
            yield name, values == k
    elif target.kind == "multilabel":
        for k, name in enumerate(target.classes):
            yield name, values[:, k] == 1
