"""Stage `external`: a fit of another study, judged on this one's labelled patients. Not here: fitting, embedding."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stages.external.settings import ExternalFit, ExternalPaths, ExternalSettings, ExternalSummary

if TYPE_CHECKING:
    from stages.external.stage import run

__all__ = ["ExternalFit", "ExternalPaths", "ExternalSettings", "ExternalSummary", "run"]


def __getattr__(name: str) -> Any:
    """Import the stage's body when it is first asked for (torch takes seconds)."""
    if name not in __all__:
        raise AttributeError(f"module 'stages.external' has no attribute '{name}'")
    return getattr(import_module("stages.external.stage"), name)
