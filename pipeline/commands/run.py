"""Commands that run a stage: ingest, embed, fit-heads, evaluate, report, predict, convert."""

from __future__ import annotations

import os
from dataclasses import asdict
from dataclasses import replace as with_changes
from pathlib import Path
from typing import Annotated, Any

import typer

from cache.errors import TooManyBadRecordsError, UsageError
from pipeline.commands.convert import convert
from pipeline.commands.leaderboard import check_preset, judge_leaderboard
from pipeline.commands.predict import predict, print_table
from pipeline.compute.allocator import share_one_heap
from pipeline.compute.embedding import embed_settings, is_imported, settings_json
from pipeline.progress import progress
from pipeline.study.folder import Study
from pipeline.views.embedding import print_plan, print_summary

PLAIN_WIDTH = 120
WIDE_HELP = "All tasks side by side in one table, however wide."


def add_to(app: typer.Typer) -> None:
    """Register this group's commands."""
    app.command()(ingest)
    app.command()(embed)
    app.command(name="fit-heads")(fit_heads)
    app.command()(evaluate)
    app.command()(report)
    app.command()(predict)
    app.command()(convert)


def ingest(
    source: Annotated[str | None, typer.Option(help="Kind of cohort; docs/cohorts.md lists them.")] = None,
    path: Annotated[Path | None, typer.Option(help="Folder with the records.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Table of labels (sources files, wfdb, arrays).")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Take only the first N records.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that read.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="Address of a Dask scheduler, tcp://host:port.")] = None,
    append: Annotated[bool, typer.Option("--append", help="Add what is new; what is there stays as it is.")] = False,
    derive_leads: Annotated[
        bool | None,
        typer.Option("--derive-leads", show_default=False, help="Compute limb leads that a file lacks from I and II."),
    ] = None,
    pace_spikes: Annotated[
        bool | None,
        typer.Option("--pace-spikes", show_default=False, help="Count pacemaker spikes (column pace_spikes)."),
    ] = None,
    hash_patients: Annotated[
        bool | None,
        typer.Option("--hash-patients", show_default=False, help="Replace patient ids by keyed hashes."),
    ] = None,
) -> None:
    """Read a cohort into records.parquet and signals.zarr.

    Example: `ensemble ingest --source ptbxl --path ~/ptb-xl`
    """
    from pipeline.study.markers import write_ingested
    from pipeline.study.runs import write_run
    from stages.ingest import IngestPaths, IngestSettings, run

    study = Study()
    given = {"limit": limit, "derive_leads": derive_leads, "pace_spikes": pace_spikes, "hash_patients": hash_patients}
    section = study.cohort(source, path, labels)
    settings = IngestSettings(
        **{**section.model_dump(), **{name: value for name, value in given.items() if value is not None}},
        seed=study.seed,
        append=append,
    )
    settings = settings.model_copy(update={"path": str(study.folder / Path(settings.path).expanduser())})
    paths = IngestPaths(study.records, study.signals)
    with progress("ingest" if scheduler is None else f"ingest on {scheduler}") as update:
        if scheduler is None:
            summary = run(settings, paths, update, machine=study.machine(workers=workers))
        else:
            from pipeline.compute.ingestion import ingest_on_cluster

            summary = ingest_on_cluster(settings, paths, scheduler, update)
    for note in summary.notes:
        typer.echo(note)
    typer.echo(f"{summary.n_records} records, {summary.n_bad} bad -> {study.records}, {study.signals}")
    for reason, count in sorted(summary.reasons.items(), key=lambda item: -item[1]):
        typer.echo(f"  {count} x {reason}")
    if summary.n_bad:
        typer.echo(f"{study.records.parent / 'bad_records.csv'} names each")
    summary.refuse_all_bad(Path(settings.path))
    write_ingested(study)
    write_run(study.state, "ingest", {"source": settings.source, "records": summary.n_records, "bad": summary.n_bad})


