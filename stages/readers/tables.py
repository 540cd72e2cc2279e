"""Streams CSV tables of any size, packed or not, in bounded memory.

Every column is read as text; what it means is the cohort's business. A row with too many or too few cells is passed
over and counted. A cell that does not fit a block (or a packed file that unpacks to one endless line) is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from cache.errors import InputError, MissingFileError

BLOCK_BYTES = 2 << 20
MAX_CELLS, MAX_BYTES = 50_000_000, 1 << 30
"""What is held of a table: enough for ten million records. A packed file may unpack to any size."""


@dataclass
class Table:
    """One CSV file and what was odd about it.

    Attributes
    ----------
    malformed
        Rows passed over so far because they have another number of cells than the head.
    """

    path: Path
    malformed: int = 0
    columns: tuple[str, ...] = field(default=())

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Give the rows in blocks; text columns, empty = null.

        Raises
        ------
        MissingFileError
            No such file.
        InputError
            Not a CSV file, a column is missing, or a cell is larger than a block.
        """
        if not self.path.is_file():
            raise MissingFileError(f"{self.path} does not exist; name the folder that holds it")
        try:
            with self._open(None) as head:
                self.columns = tuple(head.schema.names)
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{self.path}: not a readable CSV file ({_line(error)})") from error
        wanted = list(self.columns if columns is None else columns)
        self._check(wanted)
        self.malformed = 0  # the look at the head has met some of them already
        try:
            with self._open(wanted) as reader:
                yield from reader
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{self.path}: damaged ({_line(error)})") from error

    def _check(self, wanted: list[str]) -> None:
        plain = [" ".join(name.split()) for name in self.columns]
        for name in wanted:
            if name not in self.columns:
                raise InputError(f"{self.path}: has no column '{name}'; it has: {', '.join(plain)[:200]}")
            if self.columns.count(name) > 1:
                raise InputError(
                    f"{self.path}: has {self.columns.count(name)} columns named '{' '.join(name.split())}'"
                )
            if not name.isprintable():
                raise InputError(f"{self.path}: the column name {name[:80]!r} is not printable; rename it")

    def _open(self, wanted: list[str] | None) -> pacsv.CSVStreamingReader:
        def skip(_: pacsv.InvalidRow) -> str:
            self.malformed += 1
            return "skip"

        reading = pacsv.ReadOptions(block_size=BLOCK_BYTES, use_threads=False)
        if wanted is None:
            convert = pacsv.ConvertOptions(check_utf8=False)
            return pacsv.open_csv(
                self._stream(), reading, pacsv.ParseOptions(newlines_in_values=True, invalid_row_handler=skip), convert
            )
        convert = pacsv.ConvertOptions(
            include_columns=wanted,
            column_types=dict.fromkeys(wanted, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=True,
        )
        parsing = pacsv.ParseOptions(newlines_in_values=True, invalid_row_handler=skip)
        return pacsv.open_csv(self._stream(), reading, parsing, convert)

    def _stream(self) -> pa.NativeFile:
        packed = "gzip" if self.path.suffix == ".gz" else None
        return pa.input_stream(str(self.path), compression=packed)


def _line(error: Exception) -> str:
    if "straddling" in str(error):
        return "a line of more than 2 MB"
    return " ".join(str(error).split())[:160]


def read_table(
    path: Path,
    columns: Sequence[str] | None = None,
    keep: Callable[[pd.DataFrame], np.ndarray | pd.Series] | None = None,
) -> tuple[pd.DataFrame, list[str]]:
    """Read a table as text columns; `keep` says of each block which rows to keep, so that memory holds only those.

    Returns
    -------
    The rows, stripped of blanks around their cells, and notes (rows passed over).
    """
    table, blocks, n_cells, n_bytes = Table(path), [], 0, 0
    for batch in table.batches(columns):
        cells = [_stripped(column) for column in batch.columns]
        block = pa.RecordBatch.from_arrays(cells, batch.schema.names).to_pandas()
        chosen = np.ones(len(block), dtype=bool) if keep is None else np.asarray(keep(block), dtype=bool)
        blocks.append(block[chosen])
        n_cells += int(chosen.sum()) * len(cells)
        n_bytes += batch.nbytes * int(chosen.sum()) // max(len(chosen), 1)
        if n_cells > MAX_CELLS or n_bytes > MAX_BYTES:
            raise InputError(f"{path}: more than {MAX_CELLS} cells or {MAX_BYTES >> 20} MB; is it a list of records?")
    names = list(columns or table.columns)
    frame = pd.concat(blocks, ignore_index=True) if blocks else pd.DataFrame({name: [] for name in names}, dtype=str)
    for name in frame:
        frame[name] = frame[name].astype(object).where(frame[name].notna(), None)
    notes = [f"{path.name}: {table.malformed} rows with a wrong number of cells were passed over"]
    return frame, notes if table.malformed else []


def _stripped(cells: pa.Array) -> pa.Array:
    """Take blanks off both ends of texts; what is empty then is null."""
    plain = pc.utf8_trim_whitespace(cells)
    return pc.if_else(pc.equal(plain, ""), None, plain)


def numbers(column: pd.Series) -> np.ndarray:
    """Turn text into float64 [n]; what is no finite number is NaN."""
    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    return np.where(np.isfinite(values), values, np.nan)


def find_table(folders: Sequence[Path], name: str) -> Path | None:
    """Return the first of `folders`/`name`, packed (.gz) or not; None where there is none."""
    for folder in folders:
        for candidate in (folder / name, folder / f"{name}.gz"):
            if candidate.is_file():
                return candidate
    return None
