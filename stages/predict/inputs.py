"""Which ECGs a person names: files, folders, globs and manifests as one list, kept on disk where it may be long.

Not here: reading the ECGs (batches.py), studies (batches.py), which files of a folder are ECGs (stages/readers/files).
"""

from __future__ import annotations

import csv
import glob
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

from cache.errors import InputError, MissingFileError
from cache.files import replacing
from cache.fingerprint import text_digest
from stages.readers.files import find_ecgs, without_parts

MANIFESTS = (".csv", ".tsv", ".parquet")
DELIMITERS = ",;\t"
ROWS_AT_ONCE = 65_536
GLOB = "*?["
_SCHEMA = pa.schema({"record_id": pa.string(), "patient_id": pa.string(), "path": pa.string()})


class InputRow(NamedTuple):
    """One ECG that is named: its id in the answers, its patient where a manifest says one, its file."""

    record_id: str
    patient_id: str | None
    path: str


def listed(names: Sequence[str | Path], *, follow_links: bool, notes: list[str]) -> Iterator[InputRow]:
    """Give the ECGs that names stand for, in their order; a manifest is read a part at a time.

    Raises
    ------
    UsageError, MissingFileError
        An empty name, a folder without an ECG, a glob that matches nothing, or none of the files is there.
    InputError
        A manifest without a column `path`, or one that cannot be read.
    """
    for manifest, group in itertools.groupby(_expanded(names), _is_manifest):
        if manifest:
            for path in group:
                yield from _manifest_rows(Path(path))
        else:
            for found in find_ecgs(list(group), follow_links=follow_links, notes=notes):
                yield InputRow(str(found), None, str(found))


def check_named(names: Sequence[str | Path]) -> None:
    """Refuse an empty name, and names of files none of which is there, before anything is loaded.

    Raises
    ------
    UsageError, MissingFileError
        One line that names the first.
    """
    if not any(str(name) and (Path(name).is_dir() or _is_glob(name)) for name in names):
        find_ecgs(names)


def _is_glob(name: str | Path) -> bool:
    return any(letter in str(name) for letter in GLOB) and not Path(name).expanduser().exists()


def _expanded(names: Sequence[str | Path]) -> Iterator[str | Path]:
    for name in names:
        path = Path(name).expanduser()
        if not _is_glob(name):
            yield path if str(name) else name
            continue
        matches = sorted(glob.glob(str(path), recursive=True))
        if not matches:
            raise MissingFileError(f"{name}: no file or folder matches")
        yield from without_parts(matches)


def _is_manifest(name: str | Path) -> bool:
    return Path(name).suffix.lower() in MANIFESTS and Path(name).is_file()


# ---- manifests -------------------------------------------------------------------------------------------------------


def _manifest_rows(manifest: Path) -> Iterator[InputRow]:
    try:
        for batch in _batches(manifest):
            columns = {name: column.cast(pa.string()).to_pylist() for name, column in batch.items()}
            paths = columns["path"]
            ids, patients = columns.get("record_id", paths), columns.get("patient_id", [None] * len(paths))
            for record_id, patient_id, path in zip(ids, patients, paths, strict=True):
                located = str(manifest.parent / Path(path).expanduser()) if path else ""
                yield InputRow(record_id or path or "", patient_id, located)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{manifest}: cannot be read as a table ({str(error).splitlines()[0]})") from error


def _batches(manifest: Path) -> Iterator[dict[str, pa.Array]]:
    if manifest.suffix.lower() == ".parquet":
        with pq.ParquetFile(manifest) as file:
            kept = _known_columns(manifest, file.schema_arrow.names)
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=kept):
                yield {name: batch.column(name) for name in kept}
        return
    names, delimiter = _header(manifest)
    kept = _known_columns(manifest, names)
    convert = pc.ConvertOptions(
        include_columns=kept, column_types=dict.fromkeys(kept, pa.string()), null_values=[""], strings_can_be_null=True
    )
    # In this thread: reading ahead in others would hold as much of a long manifest as the processor is faster than we.
    reading = pc.ReadOptions(block_size=1 << 20, use_threads=False)
    with pc.open_csv(
        manifest, reading, pc.ParseOptions(delimiter=delimiter, newlines_in_values=True), convert
    ) as reader:
        for batch in reader:
            yield {name: batch.column(name) for name in kept}


def _header(manifest: Path) -> tuple[list[str], str]:
    with manifest.open(encoding="utf-8-sig", newline="") as file:
        line = file.readline(1 << 20)
    delimiter = max(DELIMITERS, key=line.count)
    return next(csv.reader([line], delimiter=delimiter), []), delimiter


def _known_columns(manifest: Path, names: Iterable[str]) -> list[str]:
    found = [name for name in _SCHEMA.names if name in set(names)]
    if "path" not in found:
        raise InputError(f"{manifest}: has no column 'path', which a list of ECGs to predict needs")
    return found


# ---- the list on disk ------------------------------------------------------------------------------------------------


class RowList:
    """A list in memory."""

    def __init__(self, rows: Sequence[InputRow]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, rows: slice) -> Sequence[InputRow]:
        """Return contiguous rows."""
        return self._rows[rows]


class RowFile:
    """A list in a Parquet file, one row group of which is in memory."""

    def __init__(self, path: Path) -> None:
        self._file = pq.ParquetFile(path)
        sizes = [self._file.metadata.row_group(k).num_rows for k in range(self._file.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self._held: tuple[int, pa.Table] | None = None

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, rows: slice) -> Sequence[InputRow]:
        """Return contiguous rows."""
        start, stop, _ = rows.indices(len(self))
        found: list[InputRow] = []
        while start < stop:
            group = int(np.searchsorted(self._starts, start, side="right")) - 1
            if self._held is None or self._held[0] != group:
                self._held = group, self._file.read_row_group(group)
            first, end = int(self._starts[group]), min(stop, int(self._starts[group + 1]))
            part = self._held[1].slice(start - first, end - start).to_pydict()
            found += map(InputRow, *(part[name] for name in _SCHEMA.names))
            start = end
        return found

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def write_rows(rows: Iterable[InputRow], path: Path) -> str:
    """Write a list, paths made absolute, and return its digest; memory is bounded by a row group."""
    read = iter(rows)

    def absolute(row: InputRow) -> InputRow:
        return row._replace(path=str(Path(row.path).absolute()) if row.path else "")

    def written() -> Iterator[str]:
        with replacing(path) as temporary, pq.ParquetWriter(temporary, _SCHEMA, compression="zstd") as sink:
            while group := list(map(absolute, itertools.islice(read, ROWS_AT_ONCE))):
                columns = [pa.array(column, pa.string()) for column in zip(*group, strict=True)]
                sink.write_table(pa.table(columns, schema=_SCHEMA))
                yield from (f"{row.record_id}\0{row.patient_id}\0{row.path}" for row in group)

    return text_digest(written())