def embed(
    expert: Annotated[str, typer.Option(help="Which expert; `ensemble experts` lists them.")],
    weights: Annotated[Path | None, typer.Option(help="Checkpoint file or folder, instead of params.yaml's.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:i.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16.")] = None,
    batch_size: Annotated[str | None, typer.Option(help="Records a forward pass, or auto.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of a process.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes on this machine.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="Address of a Dask scheduler, tcp://host:port.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    max_bad: Annotated[int | None, typer.Option(min=0, help="Exit with 3 if more records have no vector.")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace vectors that were made otherwise, without asking.")
    ] = False,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", "--accept-license", help="Accept a non-commercial licence.")
    ] = False,
    zscores_as_mv: Annotated[
        bool, typer.Option("--zscores-as-mv", help="Take one standard deviation for one millivolt.")
    ] = False,
) -> None:
    """Run one frozen expert over all records, once; goes on where a killed run stopped.

    Example: `ensemble embed --expert ecgfm --weights mimic_iv_ecg_physionet_pretrained.pt`
    """
    from pipeline.compute.replacement import confirm_replacement
    from pipeline.compute.workers import run_embed, worker_count
    from pipeline.study.markers import write_marker
    from pipeline.study.runs import write_run
    from stages.embed import Embedder, EmbedPaths, load_for

    share_one_heap()
    study = Study()
    if is_imported(study, expert):
        typer.echo(f"{expert}: imported, nothing to run -> {study.embedding(expert)}")
        write_marker(study, expert)
        return
    local_device = device if scheduler is None else "cpu"  # a cluster's workers have devices of their own
    settings = embed_settings(
        study, expert, weights, local_device, precision, batch_size, accept_licence, threads, zscores_as_mv
    )
    paths = EmbedPaths(study.records, study.signals, study.embedding(expert), study.state)
    if dry_run:
        load_for(with_changes(settings, device="cpu"))  # weights that do not load are told before anything else
        print_plan(Embedder(settings, paths).plan())
        return
    confirm_replacement(Embedder(settings, paths), agreed=replace)
    if scheduler is None:
        n_workers = worker_count(workers or study.machine().workers, settings.device, settings.threads)
        summary = run_embed(settings, paths, workers=n_workers)
    else:
        from pipeline.compute.cluster import embed_on_cluster

        summary = embed_on_cluster(settings, paths, scheduler, device or study.machine().device)
    write_marker(study, expert)
    write_run(study.state, f"embed-{expert}", {"settings": settings_json(settings), **asdict(summary)})
    print_summary(summary)
    allowed = study.params.embed.max_bad if max_bad is None else max_bad
    if allowed is not None and summary.n_without_vector > allowed:
        raise TooManyBadRecordsError(
            f"expert '{expert}' finished, but {summary.n_without_vector} records have no vector (--max-bad {allowed})"
        )


def fit_heads(
    tasks: Annotated[str | None, typer.Option(help="Target columns, a,b; params.yaml's if not given.")] = None,
    experts: Annotated[str | None, typer.Option(help="Experts, a,b; params.yaml's if not given.")] = None,
    preset: Annotated[str | None, typer.Option(help="default, or enecg: the published recipe as well.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:i.")] = None,
) -> None:
    """Fit LoRA heads per expert and a gate per task, on cached embeddings only.

    Example: `ensemble fit-heads --tasks age,sex --preset enecg`
    """
    from pipeline.study.runs import write_run
    from stages.fit_heads import FitHeadsPaths, FitHeadsSettings, run

    study = Study()
    names = study.check_experts(_names(experts) or list(study.params.experts))
    section = study.params.fit_heads
    chosen = preset or section.preset
    if chosen not in ("default", "enecg"):
        raise UsageError(f"--preset {chosen}: expected default or enecg")
    asked = study.params.tasks
    settings = FitHeadsSettings.model_validate(
        {
            "preset": chosen,
            "folds": section.folds_for(chosen),
            "operating_points": section.operating_points,
            "conformal": section.conformal,
            "parents": section.parents,
            "options": section.options,
            "tasks": _names(tasks) or (None if asked == "all" else asked),
            "seed": study.params.seed,
        }
    )
    stores = {name: study.embedding(name) for name in names}
    paths = FitHeadsPaths(study.records, study.signals, stores, study.heads, study.fit_costs)
    summary = run(settings, paths, machine=study.machine(device=device))
    write_run(study.state, "fit-heads", asdict(summary))
    typer.echo(
        f"{len(summary.tasks)} tasks ({', '.join(summary.tasks)}) on {len(summary.experts)} experts, "
        f"{summary.n_folds} fold(s), {summary.n_trainable:,} trained parameters, {summary.seconds:.1f} s"
    )
    for task, reason in summary.skipped.items():
        typer.echo(f"  left out: {task}: {reason}")
    for note in summary.notes:
        typer.echo(f"  {note}")
    if summary.enecg:
        _print_enecg(summary.enecg)


