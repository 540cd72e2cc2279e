"""Stage `embed`: run one frozen expert over every record once, and write its vectors shard by shard."""

from stages.embed.settings import EmbedPaths, EmbedSettings, EmbedSummary
from stages.embed.stage import Embedder, describe, identity_of, load_for, run

__all__ = ["EmbedPaths", "EmbedSettings", "EmbedSummary", "Embedder", "describe", "identity_of", "load_for", "run"]
