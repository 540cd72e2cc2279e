"""Command `predict`: what a saved fit says of new ECGs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cache.errors import InputError, MissingFileError, TooManyBadRecordsError
from pipeline.compute.embedding import embed_settings, is_imported
from pipeline.study.folder import Study

if TYPE_CHECKING:
    from stages.predict import Prediction, Recorded
    from stages.readers.rows import RowOptions

PREDICTED_AT_ONCE = 64
"""Records whose predictions are printed together: a folder of thousands needs no more memory."""


def predict(
    records: Annotated[list[str], typer.Argument(help="WFDB records, with or without suffix, or folders of them.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line instead of tables.")] = False,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:i.")] = None,
) -> None:
    """Say what the fitted ensemble makes of new ECGs: values, probabilities, gate weights, warnings.

    A record that cannot be read is named at the end, with exit code 3, after the predictions of all others.

    Example: `ensemble predict data/embedded-cohort/files/p1000/p10000032/s40689238/40689238 --json`
    """
    from stages.embed import describe, load_for
    from stages.experts.run import RunSettings
    from stages.heads import EnsembleHeads
    from stages.learning.data import expert_identity
    from stages.predict import find_records, row_options
    from stages.predict import predict as run_predict

    study = Study()
    paths = find_records(records)
    heads = EnsembleHeads.load(study.heads)
    computed = [name for name in heads.experts_ if not is_imported(study, name)]  # the others cannot see a new ECG
    settings = {name: embed_settings(study, name, device=device, accept_license=True) for name in computed}
    experts = {name: load_for(chosen) for name, chosen in settings.items()}
    identities = {name: expert_identity(describe(chosen)) for name, chosen in settings.items()}
    running = next((RunSettings(threads=s.threads, batch_size=s.batch_size) for s in settings.values()), None)
    failed: list[str] = []
    for start in range(0, len(paths), PREDICTED_AT_ONCE):
        recorded, unreadable = _read_records(paths[start : start + PREDICTED_AT_ONCE], row_options(heads))
        failed += unreadable
        if recorded:
            _print_predictions(run_predict(recorded, heads, experts, identities, running), as_json)
    _refuse_unreadable(failed, len(paths))


def _read_records(paths: list[Path], options: RowOptions) -> tuple[list[Recorded], list[str]]:
    """Read records; returns those that can be read, and a line for each of the others."""
    from stages.predict import read_record

    recorded, failed = [], []
    for path in paths:
        try:
            recorded.append(read_record(path, options))
        except (InputError, MissingFileError) as error:
            failed.append(str(error))
    return recorded, failed


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
