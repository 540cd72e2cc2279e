"""Stage `external`: a fit of another study, judged on this one's labelled patients, of whom it has seen no label.

Lives here: the order of the steps and what is written. Not here: which tasks and classes are the same (`matching`),
what is measured beside the usual metrics (`calibration`, `recalibration`, `transfer`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from cache.errors import FingerprintError, InputError, MissingFileError
from cache.files import staged
from cache.record_columns import names_of
from cache.record_rows import RecordRows
from cache.storage.locations import file_exists, store_exists
from stages.external.calibration import calibration
from stages.external.matching import JudgedTask, judged_tasks
from stages.external.recalibration import recalibration
from stages.external.settings import ExternalPaths, ExternalSettings, ExternalSummary
from stages.external.transfer import transfer
from stages.heads import EnsembleHeads
from stages.learning.data import Data, RecordIds, read_data
from stages.learning.gate_signal import leads_of, read_gate_signal
from stages.learning.saved_fit import otherwise_made
from stages.scoring.comparison import EXPERT_PREFIX, MAIN_METHOD, Draws, Resample, labelled_test_block, one_by_one
from stages.scoring.predictions import Predictions, PredictionWriter, open_predictions, writing_predictions
from stages.scoring.record_parts import Records
from stages.scoring.summary import summarise, write_metrics
from stages.settings import Machine

Progress = Callable[[str], None]
"""Called with the name of each task before it is judged."""
MEAN_METHOD = "mean"


def run(
    settings: ExternalSettings,
    paths: ExternalPaths,
    progress: Progress | None = None,
    *,
    machine: Machine = Machine(),  # noqa: B008 - frozen
) -> ExternalSummary:
    """Predict every record here with the other study's fit, and write predictions.parquet and metrics.json.

    The labels of this study judge, and fit nothing but the recalibrations that say what labels would bring.

    Raises
    ------
    MissingFileError
        No fit, or no embeddings of one of its experts.
    FingerprintError
        An expert is not the one that the heads were fitted on (weights, version, preprocessing or precision).
    InputError
        No task of the fit can be judged here; the message says why each cannot.
    """
    return run_by(one_by_one, settings, paths, progress, machine=machine)


def run_by(
    resample: Resample,
    settings: ExternalSettings,
    paths: ExternalPaths,
    progress: Progress | None = None,
    *,
    machine: Machine = Machine(),  # noqa: B008 - frozen
) -> ExternalSummary:
    """Do what `run` does, with the bootstrap of metrics left to `resample`: the files are the same bytes."""
    heads, summary = EnsembleHeads.load(paths.heads), ExternalSummary()
    data = _data(heads, paths, machine)
    summary.notes += otherwise_made(data.row_options, heads)
    summary.notes += _shared_patients(data, paths)
    tasks, summary.left_out = judged_tasks(heads.tasks_, data, settings.fit)
    if not tasks:
        reasons = "; ".join(f"{task}: {reason}" for task, reason in summary.left_out.items())
        raise InputError(f"{paths.heads}: no task of this fit can be judged here: {reasons}")
    summary.notes += [
        f"task {task.target.name}: {task.n_other_class} records of a class that the fit does not know do not count"
        for task in tasks
        if task.n_other_class
    ]
    paths.folder.mkdir(parents=True, exist_ok=True)
    with staged((paths.predictions, paths.metrics)) as drafts:
        with writing_predictions(drafts[paths.predictions], {t.target.name: t.target for t in tasks}) as table:
            ids = RecordIds(data.rows, [np.arange(len(data.membership))])
            for method, answers in _answers(heads, data, paths):
                _write(table, data, ids, tasks, method, answers)
        predictions = open_predictions(drafts[paths.predictions])
        summary.metrics = _metrics(settings, paths, predictions, data.rows, progress or _silent, resample)
        summary.metrics["left_out"] |= summary.left_out
        summary.metrics["notes"] = summary.notes
        write_metrics(drafts[paths.metrics], summary.metrics, drafts[paths.predictions])
    return summary


def _silent(_: str) -> None:
    """Say nothing."""


def _data(heads: EnsembleHeads, paths: ExternalPaths, machine: Machine) -> Data:
    """Read this study's vectors of the fit's experts, which must be the very same experts."""
    for name in heads.experts_:
        if name not in paths.stores or not store_exists(paths.stores[name]):
            raise MissingFileError(
                f"{paths.heads} was fitted on expert '{name}', which has no embeddings here; name it under `experts` "
                f"in params.yaml as there, and run `ensemble embed --expert {name}`"
            )
    stores = {name: paths.stores[name] for name in heads.experts_}
    data = read_data(paths.records, stores, memory_gb=machine.memory_gb)
    for name, identity in heads.provenance_["identities"].items():
        if data.identities.get(name) != identity:
            raise FingerprintError(
                f"expert '{name}' of this study is not the one that {paths.heads} was fitted on (weights, version, "
                f"preprocessing or precision differ); embed with the other study's entry under `experts`"
            )
    return data


def _shared_patients(data: Data, paths: ExternalPaths) -> list[str]:
    if not file_exists(paths.their_records):
        return []
    theirs, ours = RecordRows(paths.their_records), data.membership
    same_source = theirs.texts("source").within(names_of([ours.source])) >= 0
    known = names_of([theirs.texts("patient_id").take(same_source)])
    n, shared = ours.patient.n_used, replace(ours.patient, codes=ours.patient.within(known), names=known).n_used
    if not shared:
        return []
    return [
        f"{shared} of {n} patients have the id of one in the fit's own study, from the same source: where they "
        "are the same people, these figures are too good"
    ]


def _answers(heads: EnsembleHeads, data: Data, paths: ExternalPaths) -> Iterator[tuple[str, Mapping[str, np.ndarray]]]:
    signal = read_gate_signal(heads, paths.signals, leads_of(heads))
    yield MAIN_METHOD, heads.predict_proba(data.features, gate_signal=signal)
    yield MEAN_METHOD, heads.uniform_mean(data.features, gate_signal=signal)
    alone = heads.expert_predictions(data.features, gate_signal=signal)
    for name in heads.experts_:
        yield f"{EXPERT_PREFIX}{name}", alone[name]


def _write(
    table: PredictionWriter,
    data: Data,
    ids: RecordIds,
    tasks: list[JudgedTask],
    method: str,
    answers: Mapping[str, np.ndarray],
) -> None:
    """Write one method's predictions; a record that it has none for is left out."""
    for task in tasks:
        predicted = task.predicted(np.asarray(answers[task.target.name]))
        rows = np.flatnonzero(np.isfinite(predicted.reshape(len(predicted), -1)).all(axis=1))
        table.add(
            task.target.name,
            method,
            "test",
            0,
            record_ids=ids.of(rows),
            patient_ids=data.patient_ids(rows),
            y_true=task.truth[rows],
            y_pred=predicted[rows],
        )


def _metrics(
    settings: ExternalSettings,
    paths: ExternalPaths,
    predictions: Predictions,
    records: Records | None,
    report: Progress,
    resample: Resample,
) -> dict[str, Any]:
    """Return the usual metrics, and each task's calibration, drop and recalibration."""
    draws = Draws(settings.bootstrap, settings.seed)
    metrics = summarise(predictions, records, draws.n, draws.seed, resample=resample)
    theirs = open_predictions(paths.their_predictions) if paths.their_predictions.is_file() else None
    metrics |= {"fit": settings.name, "calibration": {}, "transfer": {}, "recalibration": {}}
    for name in metrics["tasks"]:
        report(name)
        target, block = predictions.tasks[name], labelled_test_block(predictions, name, MAIN_METHOD)
        metrics["calibration"][name] = calibration(target, block, draws)
        if theirs is not None:
            metrics["transfer"][name] = transfer(target, block, theirs, MAIN_METHOD, draws, resample)
        metrics["recalibration"][name] = recalibration(
            target, block, settings.fit.recalibrated_on, settings.draws, settings.seed
        )
    return metrics
