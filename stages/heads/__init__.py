"""Stage two's learning core: heads on cached embeddings, layer mixing, the gate. Takes arrays, gives arrays.

Lives here: the public names, imported on first use. Not here: stores, experts, the command line.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stages.heads.ensemble import EnsembleHeads
    from stages.heads.layers.layer_mix import LayerMix, ProbeHead
    from stages.heads.published.enecg_model import EnECG
    from stages.heads.targets.tasks import TaskSpec

_HOMES = {
    "EnECG": "published.enecg_model",
    "EnsembleHeads": "ensemble",
    "LayerMix": "layers.layer_mix",
    "ProbeHead": "layers.layer_mix",
    "TaskSpec": "targets.tasks",
}
__all__ = ["EnECG", "EnsembleHeads", "LayerMix", "ProbeHead", "TaskSpec"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (torch takes seconds)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'stages.heads' has no attribute '{name}'")
    return getattr(import_module(f"stages.heads.{_HOMES[name]}"), name)
