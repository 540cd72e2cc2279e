"""Commands that look at ECGs: show."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def add_to(app: typer.Typer) -> None:
    """Register this group's commands."""
    app.command()(show)


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
    from stages.plots import picture_format, plot_ecg, require_matplotlib, save_picture

    require_matplotlib()
    target = Path(f"{Path(record).stem}.svg") if out is None else out.expanduser()
    picture_format(target)
    ecg = find_ecg(Study(), record, whole=start > 0)
    figure = plot_ecg(
        ecg.signals_mv, ecg.rate_hz, layout=layout, rhythm=rhythm, start_s=start, title=ecg.name, notes=ecg.warnings
    )
    typer.echo(str(save_picture(figure, target)))
