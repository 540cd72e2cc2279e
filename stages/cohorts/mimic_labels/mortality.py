"""Time from an ECG to death or to the end of what MIMIC-IV knows of the patient.

MIMIC-IV's `dod` comes from hospital and state records, and is given only where it lies within one year of the patient's
last discharge (Johnson et al. 2023). Who has no `dod` was alive a year after the last discharge, and nothing is known
of later times: there the observation ends. A patient without a discharge, and an ECG taken after that end, have none.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from cache.follow_up import follow_up
from cache.records import Target
from stages.readers.tables import read_table

YEAR_DAYS = 365
"""After the last discharge, for which deaths are known."""
SECONDS_A_DAY = 86_400
DESCRIPTION = "from the ECG to death; minus where alive at the end, one year after the last discharge"


def target(horizons_days: tuple[float, ...]) -> Target:
    """Return the target `mortality`."""
    return Target("mortality", "survival", unit="days", description=DESCRIPTION, horizons=horizons_days)


def last_discharges(path: Path, subjects: set[str], notes: list[str]) -> pd.Series:
    """Return each patient's last discharge, datetime64 by subject_id; streams admissions.csv."""
    table, more = read_table(path, ["subject_id", "dischtime"], lambda block: block["subject_id"].isin(subjects))
    notes += more
    left = pd.to_datetime(table["dischtime"], errors="coerce", format="%Y-%m-%d %H:%M:%S")
    return left.groupby(table["subject_id"]).max().dropna()


def mortality(
    time_s: np.ndarray, timed: np.ndarray, died: pd.Series, discharged: pd.Series
) -> tuple[np.ndarray, dict[str, int]]:
    """Return signed days [n] (`cache.follow_up`), and why others are null.

    Parameters
    ----------
    time_s, timed
        Seconds since 1970 of each ECG, and whether they are known.
    died
        Day of death [n], datetime64, NaT where there is none. It counts as the end of that day, so that a death on the
        day of the ECG comes after it.
    discharged
        Last discharge [n], NaT where there is none.
    """
    death_s = _seconds(died + pd.Timedelta(days=1))
    end_s = _seconds(discharged + pd.Timedelta(days=YEAR_DAYS))
    event = np.isfinite(death_s) & (death_s <= end_s)
    days = (np.where(event, death_s, end_s) - time_s) / SECONDS_A_DAY
    unknown = ~timed | np.isnan(end_s)
    outside = ~unknown & ~(days > 0)
    missing = unknown | outside
    reasons = {
        "no discharge or time": int(unknown.sum()),
        "the ECG is later than death": int((outside & event).sum()),
        "the ECG is later than a year after the last discharge": int((outside & ~event).sum()),
    }
    return follow_up(np.where(missing, np.nan, np.round(days, 4)), event.astype(float)), reasons


def _seconds(moments: pd.Series) -> np.ndarray:
    """Return seconds since 1970, NaN where there is no moment."""
    values = moments.to_numpy(dtype="datetime64[s]")
    return np.where(np.isnat(values), np.nan, values.astype(np.int64).astype(np.float64))
