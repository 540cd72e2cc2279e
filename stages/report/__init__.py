"""Stage `report`: one self-contained report.html. Lives here: presentation, no number that `scoring` does not give."""

from stages.report.stage import write_report

__all__ = ["write_report"]
