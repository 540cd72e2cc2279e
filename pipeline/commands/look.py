"""Commands that look at ECGs: show, explain, similar, map."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.predict import print_table


def add_to(app: typer.Typer) -> None:
    """Register this group's commands."""
    app.command()(show)
    app.command()(explain)
    app.command()(similar)
    app.command(name="map")(ecg_map)


def show(
    record: Annotated[str, typer.Argument(help="A record id of the study, or an ECG file of any format.")],
    out: Annotated[Path | None, typer.Option(help="File to write: .svg, .png or .pdf. Else RECORD.svg.")] = None,
    layout: Annotated[str, typer.Option(help="3x4 (with a rhythm strip), 6x2 or 12x1.")] = "3x4",
    rhythm: Annotated[str, typer.Option(help="Lead of the rhythm strip.")] = "II",
    start: Annotated[float, typer.Option(min=0, help="First second drawn; ten are.")] = 0.0,
) -> None:
    """Draw an ECG on millimetre paper at 25 mm/s and 10 mm/mV, with what its quality gives reason to suspect.

    Example: `ensemble show 40689238 --out ecg.pdf`, `ensemble show ~/ptb-xl/records500/00000/00001_hr --layout 12x1`
    """
    from pipeline.study.folder import Study
    from pipeline.views.ecgs import find_ecg
    from stages.plots import picture_format, plot_ecg, require_matplotlib, save_picture, scale_of

    require_matplotlib()
    target = Path(f"{Path(record).stem}.svg") if out is None else out.expanduser()
    picture_format(target)
    ecg = find_ecg(Study(), record, whole=start > 0)
    figure = plot_ecg(
        ecg.signals_mv,
        ecg.rate_hz,
        layout=layout,
        rhythm=rhythm,
        start_s=start,
        title=ecg.name,
        notes=ecg.warnings,
        scale=scale_of(ecg.amplitude),
    )
    typer.echo(str(save_picture(figure, target)))


def explain(
    record: Annotated[str, typer.Argument(help="A record id of the study, or an ECG file of any format.")],
    task: Annotated[str, typer.Option(help="Which task's answer.")],
    label: Annotated[str | None, typer.Option("--class", help="Which class; else the most probable one.")] = None,
    out: Annotated[Path | None, typer.Option(help="Picture to write: .svg, .png or .pdf.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All numbers as JSON instead of tables.")] = False,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:i.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
) -> None:
    """Say which leads, seconds and beat parts an answer rests on: each is moved to the baseline, and asked again.

    An effect above 0 speaks for the class (or a larger value). Classes are compared as log odds.

    Example: `ensemble explain 40689238 --task report_label --class AF --out why.svg`
    """
    from pipeline.progress import progress
    from pipeline.study.folder import Study
    from pipeline.views.explanations import explain_settings, explanation_tables
    from stages.explain import ExplainPaths, run
    from stages.explain import as_json as written
    from stages.plots import picture_format, require_matplotlib

    if out is not None:
        require_matplotlib()
        picture_format(out)
    settings = explain_settings(Study(), record, task, label, device, threads)
    with progress(f"asking without parts of {record}", "passes") as update:
        found = run(settings, ExplainPaths(picture=out.expanduser() if out else None), update)
    if as_json:
        typer.echo(written(found))
        return
    for table in explanation_tables(found):
        print_table(table)
    for warning in found.warnings:
        typer.echo(f"note: {warning}", err=True)
    if out is not None:
        typer.echo(str(out))


def similar(
    record: Annotated[str, typer.Argument(help="A record id of the study, or an ECG file of any format.")],
    expert: Annotated[str | None, typer.Option(help="In whose space.")] = None,
    gate: Annotated[bool, typer.Option("--gate", help="In the gate's space (where no --expert is given).")] = False,
    task: Annotated[str | None, typer.Option(help="Whose gate weighs the experts; else the mean of all tasks.")] = None,
    count: Annotated[int, typer.Option("-k", "--count", min=1, help="How many neighbours.")] = 10,
    same_patient: Annotated[
        bool, typer.Option("--same-patient/--no-same-patient", help="Whether records of the same patient count.")
    ] = True,
    exact: Annotated[bool, typer.Option("--exact", help="Without an index, however many records there are.")] = False,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:i, for a file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a neighbour instead of a table.")] = False,
    out: Annotated[Path | None, typer.Option(help="Parquet file to write them to.")] = None,
) -> None:
    """List the records nearest to one in an expert's space or the gate's, by cosine distance, with their labels.

    From 100,000 records on an index names the candidates; it is built once.

    Example: `ensemble similar 40689238 --expert seed -k 5 --no-same-patient`, `ensemble similar new.xml --gate`
    """
    import json

    from pipeline.progress import progress
    from pipeline.study.folder import Study
    from pipeline.views.explanations import neighbour_table
    from pipeline.views.neighbours import similar_paths, similar_settings
    from stages.similar import as_rows, run

    study = Study()
    settings = similar_settings(
        study, record, expert, gate, task, device, count=count, same_patient=same_patient, exact=exact
    )
    with progress(f"neighbours of {record}", "records") as update:
        found = run(settings, similar_paths(study, expert), update)
    rows = as_rows(found)
    for note in found.notes:
        typer.echo(f"note: {note}", err=True)
    if out is not None:
        import pandas as pd

        pd.DataFrame(rows).to_parquet(out.expanduser(), index=False)
        typer.echo(str(out))
    elif as_json:
        for row in rows:
            typer.echo(json.dumps(row, ensure_ascii=False))
    else:
        print_table(neighbour_table(f"nearest to {record} by {expert or 'the gate'}", rows))


def ecg_map(
    expert: Annotated[str | None, typer.Option(help="In whose space.")] = None,
    gate: Annotated[bool, typer.Option("--gate", help="In the gate's space (where no --expert is given).")] = False,
    task: Annotated[str | None, typer.Option(help="Whose gate weighs the experts; else the mean of all tasks.")] = None,
    all_records: Annotated[bool, typer.Option("--all", help="All records, not only the test records.")] = False,
    method: Annotated[str | None, typer.Option(help="umap, pca, or auto: UMAP where it is installed.")] = None,
    thumbnails: Annotated[
        int | None, typer.Option(min=0, max=10_000, help="Most records with small ECGs; a map of more has none.")
    ] = None,
    hide_ids: Annotated[bool, typer.Option("--hide-ids", help="No record ids in the page.")] = False,
    name: Annotated[str | None, typer.Option(help="An entry of maps in params.yaml: maps/NAME.html.")] = None,
    out: Annotated[Path, typer.Option(help="Page to write; the coordinates lie beside it.")] = Path("map.html"),
) -> None:
    """Draw the test records as points of a plane: a page that needs no network, and its coordinates as Parquet.

    Example: `ensemble map --expert seed`, `ensemble map --gate --task superclass --all --out atlas.html`
    """
    from pipeline.progress import progress
    from pipeline.study.folder import Study
    from pipeline.views.maps import map_paths, map_settings
    from stages.ecg_map import run

    study = Study()
    given = {"task": task, "method": method, "thumbnails": thumbnails, "hide_ids": hide_ids or None}
    given["records"] = "all" if all_records else None
    settings = map_settings(study, name, expert, gate, given)
    page = study.folder / "maps" / f"{name}.html" if name is not None else out.expanduser()
    with progress("map", "records") as update:
        found = run(settings, map_paths(study, settings, page), update)
    for note in found.notes:
        typer.echo(note)
    typer.echo(f"{found.n_records:,} records, {found.method}, {found.page_bytes / 1e6:.2g} MB -> {page}")
