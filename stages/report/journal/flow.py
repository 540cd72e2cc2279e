"""The flow of participants: how many records came in, could be read, and have a label, per split and source.

Lives here: counts from records.parquet. Not here: the picture (`flow_figure`), files (`files`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cache.records import SPLITS, Target, target_array
from stages.scoring.blocks import has_label

ALL = "all"
NO_REASON = "no reason recorded"


@dataclass(frozen=True)
class FlowGroup:
    """Some of the records: those of one split and source, or of all.

    Attributes
    ----------
    records, patients
        Of all of them.
    bad
        Records that could not be read.
    readable, readable_patients
        The others.
    labelled
        Task -> readable records with a label.
    """

    split: str
    source: str
    records: int
    patients: int
    bad: int
    readable: int
    readable_patients: int
    labelled: dict[str, int]


@dataclass(frozen=True)
class Flow:
    """All records, each split, each source, and each split of each source.

    Attributes
    ----------
    reasons
        Why records could not be read, the most frequent first.
    rotated
        Every fold is tested once: the table's split decides nothing, and groups are sources alone.
    """

    groups: tuple[FlowGroup, ...]
    reasons: tuple[tuple[str, int], ...]
    tasks: tuple[str, ...]
    rotated: bool

    @property
    def whole(self) -> FlowGroup:
        """All records."""
        return self.groups[0]

    @property
    def splits(self) -> tuple[FlowGroup, ...]:
        """The splits of all sources together."""
        return tuple(group for group in self.groups if group.source == ALL and group.split != ALL)


def participant_flow(records: pd.DataFrame, tasks: Iterable[str], *, rotated: bool) -> Flow:
    """Count the flow.

    Parameters
    ----------
    records
        records.parquet as `cache.open_records` reads it.
    tasks
        Those that are judged; one that the table has no column for is left out.
    rotated
        Whether each fold is the test fold of one fit.
    """
    targets: dict[str, Target] = records.attrs.get("targets", {})
    names = tuple(name for name in tasks if name in targets and name in records)
    labelled = {name: has_label(target_array(records, targets[name])) for name in names}
    split, source = (records[column].fillna("unknown").astype(str).to_numpy() for column in ("split", "source"))
    splits = [] if rotated else [name for name in (*SPLITS, "unknown") if (split == name).any()]
    sources = sorted(set(source))
    pairs = [(ALL, ALL), *((name, ALL) for name in splits)]
    if len(sources) > 1:
        pairs += [(part, name) for name in sources for part in (ALL, *splits)]
    bad = (records["status"] == "bad").to_numpy()
    groups = []
    for part, name in pairs:
        rows = np.ones(len(records), dtype=bool) if part == ALL else split == part
        groups.append(_group(part, name, rows if name == ALL else rows & (source == name), records, bad, labelled))
    reasons = Counter(records.loc[bad, "reason"].fillna(NO_REASON).astype(str))
    ranked = tuple(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))
    return Flow(tuple(groups), ranked, names, rotated)


def _group(
    split: str,
    source: str,
    rows: np.ndarray,
    records: pd.DataFrame,
    bad: np.ndarray,
    labelled: dict[str, np.ndarray],
) -> FlowGroup:
    patients, readable = records["patient_id"], rows & ~bad
    return FlowGroup(
        split,
        source,
        int(rows.sum()),
        int(patients[rows].nunique()),
        int((rows & bad).sum()),
        int(readable.sum()),
        int(patients[readable].nunique()),
        {name: int((readable & known).sum()) for name, known in labelled.items()},
    )
