"""Stage `predict`: what a saved fit says of new ECGs."""

from stages.predict.records import Recorded, find_records, read_record
from stages.predict.stage import Prediction, predict, row_options

__all__ = ["Prediction", "Recorded", "find_records", "predict", "read_record", "row_options"]
