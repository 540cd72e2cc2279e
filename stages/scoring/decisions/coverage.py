"""How often conformal sets and intervals hold the truth of test patients, and how much they leave open.

Lives here: coverage by patient, for all, each true class and subgroup. Not here: the limits (`stages.heads`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cache.record_columns import Texts
from stages.scoring.comparison import Draws
from stages.scoring.decisions.patients import patient_mean
from stages.scoring.subgroups import Members

Json = dict[str, Any]


@dataclass(frozen=True)
class Covered:
    """What sets or intervals say of records with a label.

    Attributes
    ----------
    rows
        int [n]: which of the judged records these are.
    covered
        bool [n].
    size
        [n]: classes in the set, or the interval's width.
    truth
        [n] true class, a number; None of a regression.
    """

    rows: np.ndarray
    patients: Texts
    covered: np.ndarray
    size: np.ndarray
    truth: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> Covered:
        """Return the rows of a mask."""
        truth = None if self.truth is None else self.truth[rows]
        return Covered(self.rows[rows], self.patients.take(rows), self.covered[rows], self.size[rows], truth)


def of_sets(members: np.ndarray, truth: np.ndarray, patients: Texts) -> Covered:
    """Look at sets.

    Parameters
    ----------
    members
        bool [n, classes].
    truth
        [n] numbers of the true classes; NaN or -1 has no label and is left out.
    """
    known = np.isfinite(truth) & (truth >= 0)
    label = truth[known].astype(np.int64)
    held = members[known]
    covered, size = held[np.arange(len(label)), label], held.sum(axis=1)
    return Covered(np.flatnonzero(known), patients.take(known), covered, size, label)


def of_intervals(ends: np.ndarray, truth: np.ndarray, patients: Texts) -> Covered:
    """Look at intervals [n, 2]; a truth of NaN is left out."""
    known = np.isfinite(truth)
    low, high = ends[known].T
    covered = (truth[known] >= low) & (truth[known] <= high)
    return Covered(np.flatnonzero(known), patients.take(known), covered, high - low)


def judge_coverage(found: Covered, classes: tuple[str, ...], groups: Members, draws: Draws) -> Json:
    """Return the coverage of all records, of each true class and of each subgroup.

    Parameters
    ----------
    classes
        Names of the true classes; empty for a regression.
    groups
        Grouping -> group -> mask of its records among all that are judged, as `stages.scoring.subgroups` gives them.
    """
    of_class: Json = {}
    for k, name in enumerate(classes):
        if found.truth is not None:
            of_class[name] = _measure(found.take(found.truth == k), draws)
    members = {grouping: {name: rows[found.rows] for name, rows in parts.items()} for grouping, parts in groups.items()}
    return {
        "all": _measure(found, draws),
        "true_class": of_class,
        "subgroups": {
            grouping: {name: _measure(found.take(rows), draws) for name, rows in parts.items() if rows.any()}
            for grouping, parts in members.items()
        },
    }


def _measure(found: Covered, draws: Draws) -> Json:
    """Return the coverage by patient with its interval, counts, and what is left open, as shares of the records."""
    n = len(found.covered)
    measured: Json = {**patient_mean(found.covered, found.patients, draws), "records": n}
    measured["patients"] = found.patients.n_used
    if not n:
        return measured
    if found.truth is None:
        return measured | {"mean_width": float(found.size.mean())}
    certain = found.size == 1
    right = float(found.covered[certain].mean()) if certain.any() else np.nan
    several, none = float((found.size > 1).mean()), float((found.size == 0).mean())
    return measured | {"several": several, "none": none, "right_where_certain": right}
