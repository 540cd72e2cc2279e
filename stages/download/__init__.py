"""Stage `download`: published collections, checked against their digests, resumable."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stages.download.settings import COLLECTIONS, Credentials, DownloadPaths, DownloadSettings, DownloadSummary

if TYPE_CHECKING:
    from stages.download.stage import run

__all__ = ["COLLECTIONS", "Credentials", "DownloadPaths", "DownloadSettings", "DownloadSummary", "run"]


def __getattr__(name: str) -> Any:
    """Import the requests when they are first made."""
    if name != "run":
        raise AttributeError(f"module 'stages.download' has no attribute '{name}'")
    return import_module("stages.download.stage").run
