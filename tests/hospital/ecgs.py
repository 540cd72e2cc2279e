"""ECGs that the tests' own writers put into files: what they hold, and who must never be seen in any output."""

from dataclasses import dataclass, field
from datetime import datetime

import numpy as np

from cache.signals import LEADS

EIGHT = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")
FAMILY, GIVEN, COMMENT, BIRTH = "Quentzel", "Xandria", "smokes a zzyzxpipe", datetime(1951, 3, 17)
SECRETS = (FAMILY, GIVEN, "zzyzxpipe", "1951-03-17", "19510317", "17.03.1951", "17-MAR-1951", "03-17-1951")
"""What the files hold and no output may."""


@dataclass(frozen=True)
class Ecg:
    """One ECG as a writer needs it.

    Attributes
    ----------
    counts
        Whole numbers [lead, time], each of `step_uv`.
    median
        Counts [lead, time] of a mean beat, which no reader may take.
    """

    counts: np.ndarray
    step_uv: float
    rate_hz: int = 500
    leads: tuple[str, ...] = LEADS
    patient_id: str = "00123"
    acquired: datetime = datetime(2024, 2, 29, 13, 5, 9)
    test_id: str = "1.2.826.0.1.3680043.8.498.1"
    median: np.ndarray = field(default_factory=lambda: np.zeros((12, 0), dtype=np.int64))
    pr_ms: int = 162
    qrs_ms: int = 94
    qt_ms: int = 404
    p_axis: int = 51
    qrs_axis: int = -12
    t_axis: int = 33
    statements: tuple[str, ...] = ("Sinus bradycardia", "Left anterior fascicular block")

    @property
    def signals_uv(self) -> np.ndarray:
        """What the file says, float64 microvolts [lead, time]."""
        return self.counts * self.step_uv


def ecg_of(
    signals_uv: np.ndarray,
    step_uv: float,
    rate_hz: int = 500,
    leads: tuple[str, ...] = LEADS,
    **facts: object,
) -> Ecg:
    """Return an ECG of microvolts [12, time] in standard order, in counts of `step_uv`."""
    counts = np.rint(signals_uv / step_uv).astype(np.int64)
    median = np.clip(counts[:, 100:400] * 3 + 70, -3000, 3000)
    rows = [LEADS.index(lead) for lead in leads]
    return Ecg(counts[rows], step_uv, rate_hz, leads, median=median[rows], **facts)  # type: ignore[arg-type]


def beats_uv(rate_hz: int = 500, seconds: float = 10.0, seed: int = 0) -> np.ndarray:
    """Return beats as microvolts [12, time] whose limb leads follow Einthoven and Goldberger."""
    time_s, rng = np.arange(round(rate_hz * seconds)) / rate_hz, np.random.default_rng(seed)
    beat = np.exp(-(((time_s % 0.8) - 0.3) ** 2) / (2 * 0.012**2)) + 0.2 * np.exp(
        -(((time_s % 0.8) - 0.55) ** 2) / (2 * 0.05**2)
    )
    chest = beat[None] * np.linspace(-700, 1500, 6)[:, None]
    first, second = 600 * beat, 1100 * beat
    noise = 12 * rng.standard_normal((8, len(time_s)))
    first, second, chest = first + noise[0], second + noise[1], chest + noise[2:]
    limbs = [first, second, second - first, -(first + second) / 2, first - second / 2, second - first / 2]
    return np.stack([*limbs, *chest])
