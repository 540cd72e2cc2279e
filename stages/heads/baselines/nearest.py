"""k nearest neighbours: what the training records nearest to a record have as labels. Nothing is trained.

Lives here: the common space of all experts, the neighbours, their answers and the choice of k. Not here: the spaces
that `ensemble similar` and `map` show (`stages.spaces`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stages.heads.baselines.base import Given, Reference
from stages.heads.estimator import Predictions
from stages.heads.fold_model import to_means
from stages.heads.inputs.expert_features import ExpertFeatures, mix_layers, read_features
from stages.heads.inputs.scaler import RobustScaler
from stages.heads.survival.baseline import fold_hazards
from stages.heads.targets.standardised import Targets
from stages.heads.targets.tasks import Block

SIZES = (5, 10, 20, 50)
"""Numbers of neighbours that are tried."""
PRIOR = 1.0
"""Records that the training set's average counts for among the neighbours, so that no answer is certain."""
BLOCK_ROWS = 1024
FLOOR = 1e-6


@dataclass(frozen=True)
class JointSpace:
    """All experts' embeddings side by side: standardised on training rows, experts of one weight, unit length."""

    scalers: Mapping[str, RobustScaler]

    @classmethod
    def fit(cls, features: Mapping[str, ExpertFeatures], rows: np.ndarray) -> JointSpace:
        """Fit each expert's scaler on the training rows that it has seen."""
        scalers = {}
        for name, part in features.items():
            x = mix_layers(name, part, ("embedding",), None)[rows]
            seen = np.isfinite(x).any(1)
            if seen.any():
                scalers[name] = RobustScaler.fit(x[seen])
        return cls(scalers)

    def vectors(self, features: Mapping[str, ExpertFeatures]) -> np.ndarray:
        """Return float32 [n, width]; a record that no expert has seen is a row of 0."""
        parts = []
        for name, scaler in self.scalers.items():
            x = mix_layers(name, features[name], ("embedding",), None)
            seen = np.isfinite(x).any(1, keepdims=True)
            parts.append(np.where(seen, scaler.transform(x), 0) / np.float32(np.sqrt(scaler.width)))
        joined = np.concatenate(parts, 1).astype(np.float32)
        length = np.linalg.norm(joined, axis=1, keepdims=True)
        return np.divide(joined, length, out=np.zeros_like(joined), where=length > 0)


def neighbours(
    queries: np.ndarray, kept: np.ndarray, n: int, who: np.ndarray | None = None, whose: np.ndarray | None = None
) -> Iterator[tuple[slice, np.ndarray]]:
    """Give blocks of queries with the positions [b, n] of their nearest kept vectors by cosine, nearest first.

    Parameters
    ----------
    who, whose
        Patient of each query and of each kept vector: the same patient's records are no neighbours. None: all are.
    """
    n = min(n, len(kept))
    for start in range(0, len(queries), BLOCK_ROWS):
        rows = slice(start, min(start + BLOCK_ROWS, len(queries)))
        closeness = queries[rows] @ kept.T
        if who is not None and whose is not None:
            closeness[who[rows, None] == whose[None]] = -np.inf
        some = np.argpartition(-closeness, n - 1, axis=1)[:, :n]
        order = np.argsort(-np.take_along_axis(closeness, some, 1), axis=1, kind="stable")
        yield rows, np.take_along_axis(some, order, 1)


@dataclass(frozen=True)
class _FoldNeighbours:
    """One fold's training records: vectors [t, d], labels [t, C] and which are known, and each task's k."""

    space: JointSpace
    vectors: np.ndarray
    y: np.ndarray
    known: np.ndarray
    sizes: Mapping[str, int]


