"""Several findings in one cell: lists as programs print them, and separators that a study names."""

from __future__ import annotations

import re

import pandas as pd

from stages.cohorts.labels.table import SEPARATOR

_LIST = re.compile(r"[\[{](.*)[\]}]", re.DOTALL)
_ITEM = re.compile(r"""\s*(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)"|([^,'"]*?))\s*(?:,|$)""")
_ALSO_SEPARATE = ("|", ",", "+", "/", "&")


def read_lists(cells: pd.Series, separator: str | None) -> tuple[pd.Series, bool, str]:
    """Write findings of one cell with the usual separator between them.

    Parameters
    ----------
    separator
        What the study says parts them; None: lists in brackets are read, where every cell is one.

    Returns
    -------
    The cells, whether they are findings now, and a note; an empty one where there is nothing to say.

    Examples
    --------
    >>> cells, are_findings, note = read_lists(pd.Series(["['AF', 'LBBB']", "[]", None]), None)
    >>> cells.tolist(), are_findings
    (['AF;LBBB', '', None], True)
    """
    known = [cell for cell in cells if cell is not None]
    if separator is not None:
        parted = cells.map(lambda cell: None if cell is None else cell.replace(separator, SEPARATOR))
        return parted, True, ""
    if known and all(map(_LIST.fullmatch, known)) and any(any(_items(cell)) for cell in known):
        read = cells.map(lambda cell: None if cell is None else SEPARATOR.join(_items(cell)))
        return (
            read.astype(object).where(cells.notna(), None),
            True,
            f"lists such as {known[0][:60]} are read as findings",
        )
    return cells, False, _suspicion(known)


def _items(cell: str) -> list[str]:
    found = _LIST.fullmatch(cell)
    inside = "" if found is None else found[1]
    return [text for single, double, bare in _ITEM.findall(inside) if (text := (single or double or bare).strip())]


def _suspicion(known: list[str]) -> str:
    """Say where cells look like several others of their column in one; empty where none does."""
    alone = set(known)
    for cell in sorted(alone):
        for mark in _ALSO_SEPARATE:
            parts = [part.strip() for part in cell.split(mark)]
            if len(parts) > 1 and all(parts) and alone.intersection(parts) and not any(p.isdigit() for p in parts):
                settles = f"{{separators: {{COLUMN: '{mark}'}}}} parts them"
                return f"'{cell[:60]}' may be {len(parts)} findings in one cell; {settles}"
    return ""
