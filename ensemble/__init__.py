"""The public face for Python: experts, stores and heads under one name, each imported when it is first used.

Lives here: the public names alone. Not here: the command line, which has the same name. See docs/python-api.md.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cache.records import open_records
    from cache.signals import open_signals
    from ensemble.computing import embed
    from ensemble.drawing import plot_ecg
    from ensemble.embeddings import Embeddings, open_embeddings
    from stages.experts import list_experts, load_expert
    from stages.heads import EnsembleHeads, LayerMix

__all__ = ["Embeddings", "EnsembleHeads", "LayerMix", "embed", "list_experts", "load_expert"]
__all__ += ["open_embeddings", "open_records", "open_signals", "plot_ecg"]

_HOMES = {
    "__version__": "stages.versions",
    "Embeddings": "ensemble.embeddings",
    "EnsembleHeads": "stages.heads",
    "LayerMix": "stages.heads",
    "embed": "ensemble.computing",
    "list_experts": "stages.experts",
    "load_expert": "stages.experts",
    "open_embeddings": "ensemble.embeddings",
    "open_records": "cache",
    "open_signals": "cache",
    "plot_ecg": "ensemble.drawing",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ensemble' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
