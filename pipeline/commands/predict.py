"""Command `predict`: what a saved fit says of new ECGs."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from cache.errors import InputError, TooManyBadRecordsError
from pipeline.compute.embedding import embed_settings, is_imported
from pipeline.study.folder import Study

if TYPE_CHECKING:
    from stages.predict import Prediction


def predict(
    records: Annotated[list[str], typer.Argument(help="ECG files of any format, WFDB records, or folders of them.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line instead of tables.")] = False,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:i.")] = None,
    batch_size: Annotated[str | None, typer.Option(help="Records a forward pass, or auto.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    follow_links: Annotated[
        bool | None,
        typer.Option("--follow-links/--no-follow-links", help="Whether links may lead out of a record's folder."),
    ] = None,
) -> None:
    """Say what the fitted ensemble makes of new ECGs: values, probabilities, gate weights, warnings.

    A record that cannot be read is named at the end, with exit code 3, after the predictions of all others. What an
    option does not say is as params.yaml has it (machine; cohort.options for links).

    Example: `ensemble predict data/embedded-cohort/files/p1000/p10000032/s40689238/40689238 --json`
    """
    from stages.embed import describe, load_for
    from stages.experts.run import RunSettings
    from stages.learning.data import expert_identity
    from stages.predict import PredictPaths, PredictSettings, run
    from stages.readers.files import find_ecgs

    study = Study()
    follow_links = study.follows_links if follow_links is None else follow_links
    notes: list[str] = []
    paths = PredictPaths(study.heads, tuple(find_ecgs(records, follow_links=follow_links, notes=notes)))
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    computed = [name for name in study.fitted_experts() if not is_imported(study, name)]  # others see no new ECG
    chosen = {
        name: embed_settings(study, name, None, device, None, batch_size, accept_licence=True, threads=threads)
        for name in computed
    }
    settings = PredictSettings(
        {name: load_for(each) for name, each in chosen.items()},
        {name: expert_identity(describe(each)) for name, each in chosen.items()},
        next((RunSettings(threads=s.threads, batch_size=s.batch_size) for s in chosen.values()), None),
        follow_links=follow_links,
    )
    summary = run(settings, paths, lambda found: _print_predictions(found, as_json))
    _refuse_unreadable(summary.unreadable, len(paths.records))


def _print_predictions(predictions: list[Prediction], as_json: bool) -> None:
    import json

    from pipeline.views.predictions import prediction_table

    for prediction in predictions:
        if as_json:
            typer.echo(json.dumps(asdict(prediction)))
        else:
            print_table(prediction_table(prediction))


def _refuse_unreadable(failed: list[str], n_records: int) -> None:
    if not failed:
        return
    if n_records == 1:
        raise InputError(failed[0])
    for line in failed:
        typer.echo(f"error: {line}", err=True)
    raise TooManyBadRecordsError(f"{len(failed)} of {n_records} records cannot be read; they are named above")


def print_table(table: object) -> None:
    """Print a rich table; as wide as it needs where stdout is no terminal."""
    from rich.console import Console

    console = Console()
    Console(width=None if console.is_terminal else 200).print(table)
