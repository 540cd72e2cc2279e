"""Stage `convert`: ECG files of any format in, WFDB records (format 16, microvolts) and manifest.csv out.

A record is what ingest would make a row of: standard leads at the file's own rate. The manifest is a table of labels
for the source `wfdb`.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cache.errors import InputError, UsageError
from cache.files import write_text
from cache.records import Target
from cache.signals import LEADS
from stages.cohorts import Cohort, open_cohort
from stages.convert.settings import ConvertPaths, ConvertSettings, ConvertSummary
from stages.convert.wfdb_record import write_wfdb
from stages.readers.files.patients import PREFIX, hash_patients, hashed, patient_key
from stages.readers.rows import QUALITY, RowMaker, RowOptions

MANIFEST = "manifest.csv"
_OTHER = re.compile(r"[^A-Za-z0-9_-]+")
FACTS = ("sampling_rate_hz", "n_samples", "missing_leads", "derived_leads", "notes", "status", "reason")
Progress = Callable[[int, int], None]


def run(settings: ConvertSettings, paths: ConvertPaths, progress: Progress | None = None) -> ConvertSummary:
    """Convert a file or all files of a folder; one that cannot be read is a line of the manifest.

    Parameters
    ----------
    progress
        Called with (files done, files in all).

    Raises
    ------
    UsageError
        The output folder holds a manifest already, or is that of the files.
    MissingFileError, InputError
        No ECG is there, or none can be read.
    """
    cohort = _cohort(settings, paths)
    if (paths.folder / MANIFEST).exists() or paths.folder.resolve() == Path(cohort.folder):
        raise UsageError(f"{paths.folder}: holds a manifest or the files themselves; name a new folder")
    key = patient_key([paths.folder]) if settings.hash_patients else None
    entries = cohort.entries()
    summary = ConvertSummary(notes=list(entries.notes))
    frame = entries.frame.reset_index(drop=True)
    names = _names(frame["path"].tolist(), key)
    if key is not None:
        hash_patients(frame, key, [])
    rows = list(_converted(cohort, settings, paths.folder, frame["path"].tolist(), names, summary, progress))
    _write_manifest(paths.folder / MANIFEST, frame, entries.targets, names, rows, hidden=key is not None)
    if not summary.n_written:
        raise InputError(f"none of {len(frame)} files of {paths.source} can be read: {summary.bad[0]}")
    return summary


def _cohort(settings: ConvertSettings, paths: ConvertPaths) -> Cohort:
    options = {"measurements": True, **settings.options}
    source = paths.source.expanduser()
    if source.is_file():
        cohort = open_cohort("files", source.resolve().parent, {**options, "only": [source.resolve().name]})
    else:
        cohort = open_cohort("files", source, options)
    cohort.seconds = None if settings.seconds == "all" else settings.seconds
    return cohort


def _names(files: list[str], key: bytes | None) -> list[str]:
    """Return a name within the output folder for each file, as WFDB allows it; with a key one that tells nothing."""
    if key is not None:
        return [f"ecg_{hashed(path, key).removeprefix(PREFIX)[:16]}" for path in files]
    names, taken = [], set[str]()
    for path in files:
        parts = [_OTHER.sub("_", part) for part in Path(path).with_suffix("").parts]
        plain = "/".join(parts)
        name = next(n for k in range(1, len(files) + 2) if (n := plain if k == 1 else f"{plain}_{k}") not in taken)
        taken.add(name)
        names.append(name)
    return names


def _converted(
    cohort: Cohort,
    settings: ConvertSettings,
    folder: Path,
    files: list[str],
    names: list[str],
    summary: ConvertSummary,
    progress: Progress | None,
) -> Iterator[dict[str, Any]]:
    """Write the records one by one; gives what is known of each."""
    maker = RowMaker(1)
    options = RowOptions(
        derive_leads=settings.derive_leads,
        seconds=cohort.seconds,
        lead_names=cohort.lead_names,
        scale=cohort.options.scale,
    )
    for k, (path, name) in enumerate(zip(files, names, strict=True)):
        made = maker.make(0, [partial(cohort.read, path)], options)
        facts = dict(zip(QUALITY, made.columns[0], strict=True))
        if facts["status"] == "ok":
            lacking = set(facts["missing_leads"]) - set(facts["derived_leads"])
            places = [place for place, lead in enumerate(LEADS) if lead not in lacking]
            signals_uv = np.ascontiguousarray(maker.rows[0, places, : made.valid[0]])
            leads = [LEADS[place] for place in places]
            write_wfdb(folder / name, signals_uv, leads, float(made.rate_hz[0]), facts["derived_leads"])
            summary.n_written += 1
        else:
            summary.bad.append(f"{path if not settings.hash_patients else name}: {facts['reason']}")
        if progress is not None:
            progress(k + 1, len(files))
        yield facts


def _write_manifest(
    path: Path,
    frame: pd.DataFrame,
    targets: list[Target],
    names: list[str],
    rows: list[dict[str, Any]],
    *,
    hidden: bool,
) -> None:
    """Write one line a file: the record, its patient, what is known of it, and the labels."""
    labels = [target for target in targets if target.name in frame]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    origin = [] if hidden else ["source_file", "source_id"]
    writer.writerow(["record_id", "patient_id", *origin, *FACTS, *(target.name for target in labels)])
    for k, (name, facts) in enumerate(zip(names, rows, strict=True)):
        of_file = [] if hidden else [frame["path"][k], frame["record_id"][k]]
        cells = [_cell(facts[fact]) for fact in FACTS]
        values = [_label(frame[target.name][k], target) for target in labels]
        writer.writerow([name, _cell(frame["patient_id"][k]), *of_file, *cells, *values])
    write_text(path, text.getvalue())


def _cell(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "; ".join(map(str, value))
    return "" if value is None or pd.isna(value) else f"{value:g}" if isinstance(value, float) else str(value)


def _label(value: Any, target: Target) -> str:
    if isinstance(value, list | tuple) or value is None or pd.isna(value) or not target.classes:
        return _cell(value)
    return target.classes[int(value)]
