"""What lasts on disk: records table, signal store, embedding stores, fingerprints, claims. Knows no torch."""

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
