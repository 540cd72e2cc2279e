"""Ingest in few words: what tests of readers and sources need of the stage's door."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

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
