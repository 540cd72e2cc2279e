"""Evaluating with the bootstrap on a Dask cluster: each task resamples one method's answers to one task."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from pipeline.compute.tasks import connected, results
from stages.evaluate import EvaluatePaths, EvaluateSettings, EvaluateSummary, run
from stages.evaluate.stage import Progress, run_by
from stages.external import ExternalPaths, ExternalSettings, ExternalSummary
from stages.external import run as judge_external
from stages.external.stage import run_by as external_by
from stages.scoring.bootstrap import Bootstrap
from stages.scoring.comparison import Resampling
from stages.settings import Machine

if TYPE_CHECKING:
    from distributed import Client


def run_evaluate(
    settings: EvaluateSettings,
    paths: EvaluatePaths,
    scheduler: str | None,
    progress: Progress | None = None,
    *,
    machine: Machine = Machine(),  # noqa: B008 - frozen
) -> EvaluateSummary:
    """Evaluate here; with a scheduler its workers resample the patients.

    They need this program, and none of the study's files.
    """
    if scheduler is None:
        return run(settings, paths, progress, machine=machine)
    with connected(scheduler) as client:
        return run_by(partial(_on_cluster, client, scheduler), settings, paths, progress, machine=machine)


def run_external(
    settings: ExternalSettings,
    paths: ExternalPaths,
    scheduler: str | None,
    progress: Callable[[str], None],
    *,
    machine: Machine,
) -> ExternalSummary:
    """Judge another study's fit here; with a scheduler its workers resample the patients."""
    if scheduler is None:
        return judge_external(settings, paths, progress, machine=machine)
    with connected(scheduler) as client:
        return external_by(partial(_on_cluster, client, scheduler), settings, paths, progress, machine=machine)


def _on_cluster(client: Client, scheduler: str, asked: Sequence[Resampling]) -> Iterator[Bootstrap]:
    """Give the bootstraps in their order. Blocks travel with their tasks, so that a worker's death loses none."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sending large graph", category=UserWarning)
        found = dict(results(client, scheduler, _resampled, list(enumerate(asked)), "method's bootstrap"))
    yield from (found[number] for number in range(len(asked)))


def _resampled(numbered: tuple[int, Resampling]) -> tuple[int, Bootstrap]:
    number, resampling = numbered
    return number, resampling()
