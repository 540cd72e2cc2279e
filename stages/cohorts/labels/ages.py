"""Ages in years as lists and headers write them."""

from __future__ import annotations

import numpy as np

OLDEST_YEARS = 130


def age_of(text: str | None) -> float:
    """Return an age in years; NaN for what is none (NaN, 300, Unknown).

    >>> age_of("61"), age_of("300")
    (61.0, nan)
    """
    try:
        age = float(text or "nan")
    except ValueError:
        return np.nan
    return age if 0 <= age <= OLDEST_YEARS else np.nan
