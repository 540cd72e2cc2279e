"""Stage `explain`: what an answer rests on, found by taking parts of the ECG away. Not here: who answers."""

from stages.explain.settings import ExplainPaths, ExplainSettings, ExplainSummary, Explanation
from stages.explain.stage import as_json, explain, run

__all__ = ["ExplainPaths", "ExplainSettings", "ExplainSummary", "Explanation", "as_json", "explain"]
__all__ += ["run"]
