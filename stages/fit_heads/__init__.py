"""Stage `fit-heads`: heads of every expert and a gate per task, trained on cached embeddings alone."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stages.fit_heads.settings import FitHeadsPaths, FitHeadsSettings, FitHeadsSummary

if TYPE_CHECKING:
    from stages.fit_heads.stage import make_heads, run

__all__ = ["FitHeadsPaths", "FitHeadsSettings", "FitHeadsSummary", "make_heads", "run"]


def __getattr__(name: str) -> Any:
    """Import the stage's body when it is first asked for (torch takes seconds)."""
    if name not in __all__:
        raise AttributeError(f"module 'stages.fit_heads' has no attribute '{name}'")
    return getattr(import_module("stages.fit_heads.stage"), name)
