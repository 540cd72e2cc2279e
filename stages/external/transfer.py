"""How much is lost from the patients of the fit's own study to these: headline metrics internal, here, and the drop."""

from __future__ import annotations

from typing import Any

import numpy as np

from cache.records import Target
from stages.scoring.blocks import PredictionBlock
from stages.scoring.bootstrap import Bootstrap, estimate
from stages.scoring.comparison import Draws, Resample, Resampling, labelled_test_block, one_by_one
from stages.scoring.metrics import HEADLINE, nan_mean
from stages.scoring.predictions import Predictions

Json = dict[str, Any]
MACRO = {"auroc_macro": "auroc", "auprc_macro": "auprc"}
"""Macro metric -> what it is a mean of, over classes."""


def transfer(
    target: Target,
    block: PredictionBlock,
    theirs: Predictions,
    method: str,
    draws: Draws,
    resample: Resample = one_by_one,
) -> Json:
    """Return METRIC -> {"external", "internal", "difference"}, each with an interval, of the task's headline metrics.

    The two samples of patients are drawn independently. Macro metrics are means over the classes for which both
    cohorts define them (`n_classes`). Empty where the other study has no test prediction of the task by that method.
    """
    name = target.name
    if name not in theirs.tasks or method not in theirs.methods(name):
        return {}
    whole = theirs.tasks[name]
    if not theirs.read(name, method, "test").labelled.any():
        return {}
    apart = Draws(draws.n, draws.seed + 1)
    asked = [_resampling(whole, labelled_test_block(theirs, name, method), apart), _resampling(target, block, draws)]
    internal, external = resample(asked)
    return {metric: _compared(metric, (target, external), (whole, internal)) for metric in HEADLINE[target.kind]}


def _resampling(target: Target, block: PredictionBlock, draws: Draws) -> Resampling:
    return Resampling.of(target, block, None, draws)


def _compared(metric: str, external: tuple[Target, Bootstrap], internal: tuple[Target, Bootstrap]) -> Json:
    if metric in MACRO:
        values, n_classes = _macro(MACRO[metric], external, internal)
        counted = {"n_classes": n_classes}
    else:
        values = [(sample.values[metric], sample.replicates[metric]) for _, sample in (external, internal)]
        counted = {}
    (external_value, external_drawn), (internal_value, internal_drawn) = values
    pairs = {
        "external": (external_value, external_drawn),
        "internal": (internal_value, internal_drawn),
        "difference": (external_value - internal_value, external_drawn - internal_drawn),
    }
    return {name: _interval(*pair) for name, pair in pairs.items()} | counted


def _macro(
    metric: str, external: tuple[Target, Bootstrap], internal: tuple[Target, Bootstrap]
) -> tuple[list[tuple[float, np.ndarray]], int]:
    shared = [name for name in external[0].classes if name in internal[0].classes]
    tables = []
    for target, sample in (external, internal):
        places = [target.classes.index(name) for name in shared]
        tables.append((sample.per_class[metric][places], sample.per_class_replicates[metric][places]))
    defined = np.isfinite(tables[0][0]) & np.isfinite(tables[1][0])
    found = [(float(nan_mean(value[defined][:, None])[0]), nan_mean(drawn[defined])) for value, drawn in tables]
    return found, int(defined.sum())


def _interval(value: float, drawn: np.ndarray) -> Json:
    found = estimate(float(value), drawn)
    return {"value": found.value, "low": found.low, "high": found.high}
