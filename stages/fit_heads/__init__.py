"""Stage `fit-heads`: heads of every expert and a gate per task, trained on cached embeddings alone."""

from stages.fit_heads.stage import FitSummary, fit_heads, make_heads

__all__ = ["FitSummary", "fit_heads", "make_heads"]