def _print_enecg(found: dict[str, Any]) -> None:
    """Print the published metrics, mean and standard deviation over the folds."""
    typer.echo(f"enecg preset: {found['parameters']:,} trained parameters, {found['seconds']:.1f} s")
    for task, metrics in found["metrics"].items():
        listed = ", ".join(f"{name} {m['mean']:.4g} ± {m['std']:.2g}" for name, m in metrics.items())
        typer.echo(f"  {task}: {listed}")
    for task, reason in found["skipped"].items():
        typer.echo(f"  left out: {task}: {reason}")


def evaluate(
    compare: Annotated[
        bool | None,
        typer.Option("--compare/--no-compare", show_default=False, help="Also fit every other method there is."),
    ] = None,
    fractions: Annotated[str | None, typer.Option(help="Learning curve: shares of the patients, 0.1,0.3,1.0.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:i, of what is fitted here.")] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a Dask scheduler, tcp://host:port, whose workers resample.")
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option(help="Judge another study's fit here instead: a name under evaluate.fits, or the study's folder."),
    ] = None,
    wide: Annotated[bool, typer.Option("--wide", help=WIDE_HELP)] = False,
    robustness: Annotated[
        bool, typer.Option("--robustness", help="Instead: disturb evaluated test records, and judge the answers.")
    ] = False,
    name: Annotated[
        str | None,
        typer.Option(help="Of --robustness or --preset: the run's, under robustness or leaderboard in params.yaml."),
    ] = None,
    preset: Annotated[
        str, typer.Option(help="Instead: fm-benchmark, every expert by the published protocol.", show_default=False)
    ] = "",
    fine_tune: Annotated[
        bool,
        typer.Option("--fine-tune", help="With --preset fm-benchmark: fine-tune every expert to every task as well."),
    ] = False,
) -> None:
    """Judge the fit on held-out patients: the gate, each expert and reference methods, with intervals.

    A killed comparison goes on with the method where it stopped. `dvc repro` evaluates as params.yaml says
    (evaluate.compare, evaluate.fractions); options hold for this run alone.

    Example: `ensemble evaluate --compare --fractions 0.1,0.3,1.0`, or `ensemble evaluate --fit ../study-a`
    """
    if fit is not None:
        _evaluate_fit(fit, device, scheduler, wide)
        return
    from pipeline.compute.evaluation import run_evaluate
    from pipeline.views.decisions import decision_tables
    from pipeline.views.report_facts import evaluate_words, overlap_warnings
    from stages.evaluate import EvaluatePaths, EvaluateSettings

    if check_preset(preset, fine_tune=fine_tune):
        judge_leaderboard(device, name, fine_tune=fine_tune)
        return
    study = Study()
    if robustness or name is not None:
        _judge_disturbed(study, name, device)
        return
    stores = {name: study.embedding(name) for name in study.fitted_experts()}
    asked = study.params.evaluate
    settings = EvaluateSettings(
        bootstrap=asked.bootstrap,
        compare=asked.compare if compare is None else compare,
        fractions=asked.fractions if fractions is None else _fractions(fractions),
        seed=study.params.seed,
        prevalence=asked.prevalence,
    )
    paths = EvaluatePaths(
        study.records,
        study.signals,
        stores,
        study.heads,
        study.predictions,
        study.gate_weights,
        study.metrics,
        study.headline,
        study.evaluation,
        study.state / "finished",
        study.evaluate_costs,
        study.decisions,
    )
    found = run_evaluate(
        settings,
        paths,
        scheduler,
        lambda name: typer.echo(f"fitting {name}", err=True),
        machine=study.machine(device=device),
    )
    _print_metrics(found.metrics, wide)
    for table in decision_tables(found.decisions):
        print_table(table)
    for method, reason in found.left_out.items():
        typer.echo(f"left out: {method}: {reason}")
    for task, reason in found.metrics["left_out"].items():
        typer.echo(f"not judged: {task}: {reason}")
    for (fraction, reason), tasks in _by_reason(found.missing_points).items():
        typer.echo(f"no point of the learning curve at {fraction} ({', '.join(tasks)}): {reason}")
    if (settings.compare, settings.fractions) != (asked.compare, asked.fractions):
        words = evaluate_words(settings.compare, settings.fractions)
        typer.echo(
            f"`dvc repro` will evaluate as params.yaml says; to keep this comparison, set {words} there", err=True
        )
    for warning in overlap_warnings(study):
        typer.echo(f"warning: {warning}", err=True)


