"""Where each lead lies on the paper: the layouts that clinicians know.

Lives here: geometry in millimetres, at 25 mm/s and 10 mm/mV. Not here: drawing (`ecg`, `thumbnail`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from cache.errors import UsageError
from cache.signals import LEADS

MM_PER_SECOND, MM_PER_MV = 25.0, 10.0
PAPER_SECONDS = 10.0
"""What one sheet shows."""


class Strip(NamedTuple):
    """A stretch of one lead on the paper.

    Attributes
    ----------
    start_s
        First second, counted from the beginning of the sheet; it also says where the strip lies from left to right.
    row
        Counted from the top.
    rhythm
        The lead is shown a second time, over all ten seconds.
    """

    lead: str
    start_s: float
    seconds: float
    row: int
    rhythm: bool = False


@dataclass(frozen=True)
class SheetLayout:
    """The strips of a sheet, and the height of its rows."""

    name: str
    strips: tuple[Strip, ...]
    row_mm: float

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return 1 + max(strip.row for strip in self.strips)


def _columns(n_columns: int) -> tuple[Strip, ...]:
    """Place the leads column by column; time goes on from one column to the next."""
    rows, seconds = len(LEADS) // n_columns, PAPER_SECONDS / n_columns
    return tuple(Strip(lead, k // rows * seconds, seconds, k % rows) for k, lead in enumerate(LEADS))


def _with_rhythm(lead: str) -> SheetLayout:
    return SheetLayout("3x4", (*_columns(4), Strip(lead, 0.0, PAPER_SECONDS, 3, rhythm=True)), 30.0)


LAYOUTS = {
    "3x4": _with_rhythm("II"),
    "6x2": SheetLayout("6x2", _columns(2), 25.0),
    "12x1": SheetLayout("12x1", _columns(1), 20.0),
}
"""3x4: four columns of 2.5 s and a rhythm strip; 6x2: two columns of 5 s; 12x1: ten seconds of each lead."""


def layout_named(name: str, rhythm: str = "II") -> SheetLayout:
    """Return a layout; `rhythm` is the lead of the strip below 3x4.

    Raises
    ------
    UsageError
        No such layout, or no such lead.
    """
    if name not in LAYOUTS:
        raise UsageError(f"--layout {name}: there is no such layout; there are {', '.join(LAYOUTS)}")
    if rhythm not in LEADS:
        raise UsageError(f"--rhythm {rhythm}: there is no such lead; there are {', '.join(LEADS)}")
    return _with_rhythm(rhythm) if name == "3x4" else LAYOUTS[name]
