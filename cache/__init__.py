"""What lasts on disk: records table, signal store, embedding stores, fingerprints, claims. Knows no torch.

The names below load their module when first used, so that importing `cache.errors` alone stays cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cache.embeddings import EmbeddingStore, open_embeddings
    from cache.records import Target, open_records, records_digest, target_array
    from cache.signals import SignalStore, open_signals

__all__ = [
    "EmbeddingStore",
    "SignalStore",
    "Target",
    "open_embeddings",
    "open_records",
    "open_signals",
    "records_digest",
    "target_array",
]

_HOMES = {
    "EmbeddingStore": "cache.embeddings",
    "open_embeddings": "cache.embeddings",
    "SignalStore": "cache.signals",
    "open_signals": "cache.signals",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'cache' has no attribute '{name}'")
    return getattr(import_module(_HOMES.get(name, "cache.records")), name)
