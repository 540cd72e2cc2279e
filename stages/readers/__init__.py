"""Readers of files that a cohort is made of: WFDB records, big CSV tables; and what makes any recording a store row.

Not here: what the columns of a particular cohort mean (stages/cohorts).
"""

from stages.readers.paths import DataFolder, inside
from stages.readers.quality import Quality
from stages.readers.recording import Counts, Recording
from stages.readers.standard_leads import keep_standard
from stages.readers.standardise import standardise
from stages.readers.wfdb.record import read_wfdb

__all__ = ["Counts", "DataFolder", "Quality", "Recording", "inside", "keep_standard", "read_wfdb", "standardise"]
