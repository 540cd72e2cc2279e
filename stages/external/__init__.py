"""Stage `external`: a fit of another study, judged on this one's labelled patients. Not here: fitting, embedding."""

from stages.external.settings import ExternalFit, ExternalPaths, ExternalSettings, ExternalSummary
from stages.external.stage import run

__all__ = ["ExternalFit", "ExternalPaths", "ExternalSettings", "ExternalSummary", "run"]
