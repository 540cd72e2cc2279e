"""Dates in tables, in the orders that people write them; an order that cannot be told is asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal

from cache.errors import InputError

DateOrder = Literal["ymd", "dmy", "mdy"]
_DATE = re.compile(
    r"(?P<a>\d{1,4})[-/.](?P<b>\d{1,2}|[A-Za-z]{3})[-/.](?P<c>\d{1,4})"
    r"(?:[T ]+(?P<h>\d{1,2}):(?P<m>\d{2})(?::(?P<s>\d{2})(?:[.,]\d*)?)?)?(?:Z|[+-]\d{2}:?\d{2})?"
)
_COMPACT = re.compile(r"(?P<a>\d{4})(?P<b>\d{2})(?P<c>\d{2})(?:[T ]?(?P<h>\d{2})(?P<m>\d{2})(?P<s>\d{2})?)?")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


def moments_of(cells: Sequence[str | None], path: Path, name: str, order: DateOrder | None) -> list[datetime | None]:
    """Return what moment each cell means; None where it means none.

    Raises
    ------
    InputError
        Days and months cannot be told apart in any of the cells, and no order is given.
    """
    parts = [_parts(cell) for cell in cells]
    known_order = order or _order(parts, path, name)
    return [None if one is None else _moment(one, known_order) for one in parts]


def _parts(cell: str | None) -> re.Match[str] | None:
    text = (cell or "").strip()
    return _COMPACT.fullmatch(text) or _DATE.fullmatch(text)


def _order(parts: Sequence[re.Match[str] | None], path: Path, name: str) -> DateOrder:
    """Tell the order of day and month by a cell that leaves no choice."""
    ambiguous = [one for one in parts if one is not None and len(one["a"]) < 3 and one["b"].isdigit()]
    first = any(int(one["a"]) > 12 for one in ambiguous)
    second = any(int(one["b"]) > 12 for one in ambiguous)
    if ambiguous and first == second:
        why = "both orders occur" if first else f"'{ambiguous[0].group()[:20]}' may be either"
        raise InputError(
            f"{path}: days and months of column '{name}' cannot be told apart ({why}); set the option 'date_order' to "
            "dmy or mdy"
        )
    return "mdy" if second else "dmy"


def _moment(one: re.Match[str], order: DateOrder) -> datetime | None:
    a, b, c = one["a"], one["b"], one["c"]
    if len(a) == 4:
        year, month, day = a, b, c
    elif order == "mdy" and b.isdigit():
        year, month, day = c, a, b
    else:
        year, month, day = c, b, a
    number = _MONTHS.index(month.lower()) + 1 if month.lower() in _MONTHS else int(month) if month.isdigit() else 0
    full = int(year) if len(year) == 4 else 2000 + int(year) if int(year) < 70 else 1900 + int(year)
    try:
        return datetime(full, number, int(day), int(one["h"] or 0), int(one["m"] or 0), int(one["s"] or 0))
    except ValueError:
        return None
