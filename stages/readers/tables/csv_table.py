"""Streams CSV tables of any size, packed or not, in bounded memory.

Every column is read as text; what it means is the cohort's business. A row with too many or too few cells is passed
over and counted. A cell that does not fit a block (or a packed file that unpacks to one endless line) is an error, and
so is a cell that is no text in the table's encoding.
"""

from __future__ import annotations

import codecs
import gzip
import itertools
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv

from cache.errors import InputError, MissingFileError
from stages.readers.tables.dialect import Dialect, dialect_of

BLOCK_BYTES = 2 << 20
SNIFFED_BYTES = 1 << 16
MAX_COLUMNS = 10_000
_NOT_TEXT = re.compile(r"invalid UTF8|Expected \d+ columns")
"""What Arrow says of a cell that is none, and of a malformed row that is none: others are passed over."""
_CELL = r'(?:"(?:[^"]++|"")*+"?+)?+[^{0}\r\n]*+({0})?'
"""A cell of the head, with the delimiter behind it."""
_SAVE_AS = "save it as UTF-8 (in Excel: CSV UTF-8)"


@dataclass
class Table:
    """One CSV file and what was odd about it.

    Attributes
    ----------
    malformed
        Rows passed over so far because they have another number of cells than the head.
    lenient
        Bytes that are no UTF-8 text are no error: question marks are given in their place.
    encoding
        That of the table; None: told by its beginning.
    names
        Of the columns of a table without a head.
    dialect
        How the table is written, known once rows were asked for.
    """

    path: Path
    malformed: int = 0
    lenient: bool = False
    encoding: str | None = None
    names: Sequence[str] | None = None
    columns: tuple[str, ...] = field(default=())
    dialect: Dialect = field(default=Dialect(), init=False)
    _copy: Path | None = field(default=None, init=False)

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Give the rows in blocks; text columns, empty = null.

        Raises
        ------
        MissingFileError
            No such file.
        InputError
            Not a CSV file, a column is missing, or a cell is larger than a block or no UTF-8 text.
        """
        if not self.path.is_file():
            raise MissingFileError(f"{self.path} does not exist; name the folder that holds it")
        n_given = 0
        try:
            for batch in self._rows(columns):
                n_given += 1
                yield batch
        except _BytesError as error:
            if not self.lenient:
                raise NotTextError(f"{self.path}: has a cell that is not UTF-8 text; {_SAVE_AS}") from error
            with tempfile.TemporaryDirectory() as folder:
                self._copy = Path(folder) / "table.csv.gz"
                try:
                    _copy_as_text(self._stream(self.path), self._copy)
                    # Blocks of the copy end where those of the file do.
                    yield from itertools.islice(self._rows(columns), n_given, None)
                except OSError as error:
                    raise InputError(f"{self.path}: no copy of it can be made ({_line(error)})") from error
                finally:
                    self._copy = None

    def _rows(self, columns: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
        wanted: list[str] | None = None
        try:
            self._check_width()
            with _quiet(self._skip), self._open(None) as head:
                self.columns = tuple(head.schema.names)
            wanted = list(self.columns if columns is None else columns)
            self._check(wanted)
            self.malformed = 0  # the look at the head has met some of them already
            with _quiet(self._skip), self._open(wanted) as reader:
                yield from reader
        except UnicodeDecodeError as error:
            raise NotTextError(f"{self.path}: its head is not UTF-8 text; {_SAVE_AS}") from error
        except (pa.ArrowInvalid, OSError) as error:
            if _NOT_TEXT.search(str(error)):
                raise _BytesError from error
            what = "not a readable CSV file" if wanted is None else "damaged"
            raise InputError(f"{self.path}: {what} ({_line(error)})") from error

    def _skip(self, _: pacsv.InvalidRow) -> str:
        self.malformed += 1
        return "skip"

    def _check_width(self) -> None:
        """Tell the dialect, and refuse a head of too many columns, before Arrow makes 8 kB of each."""
        with self._stream(self._copy or self.path) as stream:
            beginning = stream.read(BLOCK_BYTES)
        sniffed = dialect_of(beginning[:SNIFFED_BYTES])
        self.dialect = sniffed if self.encoding is None else sniffed._replace(encoding=self.encoding)
        text = beginning.decode(self.dialect.encoding, errors="replace").lstrip("\ufeff")
        head = "".join(text.splitlines(keepends=True)[self.dialect.skipped :]).lstrip("\r\n")
        pattern = re.compile(_CELL.format(re.escape(self.dialect.delimiter)))
        place = 0
        for _ in range(MAX_COLUMNS):
            cell = pattern.match(head, place)
            if cell is None or cell[1] is None:
                return
            place = cell.end()
        raise InputError(f"{self.path}: has more than {MAX_COLUMNS} columns")

    def _check(self, wanted: list[str]) -> None:
        plain = [" ".join(name.split()) for name in self.columns]
        counts = Counter(self.columns)
        for name in wanted:
            if name not in counts:
                raise InputError(f"{self.path}: has no column '{name}'; it has: {', '.join(plain)[:200]}")
            if counts[name] > 1:
                raise InputError(f"{self.path}: has {counts[name]} columns named '{' '.join(name.split())}'")
            if not name.isprintable():
                raise InputError(f"{self.path}: the column name {name[:80]!r} is not printable; rename it")

    def _open(self, wanted: list[str] | None) -> pacsv.CSVStreamingReader:
        encoding = "utf8" if self.dialect.encoding == "utf-8" else self.dialect.encoding
        reading = pacsv.ReadOptions(
            block_size=BLOCK_BYTES,
            use_threads=False,
            encoding=encoding,
            column_names=self.names,
            skip_rows=self.dialect.skipped,
        )
        parsing = pacsv.ParseOptions(
            delimiter=self.dialect.delimiter, newlines_in_values=True, invalid_row_handler=self._skip
        )
        if wanted is None:
            convert = pacsv.ConvertOptions(check_utf8=False)
            return pacsv.open_csv(self._stream(self._copy or self.path), reading, parsing, convert)
        convert = pacsv.ConvertOptions(
            include_columns=wanted,
            column_types=dict.fromkeys(wanted, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=True,
        )
        return pacsv.open_csv(self._stream(self._copy or self.path), reading, parsing, convert)

    def stream(self) -> pa.NativeFile:
        """Return the bytes of the file, unpacked."""
        return self._stream(self.path)

    def _stream(self, path: Path) -> pa.NativeFile:
        return pa.input_stream(str(path), compression="gzip" if path.suffix == ".gz" else None)


class NotTextError(InputError):
    """A table has a cell that is no text in its encoding."""


class _BytesError(Exception):
    """Bytes that are no UTF-8 stand in a cell that is wanted, or in a malformed row."""


def _copy_as_text(source: pa.NativeFile, copy: Path) -> None:
    """Write a packed copy with a question mark in the place of each byte that is no text, all else where it was."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    with source, gzip.open(copy, "wb", compresslevel=1) as file:
        while block := source.read(BLOCK_BYTES):
            file.write(decoder.decode(block).encode(errors="replace"))
        file.write(decoder.decode(b"", final=True).encode(errors="replace"))


@contextmanager
def _quiet(handler: Callable[..., str]) -> Iterator[None]:
    """Let Python print nothing where Arrow cannot call `handler`: it gives us the failure as an error, too."""
    usual = sys.unraisablehook

    def hook(event: sys.UnraisableHookArgs) -> None:
        if event.object != handler:
            usual(event)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = usual


def _line(error: Exception) -> str:
    if "straddling" in str(error):
        return "a line of more than 2 MB"
    return " ".join(str(error).split())[:160]


def find_table(folders: Sequence[Path], name: str) -> Path | None:
    """Return the first of `folders`/`name`, packed (.gz) or not; None where there is none."""
    for folder in folders:
        for candidate in (folder / name, folder / f"{name}.gz"):
            if candidate.is_file():
                return candidate
    return None
