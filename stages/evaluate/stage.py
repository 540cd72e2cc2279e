"""Stage `evaluate`: what gate, single experts and reference methods say of held-out patients, and how well."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cache.errors import InputError
from cache.storage.locations import Place
from stages.evaluate.learning_curve import fit_predictions, learning_curve, write_block
from stages.evaluate.methods import ENECG, Costs, FoldPredictions, Memory, Setting, fitted_method, state_key
from stages.heads import EnsembleHeads
from stages.learning.data import Data, read_data
from stages.learning.folds import Split, make_splits
from stages.learning.gate_signal import leads_of, read_gate_signal
from stages.learning.saved_fit import ENECG_FOLDER, load_heads
from stages.scoring.comparison import EXPERT_PREFIX, Draws
from stages.scoring.gate_weights import GateWeightWriter, writing_gate_weights
from stages.scoring.predictions import PredictionWriter, open_predictions, writing_predictions
from stages.scoring.summary import headline, summarise, write_metrics

DEFAULT_METHODS = ("mean", "concat", "stacking", "trivial")
"""Reference methods that every evaluation reports beside the gate and the single experts."""


@dataclass(frozen=True)
class EvaluationPaths:
    """Where an evaluation reads and writes."""

    records: Path
    signals: Place
    heads: Path
    predictions: Path
    gate_weights: Path
    metrics: Path
    headline: Path
    """The first metric of each task and method: short enough for `dvc metrics show`."""
    memory: Path
    """Folder of finished methods, from which a killed evaluation goes on."""


@dataclass
class Evaluation:
    """What an evaluation found."""

    metrics: dict[str, Any]
    costs: dict[str, Costs] = field(default_factory=dict)
    """Method -> trainable parameters of one fold, seconds of fitting, peak memory in MB; None where unknown."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Method, or "METHOD on TASK" -> why it could not be fitted on these data."""
    learning_curve: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Task -> points {"fraction", "method", "metric", "value", "low", "high"}."""
    missing_points: dict[str, dict[str, str]] = field(default_factory=dict)
    """Task -> fraction, such as "0.1" -> why the learning curve has no point there."""


def evaluate(
    paths: EvaluationPaths,
    stores: Mapping[str, Place],
    *,
    methods: tuple[str, ...] = DEFAULT_METHODS,
    fractions: tuple[float, ...] = (),
    n_resamples: int = 1000,
    seed: int = 0,
    memory_gb: float | str = "auto",
    device: str = "auto",
    on_method: Callable[[str], None] | None = None,
) -> Evaluation:
    """Predict validation and test rows with every method, and write predictions, gate weights and metrics.

    Parameters
    ----------
    stores
        Expert -> its store; those that the heads were fitted on.
    methods
        Reference methods of `stages.evaluate.methods.COMPARED`, fitted on the same splits. `enecg` is added where the
        fit holds the preset.
    fractions
        Shares of the training and validation patients for the learning curve; none, no curve.
    n_resamples
        Patient resamples behind each 95 % interval.
    memory_gb, device
        Of `stages.heads.EnsembleHeads`: a fit does not keep them, and what is fitted here takes these.
    on_method
        Called with each method's name before it is fitted; a method that is remembered is not fitted.

    Raises
    ------
    FingerprintError
        The heads were fitted on other embeddings.
    """
    data = read_data(paths.records, stores, memory_gb=memory_gb)
    heads = load_heads(paths.heads, data).set_params(memory_gb=memory_gb, device=device)
    data = _only(data, heads)
    splits = make_splits(data, heads.provenance_["folds"])
    signal = read_gate_signal(heads, paths.signals, leads_of(heads))
    setting = Setting(data, heads, splits, signal, stores, paths.signals, paths.heads)
    memory = Memory(paths.memory, state_key(paths.heads, paths.records, data.fingerprints))
    if (paths.heads / ENECG_FOLDER).is_dir() and ENECG not in methods:
        methods = (*methods, ENECG)
    found = Evaluation({})
    report = on_method or (lambda name: None)
    with writing_predictions(paths.predictions, {t.name: t for t in data.tasks}) as table:
        for method, predictions in _predictors(setting, memory, methods, found, report):
            _write(table, data, splits, method, predictions)
    with writing_gate_weights(paths.gate_weights) as weights:
        _write_gate(weights, data, heads, splits, signal)
    found.metrics = summarise(open_predictions(paths.predictions), data.records, n_resamples, seed)
    write_metrics(paths.metrics, found.metrics)
    write_metrics(paths.headline, headline(found.metrics))
    if fractions:
        draws = Draws(n_resamples, seed)
        found.learning_curve, found.missing_points = learning_curve(
            setting, memory.folder, fractions, found.metrics, draws, report
        )
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
    setting: Setting, memory: Memory, methods: tuple[str, ...], found: Evaluation, on_method: Callable[[str], None]
) -> Iterator[tuple[str, FoldPredictions]]:
    for name, predictions in fit_predictions(setting).items():
        found.costs[name] = {"parameters": _n_parameters(setting.heads, name)}
        yield name, predictions
    for name in methods:
        try:
            predictions, found.costs[name], skipped = fitted_method(name, setting, memory, on_method)
        except InputError as error:
            found.left_out[name] = str(error)
            continue
        found.left_out |= {f"{name} on {task}": reason for task, reason in skipped.items()}
        yield name, predictions


def _n_parameters(heads: EnsembleHeads, method: str) -> int:
    """Trainable parameters of one fold: of all, or of one expert's heads."""
    if method == "gate":
        return heads.n_trainable_
    head = heads.models_[0].heads[method.removeprefix(EXPERT_PREFIX)]
    return int(head.weight.size + head.bias.size + head.lora_a.size + head.lora_b.size)


def _write(table: PredictionWriter, data: Data, splits: list[Split], method: str, predictions: FoldPredictions) -> None:
    for fold, (_, val, test) in enumerate(splits):
        # the published recipe has no validation set: it is trained on those rows
        parts = {"test": test} if method == ENECG else {"val": val, "test": test}
        for split, rows in parts.items():
            write_block(table, data, method, split, fold, rows, predictions[fold])


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
