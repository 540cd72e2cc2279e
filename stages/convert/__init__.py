"""Stage `convert`: ECG files of any format in, WFDB records and a manifest out."""

from stages.convert.settings import ConvertPaths, ConvertSettings, ConvertSummary
from stages.convert.stage import run

__all__ = ["ConvertPaths", "ConvertSettings", "ConvertSummary", "run"]
