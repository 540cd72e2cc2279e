"""Stage `robustness`: test records disturbed in known ways, answered by the frozen experts and the fit, and judged."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cache.errors import InputError, MissingFileError
from cache.files import replacing
from cache.record_rows import RecordRows
from cache.records import Target, open_records, target_array
from cache.signals import SignalStore, open_signals
from stages.heads import EnsembleHeads
from stages.robustness.answering import FitAnswerer
from stages.robustness.disturbances import Disturbance, DisturbedEcg, all_disturbances, disturbed
from stages.robustness.judge import ConditionJudge, Json, answered
from stages.robustness.settings import RobustnessPaths, RobustnessSettings, RobustnessSummary
from stages.scoring.blocks import PredictionBlock, has_label
from stages.scoring.bootstrap import LEVEL
from stages.scoring.comparison import Draws, judged_methods
from stages.scoring.predictions import Predictions, open_predictions, truth_columns
from stages.scoring.record_parts import rows_by_id
from stages.scoring.summary import write_metrics

Progress = Callable[[int, int], None]
"""Called with (answered, all) records, in all conditions."""
RECORDS_AT_ONCE = 32
SCHEMA_VERSION = 1
UNDISTURBED = "undisturbed"
Condition = Disturbance | None
"""None: undisturbed."""


@dataclass
class ChosenRecords:
    """The test records that are disturbed, in order, and every answer.

    Attributes
    ----------
    rows, fold
        Row in the stores, and the fit whose test record it is, [n].
    answers
        (condition, method, task) -> [n] or [n, answers], NaN where there is none.
    """

    rows: np.ndarray
    fold: np.ndarray
    answers: dict[tuple[Condition, str, str], np.ndarray] = field(default_factory=dict)


def run(settings: RobustnessSettings, paths: RobustnessPaths, progress: Progress | None = None) -> RobustnessSummary:
    """Disturb, answer, judge, and write robustness/NAME.parquet and NAME.json; equal inputs give equal bytes.

    Raises
    ------
    MissingFileError
        No evaluation, no fit or no signals.
    InputError
        No test record, or none of the experts can run.
    FingerprintError
        An expert is not the one that the heads were fitted on.
    """
    heads = EnsembleHeads.load(paths.heads)
    if not paths.signals.exists():
        raise MissingFileError(f"{paths.signals} does not exist; run `ensemble ingest` first")
    answerer, evaluated = FitAnswerer(heads, settings), open_predictions(paths.evaluated)
    test = _test_records(evaluated, RecordRows(paths.records), settings)
    columns = ["record_id", "patient_id", *evaluated.tasks]
    chosen = open_records(paths.records, columns=columns, rows=test.rows)
    conditions = all_disturbances(settings.kinds)
    _answer(test, conditions, answerer, open_signals(paths.signals), settings, progress)
    targets = {name: target for name, target in evaluated.tasks.items() if name in chosen}
    with replacing(paths.answers) as temporary:
        _write_answers(temporary, test, chosen, targets)
    results = _results(test, conditions, chosen, targets, settings) | {"absent": list(answerer.absent)}
    write_metrics(paths.results, results, paths.evaluated)
    return RobustnessSummary(results)


def _test_records(evaluated: Predictions, records: RecordRows, settings: RobustnessSettings) -> ChosenRecords:
    """Draw the test records that the evaluation has judged."""
    fold = np.full(len(records), -1, np.int16)
    for task in evaluated.tasks:
        for method in judged_methods(evaluated, task)[:1]:
            block = evaluated.read(task, method, "test")
            of_name = np.empty(len(block.records.names), np.int16)
            of_name[block.records.codes] = block.fold
            rows = rows_by_id(records, block.records.names)
            if len(rows) < len(of_name):
                raise InputError(
                    f"{len(of_name) - len(rows)} evaluated records are not there; run `ensemble evaluate` again"
                )
            fold[rows] = of_name
    rows = np.flatnonzero(fold >= 0)
    if not len(rows):
        raise InputError("no test record has been evaluated; run `ensemble evaluate` first")
    if len(rows) > settings.records:
        rows = np.sort(np.random.default_rng(settings.seed).permutation(rows)[: settings.records])
    return ChosenRecords(rows, fold[rows])


def _answer(
    test: ChosenRecords,
    conditions: list[Disturbance],
    answerer: FitAnswerer,
    store: SignalStore,
    settings: RobustnessSettings,
    progress: Progress | None,
) -> None:
    derive = bool((answerer.heads.provenance_.get("rows") or {}).get("derive_leads"))
    done, total = 0, len(test.rows) * (1 + len(conditions))
    for positions in _batches(test):
        ecgs = [_read(store, int(row)) for row in test.rows[positions]]
        readable = [k for k, ecg in enumerate(ecgs) if ecg is not None]
        for condition in [None, *conditions]:
            asked = [
                ecg
                if condition is None
                else disturbed(
                    ecg,
                    condition,
                    (settings.seed, int(test.rows[positions[k]]), zlib.crc32(condition.kind.encode())),
                    derive_leads=derive,
                    mains_hz=settings.mains_hz,
                )
                for k, ecg in ((k, ecgs[k]) for k in readable)
                if ecg is not None
            ]
            if asked:
                said = answerer(asked, int(test.fold[positions[0]]))
                for method, of_tasks in said.items():
                    for task, values in of_tasks.items():
                        _put(test, (condition, method, task), positions[readable], values)
            done += len(positions)
            if progress is not None:
                progress(done, total)


def _batches(test: ChosenRecords) -> Iterator[np.ndarray]:
    """Give positions of records of one fold, some at a time."""
    for fold in np.unique(test.fold):
        positions = np.flatnonzero(test.fold == fold)
        for start in range(0, len(positions), RECORDS_AT_ONCE):
            yield positions[start : start + RECORDS_AT_ONCE]


def _read(store: SignalStore, row: int) -> DisturbedEcg | None:
    """Read one record; None where it could not be read."""
    for _, signals_mv, rate_hz in store.read_groups(slice(row, row + 1)):
        return DisturbedEcg(signals_mv[0], rate_hz)
    return None


def _put(test: ChosenRecords, key: tuple[Condition, str, str], positions: np.ndarray, values: np.ndarray) -> None:
    if key not in test.answers:
        test.answers[key] = np.full((len(test.rows), *values.shape[1:]), np.nan, dtype=np.float32)
    test.answers[key][positions] = values


def _level(condition: Condition) -> tuple[str, str]:
    if condition is None:
        return UNDISTURBED, ""
    return condition.kind, condition.level if isinstance(condition.level, str) else f"{condition.level:g}"


def _write_answers(path: object, test: ChosenRecords, chosen: pd.DataFrame, targets: dict[str, Target]) -> None:
    """Write every answer, long: columns of predictions.parquet, and `kind` and `level` of the disturbance."""
    writer: pq.ParquetWriter | None = None
    try:
        for (condition, method, task), values in test.answers.items():
            if task not in targets:
                continue
            table = _long_answers(chosen, test.fold, condition, (method, task), values, targets[task])
            writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()


def _long_answers(
    chosen: pd.DataFrame,
    fold: np.ndarray,
    condition: Condition,
    said: tuple[str, str],
    values: np.ndarray,
    target: Target,
) -> pa.Table:
    wide = values.reshape(len(values), -1)
    truth = truth_columns(target, target_array(chosen, target))
    n, k = wide.shape
    kind, level = _level(condition)
    frame = pd.DataFrame(
        {
            "record_id": np.repeat(chosen["record_id"].astype(str).to_numpy(), k),
            "patient_id": np.repeat(chosen["patient_id"].astype(str).to_numpy(), k),
            "task": said[1],
            "class": np.tile(np.array(target.answers or ("",), dtype=object), n),
            "method": said[0],
            "fold": np.repeat(fold.astype(np.int16), k),
            "kind": kind,
            "level": level,
            "y_true": truth.ravel(),
            "y_pred": wide.ravel(),
        }
    )
    return pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)


def _results(
    test: ChosenRecords,
    conditions: list[Disturbance],
    chosen: pd.DataFrame,
    targets: dict[str, Target],
    settings: RobustnessSettings,
) -> Json:
    draws = Draws(settings.bootstrap, settings.seed)
    tasks: Json = {}
    for method, task in dict.fromkeys((method, task) for _, method, task in test.answers):
        if task not in targets:
            continue
        judged = _judged(test, conditions, chosen, targets[task], method, draws)
        if judged is not None:
            facts = {"kind": targets[task].kind, "unit": targets[task].unit, "metric": judged.pop("metric")}
            tasks.setdefault(task, {**facts, "methods": {}})["methods"][method] = judged
    return {
        "schema_version": SCHEMA_VERSION,
        "bootstrap": {"unit": "patient", "resamples": draws.n, "seed": draws.seed, "level": LEVEL},
        "records": len(chosen),
        "patients": int(chosen["patient_id"].nunique()),
        "tasks": tasks,
    }


def _judged(
    test: ChosenRecords, conditions: list[Disturbance], chosen: pd.DataFrame, target: Target, method: str, draws: Draws
) -> Json | None:
    """Return one method's figures of one task; None without a labelled record that it answers."""
    truth = target_array(chosen, target)
    known = has_label(truth)
    undisturbed = test.answers[(None, method, target.name)]
    if not (known & answered(undisturbed)).any():
        return None
    ids, patients = (chosen[column].to_numpy() for column in ("record_id", "patient_id"))
    split = np.full(len(chosen), "test", dtype=object)
    block = PredictionBlock.of(ids, patients, split, test.fold, truth, undisturbed).take(known)
    judge = ConditionJudge(target, block, draws)
    found = []
    for condition in conditions:
        kind, level = _level(condition)
        said = judge.condition(test.answers[(condition, method, target.name)][known])
        found.append({"kind": kind, "level": level, "words": condition.words, **said})
    return {"metric": judge.metric, UNDISTURBED: judge.plain(), "disturbed": found}
