"""Stage `predict`: what a saved fit says of new ECGs."""

from stages.predict.settings import Prediction, PredictPaths, PredictSettings, PredictSummary
from stages.predict.stage import predict, row_options, run

__all__ = [
    "PredictPaths",
    "PredictSettings",
    "PredictSummary",
    "Prediction",
    "predict",
    "row_options",
    "run",
]
