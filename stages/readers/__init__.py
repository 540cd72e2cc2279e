"""Readers of files that a cohort is made of: WFDB records, big CSV tables; and what makes any recording a store row.

Not here: what the columns of a particular cohort mean (stages/cohorts).
"""

from stages.readers.paths import inside
from stages.readers.quality import Quality
from stages.readers.recording import Counts, Recording
from stages.readers.standardise import standardise
from stages.readers.wfdb_record import read_wfdb

__all__ = ["Counts", "Quality", "Recording", "inside", "read_wfdb", "standardise"]
