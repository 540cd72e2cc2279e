"""The board: every row's metric of every task with its interval, mean ranks and costs; all from the predictions table.

Lives here: figures and files. Not here: who predicted what (`stage`), resampling (`stages.scoring`).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import rankdata

from cache.records import Target
from stages.leaderboard.settings import ExpertRun
from stages.scoring.bootstrap import LEVEL, Bootstrap, Estimate, estimate
from stages.scoring.comparison import Comparison, Draws, compare, judged_methods
from stages.scoring.metrics import HEADLINE, METRICS
from stages.scoring.predictions import Predictions
from stages.scoring.summary import NOT_JUDGED

SCHEMA_VERSION = 1
AUROCS = ("auroc", "auroc_macro")
Json = dict[str, Any]


@dataclass
class BoardRow:
    """One expert, judged in one way on one kind of input.

    Attributes
    ----------
    pooling
        How tokens became the vector that the head reads, in words; of `frozen` without tokens, that it is the mean.
    crop_s
        Length of a crop in seconds; None: the whole record.
    trained_parameters, kept_epochs, validation
        Task -> numbers of the fit; of the metric on validation records.
    """

    expert: str
    mode: str
    inputs: str
    pooling: str
    crop_s: float | None = None
    trained_parameters: dict[str, int] = field(default_factory=dict)
    kept_epochs: dict[str, int] = field(default_factory=dict)
    validation: dict[str, float] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """Name in the predictions table."""
        return f"{self.expert}/{self.mode}/{self.inputs}"


@dataclass(frozen=True)
class TaskScores:
    """One task's headline metric: name, whether higher is better, method -> value and replicates [resamples]."""

    metric: str
    higher_is_better: bool
    values: dict[str, float]
    replicates: dict[str, np.ndarray]

    def difference_to_best(self, method: str) -> Estimate:
        """Return a method's value minus the task's best, with the interval over the same resamples of the patients."""
        finite = {name: value for name, value in self.values.items() if np.isfinite(value)}
        best = (max if self.higher_is_better else min)(finite, key=finite.__getitem__)
        replicates = self.replicates[method] - self.replicates[best]
        return estimate(self.values[method] - self.values[best], replicates)

    def ranks(self, methods: Sequence[str]) -> dict[str, tuple[float, np.ndarray]]:
        """Rank some methods, 1 the best, ties in the middle: method -> rank, and rank in every resample.

        A resample in which one of them is undefined ranks none.
        """
        present = [name for name in methods if np.isfinite(self.values.get(name, np.nan))]
        if not present:
            return {}
        sign = -1 if self.higher_is_better else 1
        stacked = sign * np.stack([np.r_[self.values[name], self.replicates[name]] for name in present])
        ranks = np.where(np.isfinite(stacked).all(0), rankdata(np.nan_to_num(stacked), axis=0), np.nan)
        return {name: (float(row[0]), row[1:]) for name, row in zip(present, ranks, strict=True)}


def score_tasks(predictions: Predictions, draws: Draws) -> tuple[dict[str, TaskScores], Json, dict[str, str]]:
    """Score every method of every task on the same resamples, and say what each task is.

    Test predictions of one task at a time are in memory. What nothing can be measured on is left out, with why.
    """
    scores, about, left_out = dict[str, TaskScores](), Json(), dict[str, str]()
    for name, target in predictions.tasks.items():
        methods = judged_methods(predictions, name)
        if methods:
            compared = compare(predictions, target, methods, draws, lambda method: None)  # noqa: ARG005
            scores[name] = headline_scores(target, compared.samples)
            about[name] = _task(compared, scores[name])
        else:
            left_out[name] = NOT_JUDGED
    return scores, about, left_out


def headline_scores(target: Target, samples: Mapping[str, Bootstrap]) -> TaskScores:
    """Return the first headline metric of each method."""
    metric = HEADLINE[target.kind][0]
    return TaskScores(
        metric,
        METRICS[metric].higher_is_better,
        {name: sample.values[metric] for name, sample in samples.items()},
        {name: sample.replicates[metric] for name, sample in samples.items()},
    )


