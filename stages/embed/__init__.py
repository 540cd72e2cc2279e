"""Stage `embed`: run one frozen expert over every record once, and write its vectors shard by shard."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stages.embed.settings import EmbedPaths, EmbedSettings, EmbedSummary

if TYPE_CHECKING:
    from stages.embed.stage import Embedder, describe, identity_of, load_for, run

__all__ = ["EmbedPaths", "EmbedSettings", "EmbedSummary", "Embedder", "describe", "identity_of", "load_for", "run"]


def __getattr__(name: str) -> Any:
    """Import the stage's body when it is first asked for (torch takes seconds)."""
    if name not in __all__:
        raise AttributeError(f"module 'stages.embed' has no attribute '{name}'")
    return getattr(import_module("stages.embed.stage"), name)
