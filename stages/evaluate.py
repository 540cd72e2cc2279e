"""Stage `evaluate`: what gate, single experts and reference methods say of held-out patients, and how well."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from stages.evaluation.gate_weights import GateWeightWriter, writing_gate_weights
from stages.evaluation.predictions import PredictionWriter, open_predictions, writing_predictions
from stages.evaluation.summary import headline, summarise, write_metrics
from stages.features import Data, Split, make_splits, read_data, task_specs
from stages.fits import load_heads, read_gate_signal
from stages.heads import EnsembleHeads
from stages.heads.baselines import METHODS

DEFAULT_METHODS = ("mean", "concat", "stacking", "trivial")
"""Reference methods that every evaluation reports beside the gate and the single experts."""

Predict = Callable[[int], Mapping[str, np.ndarray]]
"""Fold -> task -> predictions for all rows."""


@dataclass(frozen=True)
class EvaluationPaths:
    """Where an evaluation reads and writes."""

    records: Path
    signals: Path
    heads: Path
    predictions: Path
    gate_weights: Path
    metrics: Path
    headline: Path
    """The first metric of each task and method: short enough for `dvc metrics show`."""


@dataclass
class Evaluation:
    """What an evaluation found."""

    metrics: dict[str, Any]
    costs: dict[str, dict[str, float]] = field(default_factory=dict)
    """Method -> trainable parameters and seconds of fitting."""


def evaluate(
    paths: EvaluationPaths,
    stores: Mapping[str, Path],
    *,
    methods: tuple[str, ...] = DEFAULT_METHODS,
    n_resamples: int = 1000,
    seed: int = 0,
    on_method: Callable[[str], None] | None = None,
) -> Evaluation:
    """Predict validation and test rows with every method, and write predictions, gate weights and metrics.

    Parameters
    ----------
    stores
        Expert -> its store; those that the heads were fitted on.
    methods
        Reference methods of `stages.heads.baselines.METHODS`, fitted here on the same splits.
    n_resamples
        Patient resamples behind each 95 % interval.
    on_method
        Called with each method's name before it is fitted.

    Raises
    ------
    FingerprintError
        The heads were fitted on other embeddings.
    """
    data = read_data(paths.records, stores)
    heads = load_heads(paths.heads, data)
    data = _only(data, heads)
    splits = make_splits(data, heads.provenance_["folds"])
    signal = read_gate_signal(heads, paths.signals)
    found = Evaluation({})
    with writing_predictions(paths.predictions, {t.name: t for t in data.tasks}) as table:
        for method, predict in _predictors(
            data, heads, splits, signal, methods, found, on_method or (lambda name: None)
        ):
            _write(table, data, splits, method, predict)
    with writing_gate_weights(paths.gate_weights) as weights:
        _write_gate(weights, data, heads, splits, signal)
    found.metrics = summarise(open_predictions(paths.predictions), data.records, n_resamples, seed)
    write_metrics(paths.metrics, found.metrics)
    write_metrics(paths.headline, headline(found.metrics))
    return found


def _only(data: Data, heads: EnsembleHeads) -> Data:
    """Keep the experts and tasks that were fitted, in the order of the fit."""
    by_name = {task.name: task for task in data.tasks}
    return replace(
        data,
        features={name: data.features[name] for name in heads.experts_},
        targets={task.name: data.targets[task.name] for task in heads.tasks_},
        tasks=tuple(by_name[task.name] for task in heads.tasks_),
    )


def _predictors(
    data: Data,
    heads: EnsembleHeads,
    splits: list[Split],
    signal: np.ndarray | None,
    methods: tuple[str, ...],
    found: Evaluation,
    on_method: Callable[[str], None],
) -> Iterator[tuple[str, Predict]]:
    found.costs["gate"] = {"parameters": heads.n_trainable_}
    yield "gate", lambda fold: heads.predict_proba(data.features, gate_signal=signal, fold=fold)
    single = {f: heads.expert_predictions(data.features, gate_signal=signal, fold=f) for f in range(len(splits))}
    for name in heads.experts_:
        yield f"expert:{name}", lambda fold, name=name: single[fold][name]  # type: ignore[misc]
    for name in methods:
        on_method(name)
        started = time.perf_counter()
        method = _make(name, heads)
        method.fit(
            data.features,
            data.targets,
            task_specs(data.tasks),
            splits=splits,
            groups=data.patients,
            gate_signal=signal,
        )
        found.costs[name] = {"parameters": method.n_trainable_, "seconds": time.perf_counter() - started}
        yield name, lambda fold, method=method: method.predict_proba(data.features, gate_signal=signal, fold=fold)  # type: ignore[misc]


def _make(name: str, heads: EnsembleHeads) -> Any:
    """Construct a reference method with what it shares with the heads: the fit itself, layer mixing, seed."""
    factory = METHODS[name]
    if name in ("mean", "stacking"):
        return factory(heads=heads)
    return factory() if name == "trivial" else factory(seed=heads.seed)


def _write(table: PredictionWriter, data: Data, splits: list[Split], method: str, predict: Predict) -> None:
    ids, patients = data.records["record_id"].to_numpy(), data.patients
    for fold, (_, val, test) in enumerate(splits):
        predicted = predict(fold)
        for task in data.tasks:
            y_pred = np.asarray(predicted[task.name])
            known = np.isfinite(y_pred.reshape(len(y_pred), -1)).all(axis=1)  # an absent expert says nothing
            for split, part in (("val", val), ("test", test)):
                rows = part[known[part]]
                table.add(
                    task.name,
                    method,
                    split,
                    fold,
                    record_ids=ids[rows],
                    patient_ids=patients[rows],
                    y_true=data.targets[task.name][rows],
                    y_pred=y_pred[rows],
                )


def _write_gate(
    table: GateWeightWriter, data: Data, heads: EnsembleHeads, splits: list[Split], signal: np.ndarray | None
) -> None:
    ids = data.records["record_id"].to_numpy()
    for fold, (_, val, test) in enumerate(splits):
        weights = heads.gate_weights(data.features, gate_signal=signal, fold=fold)
        for task in data.tasks:
            for split, rows in (("val", val), ("test", test)):
                table.add(
                    task.name,
                    split,
                    fold,
                    record_ids=ids[rows],
                    experts=heads.experts_,
                    weights=weights[task.name][rows],
                )
