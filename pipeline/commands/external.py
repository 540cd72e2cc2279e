"""`ensemble evaluate --fit`: the fit of another study, judged on this one's patients."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from cache.errors import MissingFileError, UsageError
from pipeline.study.folder import Study

if TYPE_CHECKING:
    from stages.external import ExternalFit, ExternalSummary


def judge_fit(study: Study, fit: str, *, device: str | None = None, scheduler: str | None = None) -> ExternalSummary:
    """Embed what the fit's experts lack here, and judge the fit.

    Parameters
    ----------
    fit
        A name under `evaluate.fits` in params.yaml, or the folder of a study.
    scheduler
        Address of a Dask scheduler whose workers resample.
    """
    from pipeline.compute.evaluation import run_external
    from stages.external import ExternalPaths, ExternalSettings

    name, asked = _asked(study, fit)
    other = Study(study.folder / Path(asked.study).expanduser())
    if not (other.heads / "config.json").is_file():
        raise MissingFileError(f"--fit {fit}: {other.heads} holds no fit; run `ensemble fit-heads` in {other.folder}")
    _embed_missing(study, other, device)
    settings = ExternalSettings(name=name, fit=asked, bootstrap=study.params.evaluate.bootstrap, seed=study.seed)
    paths = ExternalPaths(
        study.records,
        study.signals,
        {expert: study.embedding(expert) for expert in other.fitted_experts()},
        other.heads,
        other.predictions,
        other.records,
        study.external / name,
    )
    return run_external(settings, paths, scheduler, _say, machine=study.machine())


def _say(task: str) -> None:
    typer.echo(f"judging {task}", err=True)


def _asked(study: Study, fit: str) -> tuple[str, ExternalFit]:
    from stages.external import ExternalFit

    named = study.params.evaluate.fits
    if fit in named:
        return fit, named[fit]
    folder = study.folder / Path(fit).expanduser()
    if not folder.is_dir():
        known = f"; params.yaml names {', '.join(named)}" if named else ""
        raise UsageError(f"--fit {fit}: no such study{known}")
    if folder.resolve() == study.folder.resolve():
        raise UsageError(f"--fit {fit}: that is this study; `ensemble evaluate` judges its own fit")
    return folder.resolve().name, ExternalFit(study=fit)


def _embed_missing(study: Study, other: Study, device: str | None) -> None:
    """Embed this study's records with experts of the fit that have no store here, as the other study does it."""
    from cache.storage.locations import store_exists
    from pipeline.compute.embedding import embed_settings, is_imported
    from pipeline.compute.workers import run_embed, worker_count
    from stages.embed import EmbedPaths

    for expert in other.fitted_experts():
        if store_exists(study.embedding(expert)):
            continue
        if is_imported(other, expert):
            raise UsageError(
                f"expert '{expert}' of the fit was made by another tool; bring its vectors of these records by "
                f"`ensemble cache import FILE --expert {expert}`"
            )
        settings = embed_settings(other, expert, device=device)
        typer.echo(f"{expert} has no embeddings here: running it as {other.folder} does", err=True)
        paths = EmbedPaths(study.records, study.signals, study.embedding(expert), study.state)
        run_embed(settings, paths, workers=worker_count(study.machine().workers, settings.device, settings.threads))


def lines_of(summary: ExternalSummary) -> list[str]:
    """Say the drop and the calibration of each task in a line, then what was left out and what to beware of."""
    metrics = summary.metrics
    found = []
    for task in metrics["tasks"]:
        parts = [*_drops(metrics["transfer"].get(task, {})), *_calibration(metrics["calibration"][task])]
        found.append(f"{task}: {'; '.join(parts)}" if parts else f"{task}: judged")
    found += [f"not judged: {task}: {reason}" for task, reason in metrics["left_out"].items()]
    return found + [f"note: {note}" for note in summary.notes]


def _drops(found: dict[str, Any]) -> list[str]:
    from stages.scoring.metrics import METRICS

    return [
        f"{METRICS[metric].title} {one['external']['value']:.3f} here, {one['internal']['value']:.3f} in its own study "
        f"({_signed(one['difference'])})"
        for metric, one in found.items()
    ]


def _calibration(found: dict[str, Any]) -> list[str]:
    if "slope" not in found:
        return []
    return [f"calibration in the large {_signed(found['in_the_large'])}, slope {_plain(found['slope'])}"]


def _signed(one: dict[str, float]) -> str:
    return f"{one['value']:+.3f}, {one['low']:+.3f} to {one['high']:+.3f}"


def _plain(one: dict[str, float]) -> str:
    if not math.isfinite(one["value"]):
        return "undefined (its classes are told apart whole)"
    return f"{one['value']:.2f} ({one['low']:.2f} to {one['high']:.2f})"
