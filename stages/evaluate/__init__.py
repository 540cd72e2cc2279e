"""Stage `evaluate`: judge a fit on held-out patients, beside reference methods, with intervals."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stages.evaluate.settings import EvaluatePaths, EvaluateSettings, EvaluateSummary

if TYPE_CHECKING:
    from stages.evaluate.stage import DEFAULT_METHODS, run

__all__ = ["DEFAULT_METHODS", "EvaluatePaths", "EvaluateSettings", "EvaluateSummary", "run"]


def __getattr__(name: str) -> Any:
    """Import the stage's body when it is first asked for (torch takes seconds)."""
    if name not in __all__:
        raise AttributeError(f"module 'stages.evaluate' has no attribute '{name}'")
    return getattr(import_module("stages.evaluate.stage"), name)
