"""The ECG that a person names: a record of the study, or a file of any format."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from cache.errors import InputError, MissingFileError
from cache.record_rows import RecordRows
from cache.signals import open_signals
from cache.storage.locations import file_exists
from pipeline.study.folder import Study
from stages.readers.files import Recorded, quality_warnings, read_ecg
from stages.readers.rows import QUALITY, RowOptions


def find_ecg(study: Study, name: str, *, whole: bool = False) -> Recorded:
    """Return the record of the study that has this id; else read the file of this name as ingest would.

    Parameters
    ----------
    whole
        Keep all of a file, not only what the study keeps of a record.

    Raises
    ------
    MissingFileError, InputError
        Neither a record nor a file has this name, or it could not be read; one line says what was looked for.
    """
    records = RecordRows(study.records, ("record_id",), tuple(QUALITY)) if file_exists(study.records) else None
    row = None if records is None else records.find(name)
    if records is not None and row is not None:
        return _of_study(study, records, row)
    options = RowOptions.from_json({} if records is None else records.row_options)
    try:
        return read_ecg(Path(name), replace(options, seconds=None) if whole else options)
    except MissingFileError as error:
        looked = "records.parquet has no record of this id" if records is not None else "no records.parquet is here"
        raise MissingFileError(f"{error}; and {looked}") from error


def _of_study(study: Study, records: RecordRows, row: int) -> Recorded:
    found = {name: _plain(values[0]) for name, values in records.take(slice(row, row + 1)).items()}
    name, facts = str(found["record_id"]), {key: found[key] for key in QUALITY}
    if facts["status"] == "bad":
        raise InputError(f"record {name} could not be read when it was ingested: {facts['reason']}")
    for _, signals_mv, rate_hz in open_signals(study.signals).read_groups(slice(row, row + 1)):
        facts["pace_spikes"] = facts["pace_spikes"] or 0
        warnings = quality_warnings(facts, signals_mv.shape[2] / rate_hz)
        amplitude = records.row_options.get("amplitude", "mV")
        return Recorded(name, signals_mv[0], rate_hz, tuple(warnings), amplitude)
    raise InputError(f"record {name} has no signal in signals.zarr; run `ensemble ingest` again")


def _plain(value: Any) -> Any:
    """Return a table's cell as Python has it: missing as None, lists as tuples."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return tuple(value)
    return None if value is None or pd.isna(value) else value
