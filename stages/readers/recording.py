"""What a reader gives: a recording in mV, or the converter's own counts where these are at hand (much faster)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cache.errors import InputError
from cache.signals import LEADS, MISSING

SECONDS_KEPT = 10.0
READ_MARGIN_S = 1.0
"""Read beyond the ten seconds, so that resampling sees what follows them."""

_STANDARD = {name.upper(): k for k, name in enumerate(LEADS)}


@dataclass(frozen=True)
class Recording:
    """One ECG in mV.

    Attributes
    ----------
    signals_mv
        float64 [lead, time]; missing = NaN. May hold only the beginning of the file.
    leads
        Names as the file has them.
    n_samples
        Per lead in the file.
    clipped
        bool [lead, time]: at the converter's limit; None where that cannot be known.
    """

    signals_mv: np.ndarray
    leads: tuple[str, ...]
    rate_hz: float
    n_samples: int
    clipped: np.ndarray | None = None


class Counts(NamedTuple):
    """One ECG as int16 counts of its converter.

    Attributes
    ----------
    samples
        int16 [time, lead]; -32768 = missing, +-32767 = the converter's limit.
    gains_per_mv, baselines
        Per lead: mV = (count - baseline) / gain.
    """

    samples: np.ndarray
    leads: tuple[str, ...]
    gains_per_mv: tuple[float, ...]
    baselines: tuple[int, ...]
    rate_hz: float
    n_samples: int

    def to_recording(self) -> Recording:
        """Return the same in mV."""
        counts = self.samples.T
        signals_mv = counts.astype(np.float64) - np.array(self.baselines, dtype=np.float64)[:, None]
        signals_mv /= np.array(self.gains_per_mv)[:, None]
        signals_mv[counts == MISSING] = np.nan
        return Recording(signals_mv, self.leads, self.rate_hz, self.n_samples, np.abs(counts) == 32767)


def lead_columns(names: tuple[str, ...]) -> list[tuple[int, int]]:
    """Say where each standard lead lies: pairs (index in `cache.signals.LEADS`, index in `names`), in standard order.

    Names are compared without regard to case and blanks, and may begin with "lead". Other leads (MLII, vx) stay out.

    Raises
    ------
    InputError
        No standard lead at all, or two of one name.
    """
    found: dict[int, int] = {}
    for column, name in enumerate(names):
        plain = name.strip().upper().removeprefix("LEAD").strip(" _-")
        place = _STANDARD.get(plain)
        if place is None:
            continue
        if place in found:
            raise InputError(f"two leads are named {LEADS[place]}; nobody can say which is which")
        found[place] = column
    if not found:
        raise InputError(f"none of its leads ({', '.join(names)[:120] or 'it has none'}) is one of the standard twelve")
    return sorted(found.items())
