"""Stage `pretrain`: make an expert's weights from the training patients' signals alone, as a named version."""

from stages.pretrain.stage import PretrainPaths, PretrainSettings, PretrainSummary, run

__all__ = ["PretrainPaths", "PretrainSettings", "PretrainSummary", "run"]