def _judge_disturbed(study: Study, name: str | None, device: str | None) -> None:
    from pipeline.compute.robustness import judge_disturbed
    from pipeline.views.robustness import robustness_tables

    results, path = judge_disturbed(study, name, device)
    for table in robustness_tables(results):
        print_table(table)
    typer.echo(f"next: `ensemble report` shows {path}")


def _evaluate_fit(fit: str, device: str | None, scheduler: str | None, wide: bool) -> None:
    from pipeline.commands.external import judge_fit, lines_of

    study = Study()
    found = judge_fit(study, fit, device=device, scheduler=scheduler)
    _print_metrics(found.metrics, wide)
    for line in lines_of(found):
        typer.echo(line)
    typer.echo(f"-> {study.external / found.metrics['fit']}")


def report(
    show: Annotated[bool, typer.Option("--show", help="Only print the metrics and where the report lies.")] = False,
    wide: Annotated[bool, typer.Option("--wide", help=WIDE_HELP)] = False,
    tables: Annotated[Path | None, typer.Option(help="A second folder for the tables as CSV and LaTeX.")] = None,
) -> None:
    """Write report.html, its tables as CSV and LaTeX, and the plots for DVC.

    Example: `ensemble report --tables ../manuscript/tables`
    """
    from pipeline.views.report_facts import report_paths, report_settings
    from stages.report import run
    from stages.scoring.summary import read_metrics, require_pair

    study = Study()
    if show:
        metrics = read_metrics(study.metrics)
        require_pair(metrics, study.metrics, study.predictions)
        _print_metrics(metrics, wide)
    else:
        run(report_settings(study), report_paths(study, tables))
    typer.echo(f"report: {study.report.resolve()}")


def _names(text: str | None) -> list[str] | None:
    """Split a,b; None where nothing was given."""
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    return names or None


def _fractions(text: str | None) -> tuple[float, ...]:
    try:
        shares = tuple(float(name) for name in _names(text) or ())
    except ValueError as error:
        raise UsageError(f"--fractions {text}: expected numbers such as 0.1,0.3,1.0") from error
    if wrong := [share for share in shares if not 0 < share <= 1]:
        raise UsageError(f"--fractions {wrong[0]:g}: a share of the patients lies above 0 and is at most 1")
    return shares


def _by_reason(missing_points: dict[str, dict[str, str]]) -> dict[tuple[str, str], list[str]]:
    """Turn task -> fraction -> reason into (fraction, reason) -> tasks."""
    found: dict[tuple[str, str], list[str]] = {}
    for task, points in missing_points.items():
        for point in points.items():
            found.setdefault(point, []).append(task)
    return found


def _print_metrics(metrics: dict[str, Any], wide: bool) -> None:
    """Print tables as wide as the terminal is (COLUMNS where stdout is none; 120 without it), or one of any width."""
    from rich.console import Console

    from stages.scoring.table import differences_tables, metrics_tables, width_of

    console = Console()
    width = console.width if console.is_terminal or "COLUMNS" in os.environ else PLAIN_WIDTH
    for table in [
        *metrics_tables(metrics, None if wide else width),
        *differences_tables(metrics, None if wide else width),
    ]:
        Console(width=max(width, width_of(table)) if wide else width, soft_wrap=wide).print(table)
