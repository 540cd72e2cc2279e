"""Stage `posttrain`: adapt a backbone to one task, giving a new named expert version that is embedded like any other.

Preview linear probing first, then full fine-tuning from that head with stochastic depth (arXiv 2509.12991).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stages.posttrain.settings import PosttrainPaths, PosttrainSettings, PosttrainSummary

if TYPE_CHECKING:
    from stages.posttrain.stage import run

__all__ = ["PosttrainPaths", "PosttrainSettings", "PosttrainSummary", "run"]


def __getattr__(name: str) -> Any:
    """Import the stage's body when it is first asked for (torch takes seconds)."""
    if name not in __all__:
        raise AttributeError(f"module 'stages.posttrain' has no attribute '{name}'")
    return getattr(import_module("stages.posttrain.stage"), name)
