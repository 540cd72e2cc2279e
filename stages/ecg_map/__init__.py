"""Stage `ecg_map`: records as points of a plane, in a page of its own. Lives here: map.html, map.parquet."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stages.ecg_map.settings import MapPaths, MapSection, MapSettings, MapSummary

if TYPE_CHECKING:
    from stages.ecg_map.stage import run

__all__ = ["MapPaths", "MapSection", "MapSettings", "MapSummary", "run"]


def __getattr__(name: str) -> Any:
    """Import the stage's body when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'stages.ecg_map' has no attribute '{name}'")
    return getattr(import_module("stages.ecg_map.stage"), name)
