"""An ECG on paper, of a file or of an array."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cache.errors import UsageError
from stages import plots
from stages.readers.files import read_ecg


def plot_ecg(
    ecg: np.ndarray | str | Path,
    rate_hz: float | None = None,
    *,
    layout: str = "3x4",
    rhythm: str = "II",
    start_s: float = 0.0,
    title: str = "",
    notes: Sequence[str] = (),
    out: str | Path | None = None,
) -> Any:
    """Draw ten seconds of an ECG at 25 mm/s and 10 mm/mV, and write the picture where `out` says.

    Parameters
    ----------
    ecg
        float [12, time] in mV, leads I, II, III, aVR, aVL, aVF, V1 ... V6, missing samples = NaN; or the path of an ECG
        file of any format that is read, whose quality the picture names.
    rate_hz
        Of an array; a file has its own.
    layout
        3x4 (with a rhythm strip of lead `rhythm`), 6x2 or 12x1.
    start_s
        First second drawn; of a file ten seconds are kept.
    title, notes
        Words above the picture; a file is named by its path.
    out
        FILE.svg, .png or .pdf.

    Returns
    -------
    matplotlib.figure.Figure
        As large as the paper.

    Raises
    ------
    UsageError
        matplotlib is not installed (extra `plots`), no such layout, start or format, or an array without its rate.
    MissingFileError, InputError
        No such file, one that cannot be read, or an array of another shape.

    Examples
    --------
    >>> import ensemble, numpy as np
    >>> ensemble.plot_ecg(np.zeros((12, 5000)), 500, layout="6x2").get_figwidth() * 25.4
    270.0
    """
    if isinstance(ecg, str | Path):
        recorded = read_ecg(ecg)
        signals_mv, rate_hz = recorded.signals_mv, recorded.rate_hz
        title, notes = title or recorded.name, (*recorded.warnings, *notes)
    elif rate_hz is None:
        raise UsageError("plot_ecg: an array needs its sampling rate: plot_ecg(signals_mv, rate_hz)")
    else:
        signals_mv = np.asarray(ecg)
    figure = plots.plot_ecg(
        signals_mv, rate_hz, layout=layout, rhythm=rhythm, start_s=start_s, title=title, notes=notes
    )
    if out is not None:
        plots.save_picture(figure, out)
    return figure
