"""What a fit's thresholds and conformal limits make of one answer, ready for JSON.

Lives here: the keys that `predict` adds to a task. Not here: choosing thresholds and limits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from stages.heads.decisions import conformal, operating_points
from stages.heads.decisions.conformal import Conformal
from stages.heads.decisions.operating_points import OperatingPoints, class_names
from stages.heads.decisions.settings import ConformalSection, OperatingPointsSection
from stages.heads.targets.tasks import TaskSpec

if TYPE_CHECKING:
    from stages.heads.decisions.held_out import HeldOut


DECISION_FILES = (conformal.FILE, operating_points.FILE)
PRESENCE = ("absent", "present")
"""What a multilabel class can be."""


@dataclass(frozen=True)
class Decisions:
    """The thresholds and the limits of one fit.

    Examples
    --------
    >>> Decisions.load(Path("a fit of before")).of(TaskSpec("flag", "binary"), np.float64(0.2))
    {}
    """

    points: OperatingPoints = field(default_factory=OperatingPoints)
    conformal: Conformal = field(default_factory=Conformal)

    @classmethod
    def choose(
        cls,
        held_out: HeldOut,
        tasks: Sequence[TaskSpec],
        rules: OperatingPointsSection = OperatingPointsSection(),  # noqa: B008 - frozen
        promise: ConformalSection = ConformalSection(),  # noqa: B008 - frozen
    ) -> Self:
        """Choose thresholds and limits of every task on a fit's held-out answers (`EnsembleHeads.held_out_`)."""
        return cls(OperatingPoints.choose(held_out, tasks, rules), Conformal.choose(held_out, tasks, promise))

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read both files of a fit; a fit of before there were any decides nothing."""
        return cls(OperatingPoints.load(folder), Conformal.load(folder))

    def save(self, folder: Path) -> None:
        """Write both files into a fit's folder; where nothing was chosen, none."""
        self.points.save(folder)
        self.conformal.save(folder)

    def of(self, task: TaskSpec, value: np.ndarray | np.floating) -> dict[str, Any]:
        """Return what is decided of one record.

        Parameters
        ----------
        value
            Its probability (binary), probabilities [classes], or value (regression).

        Returns
        -------
        binary: `threshold`, `above`, `set` (names of classes), `uncertain`. multilabel: `thresholds` and `above`
        ({class: ...}), `sets` ({class: some of "absent", "present"}), `uncertain` (names of classes). multiclass:
        `thresholds` and `above` of each class against the rest, `set`, `uncertain`. regression: `low`, `high`. With
        sets and ends, `coverage`. What the fit does not hold is left out.
        """
        rows = np.asarray(value, dtype=np.float64)[None]
        found = self._thresholds(task, rows) | self._sets(task, rows)
        ends = self.conformal.interval(task.name, rows)
        if ends is not None:
            found |= {"low": float(ends[0, 0]), "high": float(ends[0, 1]), "coverage": self.conformal.coverage}
        return found

    def _thresholds(self, task: TaskSpec, rows: np.ndarray) -> dict[str, Any]:
        limits, above = self.points.thresholds(task.name), self.points.above(task.name, rows)
        if limits is None or above is None:
            return {}
        said = [None if np.isnan(a) else bool(a) for a in above.reshape(-1)]
        numbers = [None if np.isnan(limit) else float(limit) for limit in limits]
        if task.kind == "binary":
            return {"threshold": numbers[0], "above": said[0]}
        names = class_names(task)
        return {"thresholds": dict(zip(names, numbers, strict=True)), "above": dict(zip(names, said, strict=True))}

    def _sets(self, task: TaskSpec, rows: np.ndarray) -> dict[str, Any]:
        members = self.conformal.sets(task.name, rows)
        if members is None:
            return {}
        coverage = {"coverage": self.conformal.coverage}
        if task.kind != "multilabel":
            held = _named(members[0], self.conformal.tasks[task.name].classes)
            return {"set": held, "uncertain": len(held) != 1, **coverage}
        sets = {name: _named(pair, PRESENCE) for name, pair in zip(task.classes, members[0], strict=True)}
        return {"sets": sets, "uncertain": [name for name, held in sets.items() if len(held) != 1], **coverage}


def _named(members: np.ndarray, names: tuple[str, ...]) -> list[str]:
    return [name for name, held in zip(names, members, strict=True) if held]
