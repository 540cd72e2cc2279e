"""Stage `robustness`: what a fit says of test records that were disturbed in known ways."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stages.robustness.settings import RobustnessPaths, RobustnessSection, RobustnessSettings, RobustnessSummary

if TYPE_CHECKING:
    from stages.robustness.stage import run

__all__ = ["RobustnessPaths", "RobustnessSection", "RobustnessSettings", "RobustnessSummary", "run"]


def __getattr__(name: str) -> Any:
    """Import the stage's body when it is first asked for (torch takes seconds)."""
    if name not in __all__:
        raise AttributeError(f"module 'stages.robustness' has no attribute '{name}'")
    return getattr(import_module("stages.robustness.stage"), name)
