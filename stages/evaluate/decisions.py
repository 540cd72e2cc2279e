"""decisions.json: the fit's thresholds and conformal limits on test records.

Lives here: which threshold and limit meets which record, and the file's layout. Not here: rates, net benefit and
coverage (`stages.scoring.decisions`), the choice (`stages.heads.decisions`). Everything follows from
predictions.parquet, records.parquet and the two files in heads/.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cache.errors import UsageError
from cache.records import Target
from stages.heads.decisions.answers import PRESENCE, Decisions
from stages.heads.decisions.operating_points import WITH_THRESHOLDS, labels_by_class
from stages.scoring.blocks import PredictionBlock
from stages.scoring.bootstrap import LEVEL
from stages.scoring.comparison import MAIN_METHOD, Draws, judged_methods, labelled_test_block
from stages.scoring.decisions.coverage import judge_coverage, of_intervals, of_sets
from stages.scoring.decisions.net_benefit import decision_curve
from stages.scoring.decisions.operating import judge_threshold
from stages.scoring.predictions import Predictions
from stages.scoring.record_parts import Records
from stages.scoring.subgroups import Members, RecordGroups

Json = dict[str, Any]
Prevalence = Mapping[str, float | Mapping[str, float]]
SCHEMA_VERSION = 1


def check_prevalence(prevalence: Prevalence, tasks: Sequence[Target]) -> None:
    """Refuse a prevalence of a task or class that there is not.

    Raises
    ------
    UsageError
        Naming it, and what there is.
    """
    known = {task.name: task for task in tasks if task.kind in WITH_THRESHOLDS}
    for name, value in prevalence.items():
        if name not in known:
            listed = ", ".join(known) or "none"
            raise UsageError(f"evaluate.prevalence: '{name}' is no task with classes; there are: {listed}")
        of_classes = isinstance(value, Mapping)
        if of_classes != (known[name].kind != "binary"):
            words = "one for each class, such as {MI: 0.05}" if not of_classes else "a number, such as 0.05"
            raise UsageError(f"evaluate.prevalence: {name} ({known[name].kind}) needs {words}")
        for label in value if isinstance(value, Mapping) else ():
            if label not in known[name].classes:
                listed = ", ".join(known[name].classes)
                raise UsageError(f"evaluate.prevalence: '{label}' is no class of {name}; there are: {listed}")


def judge_decisions(
    predictions: Predictions,
    decisions: Decisions,
    records: Records,
    draws: Draws,
    prevalence: Prevalence | None = None,
) -> Json:
    """Return the content of decisions.json; a task without test labels, thresholds and limits is left out."""
    groups, tasks = RecordGroups(records), {}
    for name, target in predictions.tasks.items():
        if MAIN_METHOD not in judged_methods(predictions, name):
            continue
        block = labelled_test_block(predictions, name, MAIN_METHOD)
        found = _thresholds(target, block, decisions, draws, (prevalence or {}).get(name))
        conformal = _conformal(target, block, decisions, groups.of(block.records), draws)
        if conformal:
            found["conformal"] = conformal
        if found:
            tasks[name] = {"kind": target.kind, **found}
    return {
        "schema_version": SCHEMA_VERSION,
        "method": MAIN_METHOD,
        "bootstrap": {"unit": "patient", "resamples": draws.n, "seed": draws.seed, "level": LEVEL},
        "tasks": tasks,
    }


def _by_fold(block: PredictionBlock, answer: Any) -> np.ndarray | None:
    """Let each fold's own thresholds or limits answer its test records; `answer(y_pred, fold)` gives rows or None."""
    found: np.ndarray | None = None
    for fold in np.unique(block.fold):
        rows = block.fold == fold
        part = answer(block.y_pred[rows], int(fold))
        if part is None:
            return None
        if found is None:
            found = np.zeros((len(block), *part.shape[1:]), dtype=part.dtype)
        found[rows] = part
    return found


def _thresholds(
    target: Target,
    block: PredictionBlock,
    decisions: Decisions,
    draws: Draws,
    prevalence: float | Mapping[str, float] | None,
) -> Json:
    points = decisions.points.tasks.get(target.name)
    above = _by_fold(block, lambda p, fold: decisions.points.above(target.name, p, fold))
    if points is None or above is None:
        return {}
    said_of, p_of = (values.reshape(len(block), -1) for values in (above, block.y_pred))
    truth_of = labels_by_class(target.kind, block.y_true, said_of.shape[1])
    columns = zip(said_of.T, truth_of.T, p_of.T, strict=True)
    given = prevalence if isinstance(prevalence, Mapping) else dict.fromkeys(points.classes, prevalence)
    classes, curves = {}, {}
    for k, (name, (said, truth, p)) in enumerate(zip(points.classes, columns, strict=True)):
        of_folds = points.of_folds[:, k].tolist()
        judged = judge_threshold(said, truth, block.patients, draws, given.get(name))
        classes[name] = {"threshold": float(points.thresholds[k]), "folds": of_folds, **judged}
        curves[name] = decision_curve(p, truth, block.patients, draws)
    rule = {"rule": points.rule.rule, "value": points.rule.value}
    return {"operating_points": {**rule, "classes": classes}, "decision_curves": curves}


def _conformal(target: Target, block: PredictionBlock, decisions: Decisions, groups: Members, draws: Draws) -> Json:
    limits = decisions.conformal.tasks.get(target.name)
    if limits is None:
        return {}
    patients, name = block.patients, target.name
    promise = {"coverage": decisions.conformal.coverage, "by_class": decisions.conformal.by_class}
    ends = _by_fold(block, lambda value, fold: decisions.conformal.interval(name, value, fold))
    if ends is not None:
        found = of_intervals(ends, block.y_true, patients)
        return {**promise, "answers": {name: judge_coverage(found, (), groups, draws)}}
    members = _by_fold(block, lambda p, fold: decisions.conformal.sets(name, p, fold))
    assert members is not None  # limits of classes give sets
    if target.kind != "multilabel":
        found = of_sets(members, block.y_true.astype(np.float64), patients)
        return {**promise, "answers": {name: judge_coverage(found, limits.classes, groups, draws)}}
    answers = {
        label: judge_coverage(of_sets(members[:, k], block.y_true[:, k], patients), PRESENCE, groups, draws)
        for k, label in enumerate(target.classes)
    }
    return {**promise, "answers": answers}
