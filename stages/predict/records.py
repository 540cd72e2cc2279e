"""New ECGs for `predict`: which ones a person names, each as the study's own rows are made, and what to beware of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cache.errors import InputError, MissingFileError, UsageError
from cache.signals import to_millivolts
from stages.readers import read_wfdb
from stages.readers.limbs import suspicions
from stages.readers.pacing import SEVERAL
from stages.readers.recording import SECONDS_KEPT
from stages.readers.rows import QUALITY, RowMaker, RowOptions
from stages.readers.wfdb.header import read_header

NOISY_NAN_FRACTION = 0.01
SUFFIXES = (".hea", ".dat", ".mat")


class Recorded(NamedTuple):
    """One new ECG in the form of signals.zarr's rows.

    Attributes
    ----------
    signals_mv
        float32 [12, time] in mV; missing = NaN.
    warnings
        What a reader of the predictions should know about the signal.
    """

    name: str
    signals_mv: np.ndarray
    rate_hz: float
    warnings: tuple[str, ...] = ()


def find_records(paths: Sequence[str | Path]) -> list[Path]:
    """Return the records that paths name: WFDB records, with or without suffix, and all those below folders.

    Segments of a record are no records of their own.

    Raises
    ------
    UsageError
        An empty name.
    MissingFileError
        A folder without a record, or none of the records named is there.
    """
    if any(not str(path) for path in paths):
        raise UsageError("a record's name is empty; give the path of a WFDB record, or of a folder of them")
    found: list[Path] = []
    for path in (Path(name).expanduser() for name in paths):
        if not path.is_dir():
            found.append(path)
            continue
        below = _records_below(path)
        if not below:
            raise MissingFileError(f"{path}: no WFDB record is in this folder (no .hea file)")
        found += below
    if not any(_header_of(path).is_file() for path in found):
        raise MissingFileError(_absent(found[0]))
    return found


def _header_of(path: Path) -> Path:
    stem = path.with_suffix("") if path.suffix in SUFFIXES else path
    return stem.with_name(stem.name + ".hea")


def _absent(path: Path) -> str:
    return f"{path}: no WFDB record ({_header_of(path).name} is not there)"


def _records_below(folder: Path) -> list[Path]:
    headers = sorted(p for p in folder.rglob("*.hea") if not any(part.startswith(".") for part in p.parts[1:]))
    segments = set[Path]()
    for header in headers:
        try:
            content = read_header(header.parent, header.stem)
        except InputError:
            continue  # it is named when it is read
        if content.n_segments:
            segments |= {header.parent / line.split()[0] for line in content.signal_lines if line.split()}
    return [stem for header in headers if (stem := header.with_suffix("")) not in segments]


def read_record(path: str | Path, options: RowOptions | None = None) -> Recorded:
    """Read a WFDB record, named with or without its suffix, as ingest would.

    Parameters
    ----------
    options
        Those that the study's rows were made with.

    Raises
    ------
    MissingFileError, InputError
        No such record, or one that cannot be read; the message names it.
    """
    options = options or RowOptions()
    path = Path(path).expanduser()
    header = _header_of(path)
    if not header.is_file():
        raise MissingFileError(_absent(path))
    maker = RowMaker(1)
    made = maker.make(
        0,
        [lambda: read_wfdb(header.parent.resolve(), header.stem, options.seconds, options.lead_names)],
        replace(options, pace_spikes=True),
    )
    facts = dict(zip(QUALITY, made.columns[0], strict=True))
    if facts["status"] == "bad":
        raise InputError(f"{path}: {facts['reason']}")
    signals_uv, rate_hz = maker.rows[0, :, : made.valid[0]], float(made.rate_hz[0])
    facts["limb_swap"] = suspicions(made.products)[0]
    warnings = _warnings(facts, signals_uv.shape[1] / rate_hz)
    return Recorded(str(path), to_millivolts(signals_uv), rate_hz, tuple(warnings))


def _warnings(facts: dict[str, Any], seconds: float) -> list[str]:
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
