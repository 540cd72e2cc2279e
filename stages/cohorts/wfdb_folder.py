"""Any folder of WFDB records, with labels from a table of one's own.

A label column's kind is what `kinds` says, or else follows from its cells: two numbers or two words binary, more
numbers regression, more words multiclass, words joined by ";" multilabel.
"""

from __future__ import annotations

from stages.cohorts._registry import register
from stages.cohorts.contract import Cohort, Entries
from stages.cohorts.labels.join import labelled_entries
from stages.cohorts.labels.options import LabelOptions
from stages.readers.record_search import find_records, no_record


@register("wfdb")
class WfdbFolder(Cohort):
    """A folder of WFDB records, searched with everything below it; `labels` names a CSV keyed by record or path."""

    title = "WFDB records (.hea beside .dat or .mat)"
    options_type = LabelOptions
    options: LabelOptions
    holds = ()

    def entries(self) -> Entries:
        """List the headers in order of their paths and join the labels."""
        notes: list[str] = []
        paths = find_records(self.data, notes)
        if not paths:
            raise no_record(self.data)
        return labelled_entries(paths, self.folder, self.options, notes)
