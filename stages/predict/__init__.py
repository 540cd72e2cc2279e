"""Stage `predict`: what a saved fit says of new ECGs."""

from stages.predict.batches import row_options
from stages.predict.parts import FilePredictor
from stages.predict.settings import Prediction, PredictPaths, PredictSettings, PredictSummary, StudyStores
from stages.predict.stage import answers, features_of, predict, run, stream

__all__ = [
    "FilePredictor",
    "PredictPaths",
    "PredictSettings",
    "PredictSummary",
    "Prediction",
    "StudyStores",
    "answers",
    "features_of",
    "predict",
    "row_options",
    "run",
    "stream",
]
