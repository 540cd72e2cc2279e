"""Of which kind a column of texts is, and what becomes of cells that one program writes and another does not read.

What is safe is converted, and said; dates, identifiers and free text are not taken for labels, unless the study says of
which kind they are.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from cache.records import CellKind
from stages.cohorts.labels.table import SEPARATOR
from stages.readers.tables.numbers import are_ambiguous, has_decimal_commas, numbers, with_points

N_EXAMPLES = 3
ENOUGH = 10
"""Fewer records say little about a column."""
MOST = 0.9
MAX_NUMERIC_CLASSES = 10
LONG_TEXT_WORDS = 3.0
_DATE = re.compile(
    r"(?:(?:19|20)\d\d[-/.]?[01]?\d[-/.]?[0-3]?\d|[0-3]?\d[-/.][0-3]?\d[-/.](?:19|20)?\d\d)(?:[T ]\d{1,2}:\d\d.*)?"
)
_DICOM_AGE = re.compile(r"(\d{3})([DWMY])")
_YEARS = {"D": 1 / 365.25, "W": 7 / 365.25, "M": 1 / 12, "Y": 1.0}
_UNITS = (
    r"years?|yrs?|yo|y|jahre?|ans?|años?|anos?|лет|岁|ms|msec|sec|bpm|/min|1/min|mmhg|"
    r"mmol/l|mg/dl|g/l|kg|cm|mm|mv|uv|µv|%|°"
)
_WITH_UNIT = re.compile(rf"([+-]?\d+(?:[.,]\d+)?)\s*({_UNITS})\.?", re.IGNORECASE)
_MINUS = re.compile(r"\N{MINUS SIGN}(?=\d)")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+\.\d+|[+-]?\d+(?:\.\d+)?")
_IDENTIFIER = re.compile(
    r"(?:.*[_\W])?(?:id|ids|mrn|uid|uuid|guid|key|index|idx|nr|no|number)|#|unnamed.*|level_0|", re.IGNORECASE
)


@dataclass(frozen=True)
class Column:
    """A column of labels as it is taken.

    Attributes
    ----------
    kind
        None where it is not taken for a label.
    cells
        Texts, None where nothing is known.
    notes
        What was converted.
    reason
        Why it is not taken.
    """

    cells: pd.Series
    kind: CellKind | None = None
    notes: tuple[str, ...] = ()
    reason: str = ""

    def noted(self, cells: pd.Series, note: str) -> Column:
        """Return the column with other cells and one more note."""
        return replace(self, cells=cells, notes=(*self.notes, note))


def as_numbers(cells: pd.Series, decimal: str | None) -> Column:
    """Convert what can only be meant as numbers: decimal commas, units, ages as DICOM writes them, thousands."""
    column = Column(cells)
    known = [cell for cell in cells if cell is not None]
    if any(map(_MINUS.match, known)):
        cells = cells.map(lambda cell: None if cell is None else _MINUS.sub("-", cell))
        column = column.noted(cells, "the sign \N{MINUS SIGN} is read as -")
        known = [cell for cell in cells if cell is not None]
    if decimal == "," or (decimal is None and has_decimal_commas(cells)):
        column = column.noted(with_points(cells), "decimal commas are read as points")
    elif _have_thousands(known, decimal):
        without = cells.map(lambda cell: None if cell is None else cell.replace(",", ""))
        column = column.noted(without, "commas are taken off numbers")
    if known and all(map(_DICOM_AGE.fullmatch, known)):
        return column.noted(cells.map(_years), "ages such as 063Y are read as years")
    parts = [_WITH_UNIT.fullmatch(cell) for cell in known]
    units = Counter(found[2].lower() for found in parts if found is not None)
    if len(units) == 1 and sum(units.values()) >= MOST * len(known):
        unit = next(iter(units))
        return column.noted(column.cells.map(_without_unit), f"the unit '{unit}' is taken off")
    return column


def _have_thousands(known: list[str], decimal: str | None) -> bool:
    """Whether commas part thousands: `1,234.5`, or the study says that the point is the decimal one."""
    if not any("," in cell for cell in known):
        return False
    return decimal == "." or (any("." in cell for cell in known) and all(map(_THOUSANDS.fullmatch, known)))


def _years(cell: str | None) -> str | None:
    found = None if cell is None else _DICOM_AGE.fullmatch(cell)
    return cell if found is None else f"{int(found[1]) * _YEARS[found[2]]:g}"


def _without_unit(cell: str | None) -> str | None:
    found = None if cell is None else _WITH_UNIT.fullmatch(cell)
    return cell if found is None else found[1].replace(",", ".")


def infer(cells: pd.Series, name: str, *, decimal: str | None = None, asked: bool = False) -> Column:
    """Say of which kind a column of texts is; cells with the separator, two values, numbers or words.

    Parameters
    ----------
    asked
        The study names the column as a label: then it is no identifier.
    """
    known = [cell for cell in cells if cell is not None]
    if any(SEPARATOR in cell for cell in known):
        return _findings(cells, known)
    if decimal is None and are_ambiguous(cells):
        shown = next(cell for cell in known if "," in cell)
        return Column(cells, reason=f"'{shown}' may be thousands or a decimal comma; say which by the option 'decimal'")
    column = as_numbers(cells, decimal)
    known = [cell for cell in column.cells if cell is not None]
    if _are_dates(known):
        return replace(column, reason=f"it holds dates ({_shown(known)})")
    if len(set(known)) > 2:
        return _several(column, known, name, asked=asked)
    if len(set(known)) == 1 and len(known) < len(cells):
        said = f"all cells that are not empty say {known[0][:40]!r}; an empty one is null, write 0 where it is absent"
        column = column.noted(column.cells, said)
    return replace(column, kind="binary")


def _several(column: Column, known: list[str], name: str, *, asked: bool) -> Column:
    """Say of which kind a column of more than two different texts is."""
    values = numbers(pd.Series(known, dtype=object))
    if np.isfinite(values).all():
        return _numeric(column, known, values, name, asked=asked)
    if _nearly_numbers(values):
        odd = [cell for cell, value in zip(known, values, strict=True) if not np.isfinite(value)]
        note = f"{len(odd)} cells are no number and become null ({_shown(odd)})"
        kept = column.cells.map(lambda cell: None if cell in set(odd) else cell)
        return replace(column.noted(kept, note), kind="regression")
    return _words(column, known)


def _numeric(column: Column, known: list[str], values: np.ndarray, name: str, *, asked: bool) -> Column:
    different = np.unique(values)
    if len(different) <= 2:
        spelt = {cell: f"{value:g}" for cell, value in zip(known, values, strict=True)}
        note = f"{_shown(known)} are {' and '.join(sorted(set(spelt.values())))}"
        return replace(column.noted(column.cells.map(lambda cell: spelt.get(cell, cell)), note), kind="binary")
    distinct = len(different) == len(values) >= ENOUGH and (different == np.floor(different)).all()
    padded = len({len(cell) for cell in known}) == 1 and any(cell.startswith("0") for cell in known)
    if not asked and distinct and (padded or _IDENTIFIER.fullmatch(name.strip()) or np.abs(different).max() > 2**53):
        return replace(column, reason=f"it holds another number for every record, as identifiers do ({_shown(known)})")
    if len(different) <= MAX_NUMERIC_CLASSES and 2 * len(different) <= len(values) and (different % 1 == 0).all():
        settles = f"{{kinds: {{{name}: multiclass}}}} makes them classes"
        said = f"{len(different)} different whole numbers are a regression; {settles}"
        column = column.noted(column.cells, said)
    return replace(column, kind="regression")


def _nearly_numbers(values: np.ndarray) -> bool:
    """Whether a column is one of numbers in which some cells are something else, and not one of classes."""
    finite = values[np.isfinite(values)]
    n_different = len(np.unique(finite))
    beyond_classes = n_different > MAX_NUMERIC_CLASSES or (n_different > 3 and 2 * n_different > len(values))
    return 2 * len(finite) > len(values) and beyond_classes


def _are_dates(known: list[str]) -> bool:
    plausible = [_DATE.fullmatch(cell) is not None and len(re.sub(r"\D", "", cell)) >= 6 for cell in known]
    return len(known) > 2 and sum(plausible) >= MOST * len(known)


def _words(column: Column, known: list[str]) -> Column:
    counts = Counter(known)
    if len(known) >= ENOUGH and len(counts) > MOST * len(known):
        reason = f"it holds another text for nearly every record, {len(counts)} of {len(known)} ({_shown(known)})"
        return replace(column, reason=reason)
    alike: dict[str, set[str]] = {}
    for cell in counts:
        alike.setdefault(" ".join(cell.casefold().split()), set()).add(cell)
    for same in (spellings for spellings in alike.values() if len(spellings) > 1):
        note = f"{', '.join(sorted(same))[:80]} differ in case or blanks only, and are classes of their own"
        column = column.noted(column.cells, note)
    return replace(column, kind="multiclass")


def _findings(cells: pd.Series, known: list[str]) -> Column:
    parts = Counter(part.strip() for cell in known for part in cell.split(SEPARATOR) if part.strip())
    single = [part for part, n in parts.items() if n == 1]
    words = np.mean([len(part.split()) for part in parts]) if parts else 0.0
    free = len(single) > 0.5 * len(parts) and words >= LONG_TEXT_WORDS
    unlike = len(single) > MOST * len(parts)
    if len(known) >= ENOUGH and (free or unlike):
        return Column(cells, reason=f"it reads as free text, {len(single)} of its {len(parts)} findings occur once")
    return Column(cells, kind="multilabel")


def _shown(cells: list[str]) -> str:
    return ", ".join(repr(cell[:40]) for cell in list(dict.fromkeys(cells))[:N_EXAMPLES])
