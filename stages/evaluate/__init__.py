"""Stage `evaluate`: judge a fit on held-out patients, beside reference methods, with intervals."""

from stages.evaluate.stage import DEFAULT_METHODS, Evaluation, EvaluationPaths, evaluate

__all__ = ["DEFAULT_METHODS", "Evaluation", "EvaluationPaths", "evaluate"]
