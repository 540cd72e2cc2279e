"""Stage `predict`: what a saved fit says of new ECGs."""

from stages.predict.records import Recorded, find_records, read_record
from stages.predict.settings import Prediction, PredictPaths, PredictSettings, PredictSummary
from stages.predict.stage import predict, row_options, run

__all__ = [
    "PredictPaths",
    "PredictSettings",
    "PredictSummary",
    "Prediction",
    "Recorded",
    "find_records",
    "predict",
    "read_record",
    "row_options",
    "run",
]
