"""Whether the waves of a row can be an ECG's in millivolts; if not, what factor would make them so."""

from __future__ import annotations

from typing import Literal

import numpy as np

from cache.signals import LIMIT_UV, MISSING
from stages.readers.quality import PLAUSIBLE_MV, typical_height_mv

Amplitude = Literal["mV", "z-score"]
"""Units that a cohort's signals may be in."""
USUAL_MV = (0.2, 5.0)
"""Heights that a factor should lead to."""
FACTORS = (1e-3, 1e3, 1e-6, 1e6, 0.1, 10.0, 0.01, 100.0)
"""Microvolts or volts taken for millivolts first, then slips of the decimal point."""
CLIPPED_MV = 0.9 * LIMIT_UV / 1000
"""Such waves reach the limit of the store: how high they were is not known."""
SUSPECT_MV = 3.0
"""Waves of ECGs are rarely higher; those of z-scores always are."""
SCORE_TOLERANCE = 0.03
PREFIX = "amplitude: "


def amplitude_note(signals_uv: np.ndarray, rate_hz: float) -> str | None:
    """Say what is odd about the height of the waves; None where nothing is.

    Parameters
    ----------
    signals_uv
        int16 microvolts [12, time]; missing = -32768.
    """
    lows, highs = signals_uv.min(axis=1).tolist(), signals_uv.max(axis=1).tolist()
    # No wave is higher than its whole lead is wide: most records need no closer look.
    spans_uv = sorted(high - low for low, high in zip(lows, highs, strict=True) if high > low)
    middle_uv = spans_uv[len(spans_uv) // 2] if spans_uv else 0
    if 1000 * PLAUSIBLE_MV[0] <= middle_uv <= 1000 * SUSPECT_MV:
        return None
    height_mv = typical_height_mv(signals_uv, rate_hz)
    low, high = PLAUSIBLE_MV
    if not height_mv < SUSPECT_MV and _are_scores(signals_uv):
        return f"{PREFIX}all leads have mean 0 and standard deviation 1, as z-scores have; give the signal in mV"
    if np.isnan(height_mv) or low <= height_mv <= high:
        return None
    factor = fitting_factor(height_mv)
    fits = "" if factor is None else f"; times {factor:g} it would be one (cohort.options: {{scale: {factor:g}}})"
    return f"{PREFIX}waves of {height_mv:.3g} mV, ECGs have {low:g} to {high:g}{fits}"


def fitting_factor(height_mv: float) -> float | None:
    """Return the likeliest factor that makes waves of this height an ECG's, None where none does.

    >>> fitting_factor(900.0), fitting_factor(0.001), fitting_factor(12.0)
    (0.001, 1000.0, 0.1)
    """
    if height_mv >= CLIPPED_MV:
        return FACTORS[0]
    return next((factor for factor in FACTORS if USUAL_MV[0] <= height_mv * factor <= USUAL_MV[1]), None)


def _are_scores(signals_uv: np.ndarray) -> bool:
    """Whether every lead that is there has mean 0 and standard deviation 1 mV."""
    leads = [lead[lead != MISSING] for lead in signals_uv]
    leads = [lead for lead in leads if len(lead) and lead.min() < lead.max()]
    return len(leads) > 1 and all(
        abs(lead.mean() / 1000) < SCORE_TOLERANCE and abs(lead.std() / 1000 - 1) < SCORE_TOLERANCE for lead in leads
    )
