"""Command `predict`: what a saved fit says of new ECGs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cache.errors import EnsembleError, InputError, TooManyBadRecordsError, UsageError
from cache.storage.locations import file_exists, store_exists
from pipeline.compute.allocator import share_one_heap
from pipeline.compute.embedding import embed_settings, is_imported
from pipeline.study.folder import Study

if TYPE_CHECKING:
    from pipeline.compute.prediction import PredictWork
    from stages.embed import EmbedSettings
    from stages.predict import Prediction, PredictSummary, StudyStores

N_NAMED = 5


def predict(
    records: Annotated[
        list[str],
        typer.Argument(
            help="ECG files of any format, WFDB records, folders, globs, tables with a column path, or a study."
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line instead of tables.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write FILE.parquet, FILE.gate_weights.parquet and FILE.warnings.parquet.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes on this machine (with --out).")] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a Dask scheduler, tcp://host:port (with --out).")
    ] = None,
    max_bad: Annotated[int, typer.Option(min=0, help="Exit with 3 if more records cannot be read.")] = 0,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:i.")] = None,
    batch_size: Annotated[str | None, typer.Option(help="Records a forward pass, or auto.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of a process.")] = None,
    follow_links: Annotated[
        bool | None,
        typer.Option("--follow-links/--no-follow-links", help="Whether links may lead out of a record's folder."),
    ] = None,
) -> None:
    """Say what the fitted ensemble makes of new ECGs: values, probabilities, gate weights, warnings.

    With --out for any number of records: a killed run goes on where it stopped, and any number of workers leaves the
    same files. A record that cannot be read stops nothing: it is named, and the exit code is 3. What an option does not
    say is as params.yaml has it (machine; cohort.options for links).

    Example: `ensemble predict data/embedded-cohort/files/p1000/p10000032/s40689238/40689238 --json`, or of a study
    `ensemble predict ../other-study --out other.parquet --workers 8`
    """
    share_one_heap()
    study, notes = Study(), list[str]()
    if out is None and (workers is not None or scheduler is not None):
        raise UsageError("--workers and --scheduler need --out FILE.parquet")
    follow_links = study.follows_links if follow_links is None else follow_links
    local_device = device if scheduler is None else "cpu"  # a cluster's workers have devices of their own
    work = _work(study, records, out, local_device, batch_size, threads, follow_links=follow_links)
    if out is None:
        _print_all(work, as_json, max_bad)
        return
    if scheduler is None:
        from pipeline.compute.prediction import run_predict
        from pipeline.compute.workers import worker_count

        machine = study.machine(device=device, threads=threads)
        chosen = next((each.device for each in work.experts.values()), "cpu")
        n_workers = worker_count(workers or machine.workers, chosen, machine.threads)
        summary = run_predict(work, workers=n_workers, notes=notes)
    else:
        from pipeline.compute.prediction import predict_on_cluster

        summary = predict_on_cluster(work, scheduler, device or study.machine().device, notes)
    _print_notes(notes)
    _print_summary(summary, out)
    _refuse_bad(summary, max_bad)


def _work(
    study: Study,
    records: list[str],
    out: Path | None,
    device: str | None,
    batch_size: str | None,
    threads: int | None,
    *,
    follow_links: bool,
) -> PredictWork:
    """Say what there is to do: the fit's experts as `embed` would run them, and the records."""
    from pipeline.compute.prediction import PredictWork, batch_records
    from stages.predict import PredictPaths
    from stages.predict.inputs import check_named

    check_named(records)
    fitted = study.fitted_experts()
    experts: dict[str, EmbedSettings] = {
        name: embed_settings(study, name, None, device, None, batch_size, accept_licence=True, threads=threads)
        for name in fitted
        if not is_imported(study, name)  # others see no new ECG
    }
    stores = _study_of(records, fitted)
    paths = PredictPaths(study.heads, () if stores else tuple(records), stores, out)
    at_once = batch_records(next((each.device for each in experts.values()), "cpu"))
    return PredictWork(experts, paths, follow_links, at_once)


def _study_of(records: list[str], experts: list[str]) -> StudyStores | None:
    """Return the stores of the ingested study that is named; None where ECGs are."""
    from stages.predict import StudyStores

    studies = [Study(Path(name)) for name in records if name and _is_ingested(Path(name))]
    whole = [study for study in studies if store_exists(study.signals) or store_exists(study.embeddings)]
    if not whole:
        return None
    if len(records) > 1:
        raise UsageError(f"{whole[0].folder} is a study; predict it by itself, with an --out of its own")
    [study] = whole
    return StudyStores(study.records, study.signals, {name: study.embedding(name) for name in experts})


def _is_ingested(folder: Path) -> bool:
    """Whether a folder holds records.parquet, or a params.yaml that names one elsewhere."""
    if (folder / "records.parquet").is_file():
        return True
    if not (folder / "params.yaml").is_file():
        return False
    try:
        records = Study(folder).records
    except EnsembleError:
        return False  # the file of another program, beside its ECGs
    return file_exists(records)


def _print_all(work: PredictWork, as_json: bool, max_bad: int) -> None:
    from pipeline.compute.prediction import predict_settings
    from stages.predict import PredictSummary, stream

    settings = predict_settings(work.experts, follow_links=work.follow_links, records_at_once=work.records_at_once)
    summary, notes = PredictSummary(), list[str]()
    for number, found in enumerate(stream(settings, work.paths, summary, notes)):
        if number == 0:
            _print_notes(notes)
        _print_predictions(found, as_json)
    _refuse_unreadable(summary.unreadable, summary.n_records, max_bad)


def _print_notes(notes: list[str]) -> None:
    for note in notes:
        typer.echo(f"note: {note}", err=True)


def _print_predictions(predictions: list[Prediction], as_json: bool) -> None:
    import json

    from pipeline.views.predictions import prediction_table

    for prediction in predictions:
        if as_json:
            typer.echo(json.dumps(asdict(prediction)))
        else:
            print_table(prediction_table(prediction))


def _refuse_unreadable(failed: list[str], n_records: int, max_bad: int) -> None:
    if not failed:
        return
    if n_records == 1:
        raise InputError(failed[0])
    for line in failed:
        typer.echo(f"error: {line}", err=True)
    if len(failed) > max_bad:
        raise TooManyBadRecordsError(f"{len(failed)} of {n_records} records cannot be read; they are named above")


def _print_summary(summary: PredictSummary, out: Path) -> None:
    rate = summary.n_computed / summary.seconds if summary.seconds else 0.0
    before = summary.n_records - summary.n_computed
    resumed = f", {before} done already" if before > 0 else ""
    typer.echo(f"{summary.n_predicted} of {summary.n_records} records predicted ({rate:.1f}/s{resumed}) -> {out}")
    for line in summary.unreadable[:N_NAMED]:
        typer.echo(f"  cannot be read: {line}", err=True)
    if summary.n_unreadable > N_NAMED:
        typer.echo(
            f"  ... and {summary.n_unreadable - N_NAMED} more, in {out.with_suffix('.warnings.parquet')}", err=True
        )


def _refuse_bad(summary: PredictSummary, max_bad: int) -> None:
    if summary.n_unreadable > max_bad:
        raise TooManyBadRecordsError(
            f"finished, but {summary.n_unreadable} of {summary.n_records} records cannot be read (--max-bad {max_bad})"
        )


def print_table(table: object) -> None:
    """Print a rich table; as wide as it needs where stdout is no terminal."""
    from rich.console import Console

    console = Console()
    Console(width=None if console.is_terminal else 200).print(table)
