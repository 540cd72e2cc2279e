"""Stage `evaluate`: what gate, single experts and reference methods say of held-out patients, and how well."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from cache.errors import InputError
from cache.files import staged
from stages.evaluate.attention import mean_attention
from stages.evaluate.decisions import check_prevalence, judge_decisions
from stages.evaluate.learning_curve import fit_predictions, learning_curve, write_block
from stages.evaluate.methods import (
    COMPARED,
    ENECG,
    FinishedMethods,
    FoldPredictions,
    Setting,
    fitted_method,
    state_key,
)
from stages.evaluate.retrieval import retrieval_precision
from stages.evaluate.settings import EvaluatePaths, EvaluateSettings, EvaluateSummary
from stages.heads import EnsembleHeads
from stages.learning.data import Data, read_data
from stages.learning.folds import make_splits
from stages.learning.gate_signal import leads_of, read_gate_signal
from stages.learning.saved_fit import ENECG_FOLDER, load_heads
from stages.scoring.comparison import EXPERT_PREFIX, Draws, Resample, one_by_one
from stages.scoring.gate_weights import GateWeightWriter, writing_gate_weights
from stages.scoring.predictions import PredictionWriter, open_predictions, writing_predictions
from stages.scoring.summary import headline, summarise, write_json, write_metrics
from stages.settings import Machine
from stages.versions import package_versions

DEFAULT_METHODS = ("mean", "concat", "stacking", "trivial")
"""Reference methods that every evaluation reports beside the gate and the single experts."""


Progress = Callable[[str], None]
"""Called with the name of each method before it is fitted; one that is remembered is not fitted."""


def run(
    settings: EvaluateSettings,
    paths: EvaluatePaths,
    progress: Progress | None = None,
    *,
    machine: Machine = Machine(),  # noqa: B008 - frozen
) -> EvaluateSummary:
    """Predict validation and test rows with every method, and write predictions, gate weights, metrics and the rest.

    The files appear together at the end: an evaluation that fails leaves those of the one before.

    Parameters
    ----------
    machine
        Memory and device of what is fitted for comparison; a fit does not keep them.

    Raises
    ------
    FingerprintError
        The heads were fitted on other embeddings.
    """
    return run_by(one_by_one, settings, paths, progress, machine=machine)


def run_by(
    resample: Resample,
    settings: EvaluateSettings,
    paths: EvaluatePaths,
    progress: Progress | None = None,
    *,
    machine: Machine = Machine(),  # noqa: B008 - frozen
) -> EvaluateSummary:
    """Do what `run` does, with the bootstrap of metrics.json left to `resample`: the files are the same bytes."""
    report = progress or (lambda name: None)  # noqa: ARG005
    data = read_data(paths.records, paths.stores, memory_gb=machine.memory_gb)
    heads = load_heads(paths.heads, data).set_params(memory_gb=machine.memory_gb, device=machine.device)
    data = _only(data, heads)
    splits = make_splits(data, heads.provenance_["folds"])
    signal = read_gate_signal(heads, paths.signals, leads_of(heads))
    if not any(len(test) for _, _, test in splits):
        raise InputError(
            f"{paths.records}: no record with a vector is in the test split; nothing can be measured: give more "
            "patients, or a column `split`"
        )
    check_prevalence(settings.prevalence, data.tasks)
    setting = Setting(data, heads, splits, signal, paths.stores, paths.signals, paths.heads)
    finished = FinishedMethods(paths.finished, state_key(paths.heads, paths.records, data.fingerprints))
    found = EvaluateSummary(settings.compare, settings.fractions)
    with staged(_outputs(paths)) as drafts:
        # gate, experts, mean and stacking ask the same heads about the same records
        with heads.remembering(setting.judged):
            _predict(setting, finished, found, drafts, report)
        found.metrics = summarise(
            open_predictions(drafts[paths.predictions]),
            data.rows,
            settings.bootstrap,
            settings.seed,
            resample=resample,
        )
        if settings.fractions:
            draws = Draws(settings.bootstrap, settings.seed)
            found.learning_curve, found.missing_points = learning_curve(
                setting, finished.folder, settings.fractions, found.metrics, draws, report, resample
            )
        found.attention = mean_attention(heads, data, splits)
        if settings.compare:
            found.retrieval = retrieval_precision(setting)
        write_json(drafts[paths.evaluation], found.evaluation(package_versions()))
        if paths.costs is not None:
            write_json(drafts[paths.costs], found.run_costs())
        write_json(drafts[paths.headline], headline(found.metrics))
        if paths.decisions is not None:
            found.decisions = judge_decisions(
                open_predictions(drafts[paths.predictions]),
                heads.decisions_,
                data.rows,
                Draws(settings.bootstrap, settings.seed),
                settings.prevalence,
            )
            write_metrics(drafts[paths.decisions], found.decisions, drafts[paths.predictions])
        write_metrics(drafts[paths.metrics], found.metrics, drafts[paths.predictions])
    return found


def _outputs(paths: EvaluatePaths) -> tuple[Path, ...]:
    """Return what is written, in the order of appearance: metrics.json, which names its predictions, last."""
    more = tuple(path for path in (paths.costs, paths.decisions) if path is not None)
    return paths.predictions, paths.gate_weights, paths.evaluation, *more, paths.headline, paths.metrics


def _predict(
    setting: Setting, finished: FinishedMethods, found: EvaluateSummary, drafts: Mapping[Path, Path], report: Progress
) -> None:
    """Write the predictions of every method, and the gate's weights."""
    data = setting.data
    methods = COMPARED if found.compare else DEFAULT_METHODS
    if (setting.heads_folder / ENECG_FOLDER).is_dir() and ENECG not in methods:
        methods = (*methods, ENECG)
    predictions_path, weights_path, *_ = drafts.values()
    with writing_predictions(predictions_path, {t.name: t for t in data.tasks}) as table:
        for method, predictions in _predictors(setting, finished, methods, found, report):
            _write(table, setting, method, predictions)
    with writing_gate_weights(weights_path) as weights:
        _write_gate(weights, setting)


