"""Stage `report`: one self-contained report.html. Lives here: presentation, no number that `scoring` does not give."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stages.report.settings import ExpertFacts, ReportPaths, ReportSection, ReportSettings, ReportSummary, TrainingFacts

if TYPE_CHECKING:
    from stages.report.stage import run

__all__ = ["ExpertFacts", "ReportPaths", "ReportSection", "ReportSettings", "ReportSummary", "TrainingFacts", "run"]


def __getattr__(name: str) -> Any:
    """Import the stage's body when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'stages.report' has no attribute '{name}'")
    return getattr(import_module("stages.report.stage"), name)
