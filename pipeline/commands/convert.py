"""Command `convert`: ECG files of any format as WFDB records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.progress import progress

MAX_SHOWN = 5


def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="An ECG file of any format, or a folder of them.")],
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder for the records and manifest.csv.")],
    hash_patients: Annotated[
        bool, typer.Option("--hash-patients", help="Replace patient ids by keyed hashes (key: ENSEMBLE_PATIENT_KEY).")
    ] = False,
    derive_leads: Annotated[
        bool, typer.Option("--derive-leads", help="Compute limb leads that a file lacks from I and II.")
    ] = False,
    seconds: Annotated[float | None, typer.Option(min=1, help="Keep the first seconds only; all if not given.")] = None,
) -> None:
    """Write ECG files of carts and archives as WFDB records, with a manifest of patients and measurements.

    Names, birth dates and free text of the files are written nowhere.

    Example: `ensemble convert muse-export/ wfdb/ --hash-patients`
    """
    from stages.convert import ConvertPaths, ConvertSettings, run

    settings = ConvertSettings(
        seconds="all" if seconds is None else seconds, derive_leads=derive_leads, hash_patients=hash_patients
    )
    with progress("convert", unit="files") as update:
        summary = run(settings, ConvertPaths(source, folder.expanduser()), update)
    for note in summary.notes:
        typer.echo(note)
    typer.echo(f"{summary.n_written} records, {len(summary.bad)} bad -> {folder}")
    for line in summary.bad[:MAX_SHOWN]:
        typer.echo(f"  {line}")
    if summary.bad:
        typer.echo(f"{folder / 'manifest.csv'} names each")
