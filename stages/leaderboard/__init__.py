"""Stage `leaderboard`: judge frozen experts as the ECG-FM benchmark does, one board over experts and tasks."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stages.leaderboard.settings import ExpertRun, LeaderboardPaths, LeaderboardSettings, LeaderboardSummary

if TYPE_CHECKING:
    from stages.leaderboard.stage import run

__all__ = ["ExpertRun", "LeaderboardPaths", "LeaderboardSettings", "LeaderboardSummary", "run"]


def __getattr__(name: str) -> Any:
    """Import the stage's body when it is first asked for (torch takes seconds)."""
    if name not in __all__:
        raise AttributeError(f"module 'stages.leaderboard' has no attribute '{name}'")
    return getattr(import_module("stages.leaderboard.stage"), name)