class NearestRecords(Reference):
    """Mean label of the k nearest training records, by cosine over all experts' standardised embeddings.

    k is chosen for each task among `SIZES`, by the loss on the training records, each judged by those of other patients
    (Cover and Hart 1967; the average label counts as one more neighbour). Of times to event the answer is the log of
    the neighbours' rate of events against the average rate, with Breslow's baseline.
    """

    def __init__(self, *, on_unusable: str = "error") -> None:
        self.on_unusable = on_unusable

    def _fit(self, given: Given) -> None:
        """Keep each fold's training records, and choose each task's k."""
        features = given.read()
        n = len(next(iter(features.values())))
        folds, groups = given.folds(n)
        data = given.read_targets(folds, n, self.on_unusable)
        patients = np.arange(n) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
        self.blocks_, self.tasks_ = data.blocks, tuple(block.task for block in data.blocks)
        self.skipped_, self.n_folds_ = data.skipped, len(folds)
        self.centre_, self.scale_ = data.centre, data.scale
        self.folds_: list[_FoldNeighbours] = []
        hazards = []
        for fold, (rows, _, _) in enumerate(folds):
            space = JointSpace.fit(features, rows)
            vectors = space.vectors({name: part.take(rows) for name, part in features.items()})
            hazards.append(self._choose(fold, data, rows, space, vectors, patients[rows]))
        self.hazards_ = hazards

    def _choose(
        self, fold: int, data: Targets, rows: np.ndarray, space: JointSpace, vectors: np.ndarray, patients: np.ndarray
    ) -> np.ndarray:
        """Choose each task's k, keep the fold, and return the baseline hazards of survival tasks."""
        y, known = data.y[fold].numpy()[rows], data.known.numpy()[rows]
        found = {size: np.zeros_like(y) for size in SIZES}
        for part, near in neighbours(vectors, vectors, max(SIZES), patients, patients):
            for size in SIZES:
                found[size][part] = answers(self.blocks_, y, known, near[:, :size])
        sizes = {
            block.task.name: min(SIZES, key=lambda size: _loss(block, found[size], y, known)) for block in self.blocks_
        }
        self.folds_.append(_FoldNeighbours(space, vectors, y, known, sizes))
        held_out = np.concatenate([found[sizes[b.task.name]][:, b.columns] for b in self.blocks_], 1)
        return fold_hazards(held_out, y, known, self.blocks_)

    def fold_means(self, features: Mapping[str, Any], fold: int, signal: np.ndarray | None) -> Predictions:  # noqa: ARG002
        """Answer by one fold's training records; NaN for a record that no expert has seen."""
        kept = self.folds_[fold]
        queries = kept.space.vectors(read_features(features))
        logits = np.zeros((len(queries), kept.y.shape[1]), np.float32)
        for part, near in neighbours(queries, kept.vectors, max(SIZES)):
            for block in self.blocks_:
                size, c = kept.sizes[block.task.name], block.columns
                logits[part, c] = answers(self.blocks_, kept.y, kept.known, near[:, :size])[:, c]
        logits[~queries.any(1)] = np.nan
        return to_means(logits, self.centre_[fold], self.scale_[fold], self.blocks_, self._hazards(fold))


def answers(blocks: tuple[Block, ...], y: np.ndarray, known: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Return what neighbours [q, k] of training labels y [t, C] say, as logits [q, C]."""
    weight = known[near]
    count = weight.sum(1)
    average = (y * known).sum(0) / np.maximum(known.sum(0), 1)
    mean = ((y[near] * weight).sum(1) + PRIOR * average) / (count + PRIOR)
    for block in blocks:
        c = block.columns
        if block.task.kind == "survival":
            mean[:, c] = _log_rate(y[:, c], known[:, c], near)
        elif block.task.kind == "multiclass":
            mean[:, c] = np.log(np.maximum(mean[:, c], FLOOR))
        elif block.task.kind != "regression":
            p = np.clip(mean[:, c], FLOOR, 1 - FLOOR)
            mean[:, c] = np.log(p / (1 - p))
    return mean.astype(np.float32)


def _log_rate(signed: np.ndarray, known: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Return the log of the neighbours' events by time against the average, [q, 1]."""
    times, events = np.abs(signed) * known, (signed > 0) * known
    rate = events.sum(0) / np.maximum(times.sum(0), FLOOR)
    typical = times.sum(0) / np.maximum(known.sum(0), 1)
    expected = rate * (times[near].sum(1) + PRIOR * typical)
    return np.log((events[near].sum(1) + PRIOR * rate * typical + FLOOR) / np.maximum(expected, FLOOR))


def _loss(block: Block, logits: np.ndarray, y: np.ndarray, known: np.ndarray) -> float:
    """Return the mean loss of one task's answers where labels are known."""
    c, kind = block.columns, block.task.kind
    x, y, known = logits[:, c].astype(np.float64), y[:, c], known[:, c]
    if kind == "regression":
        losses = (x - y) ** 2
    elif kind == "survival":
        rate = (y > 0).sum() / max(np.abs(y).sum(), FLOOR)
        losses = rate * np.exp(x) * np.abs(y) - (y > 0) * x
    elif kind == "multiclass":
        losses = -y * (x - np.log(np.exp(x).sum(1, keepdims=True)))
    else:
        losses = np.logaddexp(0, x) - y * x
    return float((losses * known).sum() / max(known.sum(), 1))
