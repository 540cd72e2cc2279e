"""How high a signal is drawn, and in what unit: millivolts as paper has them, z-scores in standard deviations.

Lives here: the two scales and their words. Not here: drawing. Drawing code works in millivolts at 10 mm/mV, so that
`SignalScale.drawn` is what it is given.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stages.plots.layouts import MM_PER_MV

SQUARE_MM = 5.0
"""One square of the grid."""


@dataclass(frozen=True)
class SignalScale:
    """What one unit of a signal is on paper.

    Examples
    --------
    >>> scale_of("z-score").square
    '200 ms and 2 SD'
    """

    unit: str
    mm_per_unit: float
    note: str = ""

    @property
    def gain(self) -> str:
        """The scale in words, such as 10 mm/mV."""
        return f"{self.mm_per_unit:g} mm/{self.unit}"

    @property
    def square(self) -> str:
        """What one square of the grid is."""
        return f"200 ms and {SQUARE_MM / self.mm_per_unit:g} {self.unit}"

    def drawn(self, signals: np.ndarray) -> np.ndarray:
        """Return signals so that 10 mm/mV draws them on this scale."""
        return signals if self.mm_per_unit == MM_PER_MV else signals * np.float32(self.mm_per_unit / MM_PER_MV)


MILLIVOLTS = SignalScale("mV", MM_PER_MV)
Z_SCORES = SignalScale(
    "SD", 2.5, "signals are z-scores: heights are standard deviations of the source's, no millivolts"
)


def scale_of(amplitude: str) -> SignalScale:
    """Return the scale of a cohort's signals; `amplitude` as records.parquet has it: mV or z-score."""
    return MILLIVOLTS if amplitude == "mV" else Z_SCORES
