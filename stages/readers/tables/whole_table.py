"""Reads a whole table into memory as text, whatever program wrote it."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cache.errors import InputError, MissingFileError
from stages.readers.tables.csv_table import NotTextError, Table
from stages.readers.tables.numbers import has_decimal_commas, with_points
from stages.readers.tables.spreadsheet import is_spreadsheet, read_sheet

MAX_CELLS, MAX_BYTES = 50_000_000, 1 << 30
"""What is held of a table: enough for ten million records. A packed file may unpack to any size."""
WESTERN = "cp1252"
"""What Excel writes as CSV in Western Europe and America; Latin-1 is the same but for control characters."""
Keep = Callable[[pd.DataFrame], "np.ndarray | pd.Series"]


def read_table(
    path: Path,
    columns: Sequence[str] | None = None,
    keep: Keep | None = None,
    *,
    strict: bool = False,
    encoding: str | None = None,
    names: Sequence[str] | None = None,
) -> tuple[pd.DataFrame, list[str]]:
    """Read a table as text columns; `keep` says of each block which rows to keep, so that memory holds only those.

    Commas, semicolons, tabs or bars part the cells; the text is UTF-8 or UTF-16, else Windows-1252; or the first sheet
    of an Excel file. In a table parted by semicolons a decimal comma becomes a point.

    Parameters
    ----------
    strict
        A row with a wrong number of cells is an error.
    encoding
        That of the text; None: told by the file.
    names
        Of the columns of a table without a head.

    Returns
    -------
    The rows, stripped of blanks around their cells, and notes (the dialect, rows passed over).

    Raises
    ------
    MissingFileError
        No such file.
    InputError
        As `Table.batches`, an Excel file that cannot be read, more than can be held, or with `strict` a malformed row.
    """
    if encoding is not None:
        _check_encoding(encoding, path)
    if path.is_file() and is_spreadsheet(path):
        return _from_sheet(path, columns, keep, names)
    _refuse_other_kinds(path)
    try:
        return _from_csv(Table(path, encoding=encoding, names=names), columns, keep, strict=strict)
    except NotTextError:
        if encoding is not None or not _is_western(path):
            raise
    return _from_csv(Table(path, encoding=WESTERN, names=names), columns, keep, strict=strict)


def _refuse_other_kinds(path: Path) -> None:
    """Refuse what is no CSV file by its first bytes, in words that say what it is."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        beginning = file.read(64)
    kinds = {b"PK\x03\x04": "a packed folder or another program's spreadsheet", b"%PDF": "a PDF"}
    kinds |= {b"<": "a web page or XML", b"{": "JSON", b"[": "JSON"}
    found = next(
        (what for mark, what in kinds.items() if beginning.lstrip(b"\xef\xbb\xbf \r\n").startswith(mark)), None
    )
    if found is not None:
        raise InputError(f"{path}: is {found}; save the table as CSV UTF-8, or as .xlsx")


def _check_encoding(encoding: str, path: Path) -> None:
    try:
        codecs.lookup(encoding)
    except LookupError as error:
        raise InputError(
            f"{path}: '{encoding}' (option 'encoding') is no encoding; try utf-8, cp1252 or gb18030"
        ) from error


def _from_sheet(
    path: Path, columns: Sequence[str] | None, keep: Keep | None, names: Sequence[str] | None
) -> tuple[pd.DataFrame, list[str]]:
    frame, notes = read_sheet(path, MAX_CELLS, names)
    if columns is not None:
        absent = next((name for name in columns if name not in frame), None)
        if absent is not None:
            raise InputError(f"{path}: has no column '{absent}'; it has: {', '.join(frame)[:200]}")
        frame = frame[list(columns)]
    if keep is not None:
        frame = frame[np.asarray(keep(frame), dtype=bool)].reset_index(drop=True)
    return frame, notes


def _from_csv(
    table: Table, columns: Sequence[str] | None, keep: Keep | None, *, strict: bool
) -> tuple[pd.DataFrame, list[str]]:
    blocks = list(_blocks(table, columns, keep))
    if strict and table.malformed:
        raise InputError(
            f"{table.path}: {table.malformed} rows have a wrong number of cells; mend them, no row may be missing"
        )
    names = list(columns or table.columns)
    frame = pd.concat(blocks, ignore_index=True) if blocks else pd.DataFrame({name: [] for name in names}, dtype=str)
    for name in frame:
        frame[name] = frame[name].astype(object).where(frame[name].notna(), None)
    if columns is None and len({str(name).strip() for name in frame}) == len(frame.columns):
        frame.columns = [str(name).strip() for name in frame]
    notes = [f"{table.path.name}: {table.dialect.note}"] if table.dialect.note else []
    if table.malformed:
        notes.append(f"{table.path.name}: {table.malformed} rows with a wrong number of cells were passed over")
    if table.dialect.delimiter == ";":
        notes += _decimal_points(frame, table.path)
    return frame, notes


def _blocks(table: Table, columns: Sequence[str] | None, keep: Keep | None) -> Iterator[pd.DataFrame]:
    n_cells, n_bytes = 0, 0
    for batch in table.batches(columns):
        cells = [_stripped(column) for column in batch.columns]
        block = pa.RecordBatch.from_arrays(cells, batch.schema.names).to_pandas()
        chosen = np.ones(len(block), dtype=bool) if keep is None else np.asarray(keep(block), dtype=bool)
        yield block[chosen]
        n_cells += int(chosen.sum()) * len(cells)
        n_bytes += batch.nbytes * int(chosen.sum()) // max(len(chosen), 1)
        if n_cells > MAX_CELLS or n_bytes > MAX_BYTES:
            raise InputError(
                f"{table.path}: more than {MAX_CELLS} cells or {MAX_BYTES >> 20} MB; is it a list of records?"
            )


def _decimal_points(frame: pd.DataFrame, path: Path) -> list[str]:
    changed = [name for name in frame if has_decimal_commas(frame[name])]
    for name in changed:
        frame[name] = with_points(frame[name])
    return [f"{path.name}: decimal commas are read as points in {', '.join(map(str, changed))}"] if changed else []


def _stripped(cells: pa.Array) -> pa.Array:
    """Take blanks off both ends of texts; what is empty then is null."""
    plain = pc.utf8_trim_whitespace(cells)
    return pc.if_else(pc.equal(plain, ""), None, plain)


def _is_western(path: Path) -> bool:
    """Whether a file can be text in Windows-1252: no byte of it is a control character or undefined there."""
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist")
    controls = bytes(sorted(set(range(32)) - set(b"\t\n\r\x0c") | {0x7F, 0x81, 0x8D, 0x8F, 0x90, 0x9D}))
    with Table(path).stream() as stream:
        while block := stream.read(1 << 20):
            if len(block.translate(None, controls)) != len(block):
                return False
    return True
