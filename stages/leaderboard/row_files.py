"""Rows of one shape in a file, read by number and never held: what heads read again in every epoch.

A file that is mapped into memory would count as the process's memory, page after page; these rows are read anew, and
the operating system keeps in its cache what there is room for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cache.errors import StoreError
from cache.files import replacing

BLOCK_BYTES = 2**24


@dataclass(frozen=True)
class NumberedRows:
    """A .npy file [row, ...], of which some rows at a time are read.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     rows = write_rows(Path(folder) / "squares.npy", (3, 2), np.float32, [np.ones((1, 2)), np.full((2, 2), 4)])
    ...     rows.read(np.array([2, 0])).tolist()
    [[4.0, 4.0], [1.0, 1.0]]
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int

    @classmethod
    def open(cls, path: Path) -> NumberedRows:
        """Open a file.

        Raises
        ------
        StoreError
            It is no array, or shorter than it says.
        """
        try:
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise StoreError(f"{path}: not an array ({error}); remove the file and run again") from error
        return cls(path, mapped.shape, mapped.dtype, mapped.offset)

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.shape[0]

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Read rows by number: [k, ...]."""
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        if out.size:
            as_bytes = out.reshape(len(rows), -1).view(np.uint8)
            with self.path.open("rb", buffering=0) as file:
                for at, row in enumerate(rows.tolist()):
                    file.seek(self.offset + row * as_bytes.shape[1])
                    file.readinto(memoryview(as_bytes[at]))
        return out

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Read all rows, some MB at a time."""
        size = max(1, BLOCK_BYTES // max(1, int(np.prod(self.shape[1:])) * self.dtype.itemsize))
        for start in range(0, len(self), size):
            rows = slice(start, min(start + size, len(self)))
            yield rows, self.read(np.arange(rows.start, rows.stop))


def write_rows(
    path: Path, shape: tuple[int, ...], dtype: np.typing.DTypeLike, parts: Iterable[np.ndarray]
) -> NumberedRows:
    """Write parts [k, ...] one after the other into a file [row, ...], and open it; all or nothing."""
    kind = np.dtype(dtype)
    with replacing(path) as temporary, temporary.open("wb") as file:
        about = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, about)
        for part in parts:
            file.write(np.ascontiguousarray(part, kind).tobytes())
    return NumberedRows.open(path)
