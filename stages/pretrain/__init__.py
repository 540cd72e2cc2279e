"""Stage `pretrain`: make an expert's weights from the training patients' signals alone, as a named version."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stages.pretrain.settings import PretrainPaths, PretrainSettings, PretrainSummary

if TYPE_CHECKING:
    from stages.pretrain.stage import run

__all__ = ["PretrainPaths", "PretrainSettings", "PretrainSummary", "run"]


def __getattr__(name: str) -> Any:
    """Import the stage's body when it is first asked for (torch takes seconds)."""
    if name not in __all__:
        raise AttributeError(f"module 'stages.pretrain' has no attribute '{name}'")
    return getattr(import_module("stages.pretrain.stage"), name)
