"""Stage `ingest`: a data source in, records.parquet, signals.zarr and bad_records.csv out."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stages.ingest.settings import IngestPaths, IngestSettings

if TYPE_CHECKING:
    from stages.ingest.outputs import IngestSummary
    from stages.ingest.stage import run

__all__ = ["IngestPaths", "IngestSettings", "IngestSummary", "run"]


def __getattr__(name: str) -> Any:
    """Import the stage's body when it is first asked for (pandas and zarr take their time)."""
    if name not in __all__:
        raise AttributeError(f"module 'stages.ingest' has no attribute '{name}'")
    return getattr(import_module("stages.ingest.outputs" if name == "IngestSummary" else "stages.ingest.stage"), name)
