"""Numbers in cells of text: as programs write them, with a decimal comma, or none at all."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

_COMMA = re.compile(r"[+-]?\d+,\d+")
_WITHOUT = re.compile(r"[+-]?\d+")
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")


def numbers(column: pd.Series) -> np.ndarray:
    """Turn text into float64 [n]; what is no finite number is NaN."""
    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    return np.where(np.isfinite(values), values, np.nan)


def has_decimal_commas(column: pd.Series) -> bool:
    """Whether nearly all known cells are numbers and those with a comma cannot be read without one: `61,2`.

    `1,234` is such a number in one country and one thousand in another: it alone decides nothing.
    """
    known = [cell for cell in column if isinstance(cell, str)]
    with_comma = [cell for cell in known if _COMMA.fullmatch(cell)]
    n_numbers = len(with_comma) + sum(_WITHOUT.fullmatch(cell) is not None for cell in known)
    return 10 * n_numbers >= 9 * len(known) and any(not _THOUSANDS.fullmatch(cell) for cell in with_comma)


def are_ambiguous(column: pd.Series) -> bool:
    """Whether nearly all known cells are numbers, some with a comma before three digits and none with another one."""
    known = [cell for cell in column if isinstance(cell, str)]
    with_comma = [cell for cell in known if _COMMA.fullmatch(cell)]
    n_numbers = len(with_comma) + sum(_WITHOUT.fullmatch(cell) is not None for cell in known)
    return bool(with_comma) and 10 * n_numbers >= 9 * len(known) and all(map(_THOUSANDS.fullmatch, with_comma))


def with_points(column: pd.Series) -> pd.Series:
    """Return a column with a decimal point in numbers that have a comma; other cells stay."""
    return column.map(lambda cell: cell.replace(",", ".") if isinstance(cell, str) and _COMMA.fullmatch(cell) else cell)