def _only(data: Data, heads: EnsembleHeads) -> Data:
    """Keep the experts and tasks that were fitted, in the order of the fit."""
    by_name = {task.name: task for task in data.tasks}
    return replace(
        data,
        features={name: data.features[name] for name in heads.experts_},
        targets={task.name: data.targets[task.name] for task in heads.tasks_},
        tasks=tuple(by_name[task.name] for task in heads.tasks_),
        seen={name: mask for name, mask in data.seen.items() if name in heads.experts_},
    )


def _predictors(
    setting: Setting,
    finished: FinishedMethods,
    methods: tuple[str, ...],
    found: EvaluateSummary,
    on_method: Progress,
) -> Iterator[tuple[str, FoldPredictions]]:
    for name, predictions in fit_predictions(setting).items():
        found.costs[name] = {"parameters": _n_parameters(setting.heads, name)}
        yield name, predictions
    for name in methods:
        try:
            predictions, found.costs[name], skipped = fitted_method(name, setting, finished, on_method)
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


def _write(table: PredictionWriter, setting: Setting, method: str, predictions: FoldPredictions) -> None:
    for fold, (_, val, test) in enumerate(setting.splits):
        # the published recipe has no validation set: it is trained on those rows
        parts = {"test": test} if method == ENECG else {"val": val, "test": test}
        for split, rows in parts.items():
            write_block(table, setting, method, split, fold, rows, predictions[fold])


def _write_gate(table: GateWeightWriter, setting: Setting) -> None:
    data, heads = setting.data, setting.heads
    for fold, (_, val, test) in enumerate(setting.splits):
        weights = heads.gate_weights(data.features, gate_signal=setting.signal, fold=fold)
        for task in data.tasks:
            for split, rows in (("val", val), ("test", test)):
                table.add(
                    task.name,
                    split,
                    fold,
                    record_ids=setting.ids.of(rows),
                    experts=heads.experts_,
                    weights=weights[task.name][rows],
                )
