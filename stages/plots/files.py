"""Pictures as files: which formats there are, and how matplotlib is found."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cache.errors import UsageError
from cache.files import replacing
from stages.plots.style import RC

PICTURE_FORMATS = ("svg", "png", "pdf")
PNG_DOTS_PER_INCH = 200
_WITHOUT_DATE: dict[str, dict[str, Any]] = {
    "svg": {"Date": None, "Creator": "ensemble"},
    "png": {"Software": "ensemble"},
    "pdf": {"CreationDate": None, "Creator": "ensemble", "Producer": "ensemble"},
}


def require_matplotlib() -> None:
    """Refuse to draw where matplotlib is not installed.

    Raises
    ------
    UsageError
        One line that names the extra.
    """
    if find_spec("matplotlib") is None:
        raise UsageError("drawing needs matplotlib, which is not installed; run `pip install 'ecg-ensemble[plots]'`")


def picture_format(path: Path) -> str:
    """Return the format that a file's suffix names.

    Raises
    ------
    UsageError
        It names none of `PICTURE_FORMATS`.
    """
    suffix = path.suffix.lower().removeprefix(".")
    if suffix not in PICTURE_FORMATS:
        known = ", ".join(f".{name}" for name in PICTURE_FORMATS)
        raise UsageError(f"--out {path}: pictures are written as {known}; give the file one of these suffixes")
    return suffix


def save_picture(figure: Any, path: str | Path) -> Path:
    """Write a figure in the size it has, all or nothing; the same figure gives the same bytes.

    Parameters
    ----------
    figure
        matplotlib's Figure, as `plot_ecg` gives it.
    path
        Ends in .svg, .png (200 dots an inch) or .pdf.
    """
    import matplotlib as mpl

    path = Path(path)
    kind = picture_format(path)
    with replacing(path) as temporary, mpl.rc_context(RC):
        figure.savefig(temporary, format=kind, dpi=PNG_DOTS_PER_INCH, metadata=_WITHOUT_DATE[kind])
    return path
