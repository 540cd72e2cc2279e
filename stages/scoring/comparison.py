"""One task's methods on the same test records and the same resamples.

Lives here: reading and aligning test blocks, scoring them, paired differences, the best single expert. Not here: the
layout of metrics.json (`summary`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import pyarrow as pa

from cache.errors import InputError
from cache.record_columns import names_of
from cache.records import Target
from stages.scoring.blocks import PredictionBlock, rows_in_common
from stages.scoring.bootstrap import RESAMPLES, SEED, Bootstrap, Estimate, bootstrap, paired_difference
from stages.scoring.metrics import HEADLINE, METRICS, JudgedAnswers, make_scorer
from stages.scoring.predictions import Predictions

MAIN_METHOD = "gate"
EXPERT_PREFIX = "expert:"


@dataclass(frozen=True)
class Draws:
    """How the patients are resampled."""

    n: int = RESAMPLES
    seed: int = SEED


def main_method(methods: list[str]) -> str:
    """Return the method the report is about: the gate, or the first there is."""
    return MAIN_METHOD if MAIN_METHOD in methods else methods[0]


def best_single_expert(target: Target, values: dict[str, dict[str, float]]) -> str | None:
    """Return the single expert with the best first headline metric on the test records; None without experts.

    Choosing it on the very records of the comparison favours the expert, never the gate.
    """
    metric = HEADLINE[target.kind][0]
    sign = 1 if METRICS[metric].higher_is_better else -1
    experts = [name for name in values if name.startswith(EXPERT_PREFIX) and np.isfinite(values[name][metric])]
    return max(experts, key=lambda name: sign * values[name][metric], default=None)


def judged_methods(predictions: Predictions, task: str) -> list[str]:
    """Return the methods that predict a labelled test record of a task, in the order they were written."""
    methods = predictions.methods(task)
    return [method for method in methods if predictions.is_labelled(task, method, "test")]


def labelled_test_block(predictions: Predictions, task: str, method: str) -> PredictionBlock:
    """Return one method's labelled test records, sorted by record and fold.

    Raises
    ------
    InputError
        When there are none.
    """
    block = predictions.read(task, method, "test")
    block = block.take(block.labelled)
    if not len(block):
        raise InputError(
            f"task '{task}': method '{method}' predicts no labelled record of the test split; nothing can be measured"
        )
    return block.take(np.lexsort((block.fold, block.records.codes)))


@dataclass(frozen=True)
class Resampling:
    """The bootstrap of one method's answers, which is the same bits wherever it is done; it knows nobody's name.

    Attributes
    ----------
    answers
        Truths and predictions.
    patients
        int32 [n]: each record's patient, a number below `n_patients`.
    """

    target: Target
    answers: JudgedAnswers
    patients: np.ndarray
    n_patients: int
    draws: Draws

    @classmethod
    def of(cls, target: Target, block: PredictionBlock, everybody: pa.Array | None, draws: Draws) -> Self:
        """Ask for that of a block over the sorted patient names `everybody`; None: over its own patients."""
        names = names_of([block.patients]) if everybody is None else everybody
        answers = JudgedAnswers(block.y_true, block.y_pred)
        return cls(target, answers, block.patients.within(names), len(names), draws)

    def __call__(self) -> Bootstrap:
        """Do it."""
        scorer = make_scorer(self.target, self.answers)
        return bootstrap(scorer, self.patients, self.n_patients, self.draws.n, self.draws.seed)


Resample = Callable[[Sequence[Resampling]], Iterator[Bootstrap]]
"""Gives what each of some resamplings comes to, in their order; on a cluster, `pipeline.compute.evaluation`."""


def one_by_one(asked: Sequence[Resampling]) -> Iterator[Bootstrap]:
    """Resample in this process."""
    return (each() for each in asked)


@dataclass(frozen=True)
class Comparison:
    """All methods of one task.

    Attributes
    ----------
    blocks, samples
        Method -> its labelled test records, and method -> their bootstrap.
    everybody
        Sorted names of the patients over all methods: the resamples are of these.
    main, best
        The method the report is about, and the best single expert (None without experts).
    """

    target: Target
    blocks: dict[str, PredictionBlock]
    samples: dict[str, Bootstrap]
    everybody: pa.Array
    draws: Draws
    main: str
    best: str | None
    resample: Resample = one_by_one

    def bootstraps(self, blocks: Mapping[str, PredictionBlock], everybody: pa.Array) -> dict[str, Bootstrap]:
        """Return the bootstrap of each block over the sorted patient names `everybody`."""
        asked = [Resampling.of(self.target, block, everybody, self.draws) for block in blocks.values()]
        return dict(zip(blocks, self.resample(asked), strict=True))

    @property
    def shown(self) -> list[str]:
        """The main method and the best single expert, without repetition."""
        return [name for name in dict.fromkeys((self.main, self.best)) if name]

    def difference(self, method: str, metrics: tuple[str, ...]) -> dict[str, Estimate]:
        """Return a method's metrics minus the best single expert's, on the records both predict."""
        if self.best is None:
            raise InputError(f"task '{self.target.name}' has no single expert to compare '{method}' with")
        sample, best_sample = self.samples[method], self.samples[self.best]
        pair = self.blocks[method], self.blocks[self.best]
        if not _same_records(*pair):
            common = dict(zip((method, self.best), _common(self.target, *pair), strict=True))
            sample, best_sample = self.bootstraps(common, self.everybody).values()
        return {metric: paired_difference(sample, best_sample, metric) for metric in metrics}


def compare(
    predictions: Predictions,
    target: Target,
    names: list[str],
    draws: Draws,
    on_method: Callable[[str], None],
    resample: Resample = one_by_one,
) -> Comparison:
    """Read and score methods of one task; `on_method` is called with each method's name before it is scored.

    Raises
    ------
    InputError
        A method without labelled test records, or methods whose truths disagree.
    """
    blocks = _blocks(predictions, target.name, names)
    _check_truths(target, blocks)
    everybody = names_of(block.patients for block in blocks.values())
    samples, scored = {}, resample([Resampling.of(target, block, everybody, draws) for block in blocks.values()])
    for name in blocks:
        on_method(name)
        samples[name] = next(scored)
    best = best_single_expert(target, {name: sample.values for name, sample in samples.items()})
    return Comparison(target, blocks, samples, everybody, draws, main_method(names), best, resample)


def _blocks(predictions: Predictions, task: str, names: list[str]) -> dict[str, PredictionBlock]:
    """Read the methods' labelled test records; methods of the same records and patients share these."""
    found: dict[str, PredictionBlock] = {}
    for name in names:
        block = labelled_test_block(predictions, task, name)
        for other in found.values():
            if _same_records(block, other) and block.patients.same_as(other.patients):
                block = replace(block, records=other.records, patients=other.patients, splits=other.splits)
                break
        found[name] = block
    return found


def _same_records(first: PredictionBlock, second: PredictionBlock) -> bool:
    return first.records.same_as(second.records) and np.array_equal(first.fold, second.fold)


def _common(target: Target, first: PredictionBlock, second: PredictionBlock) -> tuple[PredictionBlock, PredictionBlock]:
    rows, places = rows_in_common(first, second)
    pair = first.take(rows), second.take(np.sort(places))
    if not len(pair[0]):
        raise InputError(f"task '{target.name}': two methods predict no record in common and cannot be compared")
    return pair


def _check_truths(target: Target, blocks: dict[str, PredictionBlock]) -> None:
    (first_name, first), *others = blocks.items()
    for name, block in others:
        if _same_records(first, block) and not np.array_equal(
            first.y_true, block.y_true, equal_nan=first.y_true.dtype.kind == "f"
        ):
            raise InputError(
                f"task '{target.name}': y_true of '{name}' and '{first_name}' disagree; predict both from one cohort"
            )
