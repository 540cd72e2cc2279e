"""Stage `similar`: the nearest records in one expert's space, exact. Lives here: distances. Not here: indexes."""

from stages.similar.settings import Neighbour, SimilarPaths, SimilarSettings, SimilarSummary
from stages.similar.stage import as_rows, run

__all__ = ["Neighbour", "SimilarPaths", "SimilarSettings", "SimilarSummary", "as_rows"]
__all__ += ["run"]
