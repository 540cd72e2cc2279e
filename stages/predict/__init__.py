"""Stage `predict`: what a saved fit says of new ECGs."""

from stages.predict.stage import Prediction, Recorded, predict, read_record

__all__ = ["Prediction", "Recorded", "predict", "read_record"]
