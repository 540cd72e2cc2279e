"""Stage `predict`: what a saved fit says of new ECGs."""

from stages.predict.settings import Prediction, PredictPaths, PredictSettings, PredictSummary
from stages.predict.stage import answers, predict, row_options, run

__all__ = [
    "PredictPaths",
    "PredictSettings",
    "PredictSummary",
    "Prediction",
    "answers",
    "predict",
    "row_options",
    "run",
]