def make_board(
    predictions: Predictions,
    rows: Sequence[BoardRow],
    experts: Mapping[str, ExpertRun],
    draws: Draws,
    protocol: Json,
    left_out: Mapping[str, str],
) -> Json:
    """Return the content of leaderboard.json; rows are in the order of their mean rank.

    Parameters
    ----------
    protocol
        What the heads were trained with.
    left_out
        What could not be judged -> why.
    """
    scores, tasks, unjudged = score_tasks(predictions, draws)
    described = [_row(row, rows, scores, experts[row.expert]) for row in rows]
    order = sorted(
        described, key=lambda r: (np.inf if r["mean_rank"] is None else r["mean_rank"]["value"], r["method"])
    )
    return {
        "schema_version": SCHEMA_VERSION,
        "protocol": protocol,
        "bootstrap": {"unit": "patient", "resamples": draws.n, "seed": draws.seed, "level": LEVEL},
        "tasks": tasks,
        "rows": order,
        "left_out": {**left_out, **unjudged},
    }


def _task(compared: Comparison, scores: TaskScores) -> Json:
    block = next(iter(compared.blocks.values()))
    return {
        "kind": compared.target.kind,
        "unit": compared.target.unit,
        "metric": scores.metric,
        "higher_is_better": scores.higher_is_better,
        "n_test": len(block),
        "patients_test": block.patients.n_used,
    }


def _row(row: BoardRow, rows: Sequence[BoardRow], scores: Mapping[str, TaskScores], expert: ExpertRun) -> Json:
    everybody = [other.method for other in rows]
    alike = [other.method for other in rows if (other.mode, other.inputs) == (row.mode, row.inputs)]
    ranked = {name: one for name, one in scores.items() if np.isfinite(one.values.get(row.method, np.nan))}
    aurocs = {name: one for name, one in ranked.items() if one.metric in AUROCS}
    return {
        "method": row.method,
        "expert": row.expert,
        "mode": row.mode,
        "inputs": row.inputs,
        "pooling": row.pooling,
        "crop_s": row.crop_s,
        "expert_parameters": expert.parameters,
        "trained_parameters": row.trained_parameters,
        "kept_epochs": row.kept_epochs,
        "validation": row.validation,
        "scores": {
            name: _interval(estimate(one.values[row.method], one.replicates[row.method]))
            for name, one in ranked.items()
        },
        "differences": {name: _interval(one.difference_to_best(row.method)) for name, one in ranked.items()},
        "mean_auroc": _mean([(one.values[row.method], one.replicates[row.method]) for one in aurocs.values()]),
        "mean_rank": _mean([one.ranks(everybody)[row.method] for one in ranked.values()]),
        "mean_rank_of_experts": _mean([one.ranks(alike)[row.method] for one in ranked.values()]),
        "n_tasks": len(ranked),
    }


def _mean(parts: Sequence[tuple[float, np.ndarray]]) -> Json | None:
    """Average values and replicates over tasks, resample by resample; None without any."""
    if not parts:
        return None
    replicates = np.mean([one for _, one in parts], axis=0)
    return _interval(estimate(float(np.mean([value for value, _ in parts])), replicates))


def _interval(found: Estimate) -> Json:
    return {"value": found.value, "low": found.low, "high": found.high}


def costs_of(experts: Mapping[str, ExpertRun]) -> Json:
    """Return the content of leaderboard_costs.json: what differs from machine to machine."""
    return {"schema_version": SCHEMA_VERSION, "records_per_s": {name: e.records_per_s for name, e in experts.items()}}


COLUMNS = (
    *("expert", "mode", "inputs", "pooling", "task", "metric", "value", "low", "high", "mean_rank"),
    *("mean_rank_of_experts", "mean_auroc", "expert_parameters", "trained_parameters", "records_per_s"),
    *("difference", "difference_low", "difference_high"),
)


def as_csv(board: Json, costs: Json) -> str:
    """Return the board as a table, one line a row and task, with the speed of `embed`; empty where undefined."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in board["rows"]:
        whole = [_value(row[name]) for name in ("mean_rank", "mean_rank_of_experts", "mean_auroc")]
        for task, score in row["scores"].items():
            names = [row[name] for name in ("expert", "mode", "inputs", "pooling")]
            spent = [row["expert_parameters"], row["trained_parameters"].get(task)]
            speed = costs["records_per_s"].get(row["expert"])
            ends, apart = ("value", "low", "high"), row["differences"][task]
            written = [*(score[name] for name in ends), *whole, *spent, speed, *(apart[name] for name in ends)]
            writer.writerow([*names, task, board["tasks"][task]["metric"], *map(_cell, written)])
    return sink.getvalue()


def _value(found: Json | None) -> float | None:
    return None if found is None else found["value"]


def _cell(value: float | None) -> float | str:
    return "" if value is None or not np.isfinite(value) else value
