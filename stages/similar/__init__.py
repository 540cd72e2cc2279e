"""Stage `similar`: the nearest records in an expert's space or the gate's. Not here: the spaces (`stages.spaces`)."""

from stages.similar.settings import Neighbour, SimilarPaths, SimilarSettings, SimilarSummary
from stages.similar.stage import as_rows, run

__all__ = ["Neighbour", "SimilarPaths", "SimilarSettings", "SimilarSummary", "as_rows"]
__all__ += ["run"]
