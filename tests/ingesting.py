"""Ingest in few words: what tests of readers and sources need of the stage's door."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cache import open_records, open_signals
from stages.ingest import IngestPaths, IngestSettings, IngestSummary, run
from stages.settings import Machine


def ingest(
    source: str,
    path: str | Path,
    options: Mapping[str, Any] | None = None,
    *,
    records_path: Path,
    signals_path: Path,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> IngestSummary:
    """Run the stage on a folder; `settings` are those of `IngestSettings`."""
    asked = IngestSettings(source=source, path=str(path), options=dict(options or {}), **settings)
    return run(asked, IngestPaths(records_path, signals_path), progress, machine=Machine(workers=workers))


def ingested(source, folder, tmp_path, options=None, **settings):
    """Ingest, and return the table indexed by record id, the rows in mV and the summary."""
    out = tmp_path / "out"
    summary = ingest(source, folder, options, records_path=out / "r.parquet", signals_path=out / "s.zarr", **settings)
    frame = open_records(out / "r.parquet")
    store = open_signals(out / "s.zarr")
    read = [k for k, status in enumerate(frame["status"]) if status == "ok"]
    rows = {frame["record_id"][k]: next(store.read_groups(slice(k, k + 1)))[1][0] for k in read}
    return frame.set_index("record_id"), rows, summary
