"""New ECGs that a person names, in files of any format: each as a study's own rows are made, and what to beware of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cache.errors import InputError, MissingFileError, UsageError
from cache.signals import to_millivolts
from stages.readers.files.door import known_format, read_file, what_is_read
from stages.readers.limbs import suspicions
from stages.readers.pacing import SEVERAL
from stages.readers.paths import FOLLOW_LINKS, DataFolder, inside
from stages.readers.record_search import HEADER, files_below, named_paths
from stages.readers.record_search import find_records as find_headers
from stages.readers.recording import SECONDS_KEPT, Counts, Recording
from stages.readers.rows import QUALITY, RowMaker, RowOptions
from stages.readers.wfdb.record import read_wfdb

NOISY_NAN_FRACTION = 0.01
SUFFIXES = (HEADER, ".dat", ".mat")
"""Of the files of a WFDB record."""


class Recorded(NamedTuple):
    """One new ECG in the form of signals.zarr's rows.

    Attributes
    ----------
    signals_mv
        float32 [12, time] in mV; missing = NaN.
    warnings
        What a reader of the predictions should know about the signal.
    amplitude
        Unit of the signals, where it is not mV: as `row_options` of records.parquet have it.
    """

    name: str
    signals_mv: np.ndarray
    rate_hz: float
    warnings: tuple[str, ...] = ()
    amplitude: str = "mV"


def find_ecgs(paths: Sequence[str | Path], *, follow_links: bool = False, notes: list[str] | None = None) -> list[Path]:
    """Return the ECGs that paths name: files of any format, WFDB records, and all of both below folders.

    A WFDB record is named with or without suffix; segments of a record are no records of their own. Files of folders
    are known by their content.

    Parameters
    ----------
    follow_links
        Links below the folders may lead out of them; else they are left out.
    notes
        Gets a line for what was left out.

    Raises
    ------
    UsageError
        An empty name.
    MissingFileError
        A folder without an ECG, or none of those named is there.
    """
    if any(not str(path) for path in paths):
        raise UsageError("a record's name is empty; give the path of an ECG file, or of a folder of them")
    found: list[Path] = []
    notes = [] if notes is None else notes
    for path in (Path(name).expanduser() for name in paths):
        found += _below(path, follow_links, notes) if path.is_dir() else [path]
    if not any(path.is_file() or _header_of(path).is_file() for path in found):
        raise MissingFileError(_absent(found[0]))
    return found


def without_parts(names: Sequence[str]) -> list[Path]:
    """Return paths without the data files of WFDB records whose headers are among them: those are the records."""
    paths, known = [Path(name) for name in names], set(names)
    return [path for path in paths if path.suffix == HEADER or str(_header_of(path)) not in known]


def _header_of(path: Path) -> Path:
    stem = path.with_suffix("") if path.suffix in SUFFIXES else path
    return stem.with_name(stem.name + HEADER)


def _absent(path: Path) -> str:
    return f"{path}: no WFDB record ({_header_of(path).name} is not there), nor a file of that name"


def _below(folder: Path, follow_links: bool, notes: list[str]) -> list[Path]:
    data, left_out = DataFolder(str(folder.resolve()), follow_links), list[str]()
    files = files_below(data, left_out)
    elsewhere = [path for path in files if _leads_out(data, path)]
    if elsewhere:
        left_out.append(f"links to files elsewhere are not followed: {named_paths(elsewhere)}; {FOLLOW_LINKS} does")
    known = (path for path in sorted(set(files) - set(elsewhere)) if _is_known(data, path))
    found = sorted([*(path for path in find_headers(data, []) if path + HEADER not in elsewhere), *known])
    if not found:
        formats = f"these formats are read: {what_is_read()}"
        raise MissingFileError("; ".join([f"{folder}: no ECG is in this folder", *left_out, formats]))
    notes += left_out
    return [folder / path for path in found]


def _leads_out(folder: DataFolder, path: str) -> bool:
    try:
        inside(folder, path)
    except InputError:
        return True
    return False


def _is_known(folder: DataFolder, path: str) -> bool:
    try:
        return not path.endswith(HEADER) and known_format(folder, path) is not None
    except InputError:
        return True  # it is named when it is read


def read_ecg(path: str | Path, options: RowOptions | None = None, *, follow_links: bool = False) -> Recorded:
    """Read an ECG file, or a WFDB record named with or without its suffix, as ingest would.

    Parameters
    ----------
    options
        Those that the study's rows were made with.
    follow_links
        The files of a WFDB record may be links that lead out of its folder.

    Raises
    ------
    MissingFileError, InputError
        No such file, or one that cannot be read; the message names it.
    """
    options = options or RowOptions()
    path = Path(path).expanduser()
    maker = RowMaker(1)
    made = maker.make(0, [_reader(path, options, follow_links)], replace(options, pace_spikes=True, amplitude="mV"))
    facts = dict(zip(QUALITY, made.columns[0], strict=True))
    if facts["status"] == "bad":
        raise InputError(f"{path}: {facts['reason']}")
    signals_uv, rate_hz = maker.rows[0, :, : made.valid[0]], float(made.rate_hz[0])
    facts["limb_swap"] = suspicions(made.products)[0]
    warnings = quality_warnings(facts, signals_uv.shape[1] / rate_hz)
    if options.amplitude != "mV":
        warnings.append(f"the study learnt from {options.amplitude}s, this ECG is in millivolts: answers may be off")
    return Recorded(str(path), to_millivolts(signals_uv), rate_hz, tuple(warnings))


def _reader(path: Path, options: RowOptions, follow_links: bool) -> Callable[[], Recording | Counts]:
    header = _header_of(path)
    if header.is_file() and (path.suffix in SUFFIXES or not path.is_file()):
        folder = DataFolder(str(header.parent.resolve()), follow_links)
        return lambda: read_wfdb(folder, header.stem, options.seconds, options.lead_names)
    if not path.is_file():
        raise MissingFileError(_absent(path))
    real = path.resolve()  # a link that a person names is meant
    return lambda: read_file(str(real.parent), real.name, options.seconds, options.lead_names)


def quality_warnings(facts: Mapping[str, Any], seconds: float) -> list[str]:
    """Say what a reader should know of a signal.

    Parameters
    ----------
    facts
        Values of the columns `QUALITY`, None where there is none.
    seconds
        How long the record is.
    """
    missing, flat, derived = (facts[name] or () for name in ("missing_leads", "flat_leads", "derived_leads"))
    found = {
        f"missing leads: {_names(missing)}": missing,
        f"leads computed from I and II: {_names(derived)}": derived,
        f"flat leads: {_names(flat)}": flat,
        f"short record: {seconds:.1f} s of {SECONDS_KEPT:g} s": seconds < SECONDS_KEPT,
        f"missing samples: {facts['nan_fraction']:.1%}": facts["nan_fraction"] > NOISY_NAN_FRACTION,
        f"clipped samples: {facts['clipped_fraction']:.1%}": facts["clipped_fraction"] > 0,
        f"limb leads look exchanged: {facts['limb_swap']}": facts["limb_swap"],
        f"pacemaker spikes: {facts['pace_spikes']}": facts["pace_spikes"] >= SEVERAL,
    }
    return [text for text, applies in found.items() if applies] + list(facts["notes"] or ())


def _names(leads: Sequence[str]) -> str:
    return ", ".join(leads)
