"""Survival targets of a table of labels: two columns, a time and whether the event came, become one target."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from cache.errors import InputError, UsageError
from cache.follow_up import follow_up
from cache.records import BASE_COLUMNS, Target
from stages.cohorts.labels.kinds import as_numbers
from stages.cohorts.labels.options import FollowUp, LabelOptions
from stages.cohorts.labels.table import check_column
from stages.readers.tables import numbers

QUARTILES = (0.25, 0.5, 0.75)
"""Of the times at which the event came: the horizons where a study names none."""
FIGURES = 3
YES_NO = {
    **dict.fromkeys(("1", "1.0", "true", "yes", "y", "dead", "died", "event"), 1.0),
    **dict.fromkeys(("0", "0.0", "false", "no", "n", "alive", "censored"), 0.0),
}


def add_follow_up(
    frame: pd.DataFrame,
    table: pd.DataFrame,
    cells_of: Callable[[str], pd.Series],
    path: Path,
    options: LabelOptions,
    notes: list[str],
) -> list[Target]:
    """Add the targets that the option `survival` names.

    Parameters
    ----------
    cells_of
        Column -> its cells, one a record.

    Raises
    ------
    InputError, UsageError
        A column that is not there, a time that is not above 0, an event that says neither yes nor no.
    """
    found = []
    for name, columns in options.survival.items():
        if name in BASE_COLUMNS or name in frame:
            raise UsageError(f"option 'survival': a target cannot be named '{name}'; records.parquet has such a column")
        for column, part in ((columns.time, "time"), (columns.event, "event")):
            check_column(table, path, column, f"survival.{name}.{part}")
        times = numbers(as_numbers(cells_of(columns.time), options.decimal).cells)
        events = _events(cells_of(columns.event), columns.event, path)
        frame[name] = _signed(times, events, columns, name, path, notes)
        horizons = columns.horizons or _quartiles(frame[name].to_numpy())
        found.append(Target(name, "survival", columns.unit, description=_words(columns), horizons=horizons))
    return found


def _events(cells: pd.Series, column: str, path: Path) -> np.ndarray:
    known = cells.dropna()
    wrong = [cell for cell in known if cell.strip().lower() not in YES_NO]
    if wrong:
        raise InputError(
            f"{path}: column '{column}' says {wrong[0][:40]!r}; an event must be 1 (it came) or 0 (it had not come)"
        )
    return np.array([np.nan if cell is None else YES_NO[cell.strip().lower()] for cell in cells])


def _signed(
    times: np.ndarray, events: np.ndarray, columns: FollowUp, name: str, path: Path, notes: list[str]
) -> np.ndarray:
    """Join both; a time that is not above 0 becomes null, with a note: nobody was followed."""
    unfollowed = times <= 0
    if unfollowed.any():
        notes.append(f"{name}: {int(unfollowed.sum())} times are not above 0 and become null")
    signed = follow_up(np.where(unfollowed | ~np.isfinite(times), np.nan, times), events)
    if not (signed > 0).any():
        raise InputError(f"{path}: columns '{columns.time}' and '{columns.event}' hold no event of '{name}'")
    return signed


def _quartiles(signed: np.ndarray) -> tuple[float, ...]:
    middle = np.quantile(signed[signed > 0], QUARTILES)
    return tuple(sorted({float(f"{value:.{FIGURES}g}") for value in middle}))


def _words(columns: FollowUp) -> str:
    return f"time to '{columns.event}' in column '{columns.time}'; minus where censored"
