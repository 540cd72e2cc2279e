"""Commands that make and fill a study: init, generate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.progress import progress


def add_to(app: typer.Typer) -> None:
    """Register this group's commands."""
    app.command()(init)
    app.command()(generate)


def init(
    folder: Annotated[Path, typer.Argument(help="The study's folder; made if it is not there.")],
    source: Annotated[str, typer.Option(help="Kind of cohort; docs/cohorts.md lists them.")],
    path: Annotated[Path, typer.Option(help="Folder with the records.")],
    labels: Annotated[Path | None, typer.Option(help="CSV with the labels (source wfdb).")] = None,
) -> None:
    """Make a study of your own: params.yaml, dvc.yaml and .gitignore, ready for `dvc repro`.

    Example: `ensemble init my-study --source ptbxl --path ~/ptb-xl`
    """
    from pipeline.scaffold import make_study

    made = make_study(folder, source, path, labels)
    typer.echo(f"made {', '.join(made)} in {folder}")
    typer.echo(f"next: cd {folder} && dvc repro && dvc metrics show")


def generate(
    folder: Annotated[Path, typer.Argument(help="Where the records go.")] = Path("data/embedded-cohort"),
    records: Annotated[int | None, typer.Option(min=1, help="How many ECGs; params.yaml's if not given.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same bytes.")] = None,
) -> None:
    """Generate the embedded cohort: synthetic ECGs in MIMIC-IV-ECG's own layout.

    Example: `ensemble generate data/embedded-cohort --records 600 --seed 0`
    """
    from pipeline.params import Generate
    from pipeline.study import Study
    from stages.synthetic import generate as run_generate

    given = Study().params.generate if records is None or seed is None else Generate()
    with progress("generate") as update:
        run_generate(
            folder,
            n_records=records or given.records,
            seed=given.seed if seed is None else seed,
            progress=update,
        )
    typer.echo(f"{records or given.records} records -> {folder}")
