"""One file per data source: what its lists and labels mean, how one of its records is read.

Not here: file formats (stages/readers), splits (stages/ingest/folds.py), writing the stores (stages/ingest).
"""

from stages.cohorts._overlaps import shared_collections
from stages.cohorts._registry import check_options, list_cohorts, open_cohort, register
from stages.cohorts.contract import Cohort, Entries, Options, Published

__all__ = [
    "Cohort",
    "Entries",
    "Options",
    "Published",
    "check_options",
    "list_cohorts",
    "open_cohort",
    "register",
    "shared_collections",
]
