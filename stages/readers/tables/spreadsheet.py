"""Excel files: the first sheet as a table of text. Needs openpyxl, which is imported only here and only then."""

from __future__ import annotations

import datetime
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cache.errors import InputError

OLD_EXCEL, ZIP = b"\xd0\xcf\x11\xe0", b"PK\x03\x04"
MAX_UNPACKED_BYTES = 1 << 30
SUFFIXES = (".xlsx", ".xlsm")


def is_spreadsheet(path: Path) -> bool:
    """Whether a file is an Excel file, by its first bytes.

    Raises
    ------
    InputError
        It is of the format before 2007.
    """
    with path.open("rb") as file:
        beginning = file.read(4)
    if beginning == OLD_EXCEL:
        raise InputError(f"{path}: is an Excel file of the format before 2007; save it as .xlsx or CSV UTF-8")
    return beginning == ZIP and path.suffix.lower() in SUFFIXES


def read_sheet(path: Path, max_cells: int, names: Sequence[str] | None = None) -> tuple[pd.DataFrame, list[str]]:
    """Read the first sheet as text columns, and notes; without `names` the first row that is not empty is the head.

    Raises
    ------
    InputError
        openpyxl is not installed, the file is damaged or unpacks to more than 1 GB, or has too many cells.
    """
    try:
        import openpyxl
    except ImportError as error:
        raise InputError(
            f"{path}: reading Excel files needs openpyxl; `pip install 'ecg-ensemble[excel]'`, or save it as CSV UTF-8"
        ) from error
    _check_size(path)
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        rows = _rows(book.worksheets[0], path, max_cells)
        sheets = [sheet.title for sheet in book.worksheets]
        book.close()
    except InputError:
        raise
    # Of a damaged file openpyxl says whatever the parsers below it do.
    except Exception as error:
        raise InputError(
            f"{path}: not a readable Excel file ({' '.join(str(error).split())[:120]}); save it as CSV UTF-8"
        ) from error
    notes = [f"{path.name}: sheet '{sheets[0]}' of {len(sheets)} is read"] if len(sheets) > 1 else []
    return _table(rows if names is None else [list(names), *rows], path), notes


def _check_size(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as packed:
            n_bytes = sum(member.file_size for member in packed.infolist())
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"{path}: not a readable Excel file ({error}); save it as CSV UTF-8") from error
    if n_bytes > MAX_UNPACKED_BYTES:
        raise InputError(f"{path}: unpacks to more than {MAX_UNPACKED_BYTES >> 20} MB; save it as CSV UTF-8")


def _rows(sheet: Any, path: Path, max_cells: int) -> list[list[str | None]]:
    rows, n_cells = [], 0
    for row in sheet.iter_rows(values_only=True):
        n_cells += len(row)
        if n_cells > max_cells:
            raise InputError(f"{path}: more than {max_cells} cells; is it a list of records?")
        cells = [_text(value) for value in row]
        if any(cell is not None for cell in cells):
            rows.append(cells)
    return rows


def _text(value: Any) -> str | None:
    """Write a cell as the CSV of the same sheet would: whole numbers without a point, dates as ISO 8601."""
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value).strip() or None


def _table(rows: list[list[str | None]], path: Path) -> pd.DataFrame:
    if not rows:
        raise InputError(f"{path}: its first sheet is empty")
    head = [name or "" for name in rows[0]]
    width = max(map(len, rows))
    head += [""] * (width - len(head))
    rows = [row + [None] * (width - len(row)) for row in rows]
    repeated = next((name for name in head if name and head.count(name) > 1), None)
    if repeated is not None:
        raise InputError(f"{path}: has {head.count(repeated)} columns named '{repeated}'")
    used = [k for k, name in enumerate(head) if name or any(row[k] is not None for row in rows[1:])]
    columns = {head[k]: pd.Series([row[k] for row in rows[1:]], dtype=object) for k in used}
    return pd.DataFrame(columns)
