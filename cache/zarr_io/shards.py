"""Shards of uncompressed chunks, encoded and read without a detour: what embedding stores are made of.

The bytes are Zarr v3's own (`sharding_indexed`, each chunk and the index followed by a crc32c); zarr reads them too.
Lives here because zarr's general path writes a shard at a third of the disk's rate, and keeps no file of a shard that
is all fill value, so that "nothing came of these records" could not be told from "never written".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
import zarr

from cache.errors import StoreError
from cache.storage.locations import Location
from cache.storage.sources import Source, opened

ABSENT = 2**64 - 1
"""In both fields of an index entry: the shard holds nothing of that chunk."""
CRC_BYTES = 4
_INNER = [{"name": "bytes"}, {"name": "crc32c"}]


@dataclass(frozen=True)
class PlainShards:
    """Where the bytes of one array lie. Rows are seen as [row, group, width]: a layer is a group.

    Attributes
    ----------
    n_rows, groups, width
        Shape of the array; 1 where it has fewer axes.
    chunk_rows, shard_rows
        Rows of a chunk (of one group), and of a shard (of all groups).
    """

    folder: Location
    n_rows: int
    groups: int
    width: int
    chunk_rows: int
    shard_rows: int
    dtype: np.dtype
    fill: Any

    @classmethod
    def of(cls, path: Location, array: zarr.Array[Any]) -> PlainShards | None:
        """Return the layout of an array of the store at `path`, or None where only zarr itself can read it."""
        if not _is_plain(array.metadata.to_dict()):
            return None
        shape, chunks, shards = array.shape, array.chunks, array.shards or array.chunks
        if shards[0] % chunks[0] or tuple(shards[1:]) != tuple(shape[1:]) or not 1 <= len(shape) <= 3:
            return None
        if (len(shape) == 3 and chunks[1:] != (1, shape[2])) or (len(shape) == 2 and chunks[1] != shape[1]):
            return None
        groups = shape[1] if len(shape) == 3 else 1
        width = shape[-1] if len(shape) > 1 else 1
        folder = path.joinpath(array.basename, "c")
        return cls(folder, shape[0], groups, width, chunks[0], shards[0], np.dtype(array.dtype), array.fill_value)

    @property
    def _grid_rows(self) -> int:
        return self.shard_rows // self.chunk_rows

    @property
    def _chunk_bytes(self) -> int:
        return self.chunk_rows * self.width * self.dtype.itemsize

    @property
    def _index_bytes(self) -> int:
        return 16 * self._grid_rows * self.groups + CRC_BYTES

    def pieces(self, grouped: np.ndarray) -> Iterator[np.ndarray | bytes]:
        """Give a shard's bytes piece by piece, from its rows as contiguous [group, row, width] in the store's dtype."""
        n_rows = grouped.shape[1]
        index = np.full((self._grid_rows, self.groups, 2), ABSENT, dtype="<u8")
        offset = 0
        for group in range(self.groups):
            for number, start in enumerate(range(0, n_rows, self.chunk_rows)):
                chunk = self._padded(grouped[group, start : start + self.chunk_rows])
                raw = chunk.reshape(-1).view(np.uint8)
                yield raw
                yield _crc(raw)
                index[number, group] = offset, len(raw) + CRC_BYTES
                offset += len(raw) + CRC_BYTES
        yield index.tobytes()
        yield _crc(index.tobytes())

    def _padded(self, rows: np.ndarray) -> np.ndarray:
        if len(rows) == self.chunk_rows:
            return rows
        padded = np.full((self.chunk_rows, self.width), self.fill, dtype=self.dtype)
        padded[: len(rows)] = rows
        return padded

    def read(self, file: Location, rows: slice, group: int | None, out: np.ndarray) -> None:
        """Read rows of one shard into `out` [rows, groups or 1, width].

        Raises
        ------
        ValueError
            The file is too short, or a checksum does not match.
        OSError
            The file cannot be read.
        """
        with opened(file) as source:
            wanted = self._wanted(self._read_index(source), rows, range(self.groups) if group is None else (group,))
            source.expect([(offset, size) for *_, offset, size in wanted if offset != ABSENT])
            for at, number, offset, size in wanted:
                first = number * self.chunk_rows
                low, high = max(rows.start, first), min(rows.stop, first + self.chunk_rows)
                target = out[low - rows.start : high - rows.start, at]
                self._read_chunk(source, offset, size, slice(low - first, high - first), target)

    def _wanted(self, index: np.ndarray, rows: slice, groups: Sequence[int]) -> list[tuple[int, int, int, int]]:
        """Return of each chunk that holds some of the rows: position of its group, number, offset and size."""
        numbers = range(rows.start // self.chunk_rows, -(-rows.stop // self.chunk_rows))
        found = [
            (at, number, int(index[number, group, 0]), int(index[number, group, 1]))
            for at, group in enumerate(groups)
            for number in numbers
        ]
        if any(offset != ABSENT and size != self._chunk_bytes + CRC_BYTES for *_, offset, size in found):
            raise ValueError("a chunk has another size than the array's")
        return found

    def _read_index(self, source: Source) -> np.ndarray:
        raw = source.end(self._index_bytes)
        if len(raw) != self._index_bytes:
            raise ValueError("the file is cut off")
        if _crc(raw[:-CRC_BYTES]) != raw[-CRC_BYTES:]:
            raise ValueError("checksum of the index does not match")
        return np.frombuffer(raw[:-CRC_BYTES], dtype="<u8").reshape(self._grid_rows, self.groups, 2)

    def _read_chunk(self, source: Source, offset: int, size: int, rows: slice, target: np.ndarray) -> None:
        if offset == ABSENT:
            target[...] = self.fill
            return
        direct = target.nbytes == self._chunk_bytes and target.flags.c_contiguous and target.dtype == self.dtype
        chunk = target if direct else np.empty((self.chunk_rows, self.width), dtype=self.dtype)
        raw, stored = chunk.reshape(-1).view(np.uint8), bytearray(CRC_BYTES)
        if source.read_into([raw.data, stored], offset) != size:
            raise ValueError("the file is cut off")
        if _crc(raw) != bytes(stored):
            raise ValueError("checksum does not match")
        if not direct:
            target[...] = chunk[rows]


def _crc(raw: np.ndarray | bytes) -> bytes:
    return int(google_crc32c.value(raw)).to_bytes(CRC_BYTES, "little")


def _is_plain(metadata: Any) -> bool:
    """Whether an array's metadata say: default keys, one sharding codec, inside it plain bytes and crc32c."""
    keys, codecs = metadata["chunk_key_encoding"], list(metadata["codecs"])
    if keys["name"] != "default" or keys.get("configuration", {}).get("separator", "/") != "/" or len(codecs) != 1:
        return False
    if codecs[0]["name"] != "sharding_indexed":
        return False
    inner = codecs[0]["configuration"]
    return (
        inner.get("index_location", "end") == "end"
        and [c["name"] for c in inner["codecs"]] == [c["name"] for c in _INNER]
        and [c["name"] for c in inner["index_codecs"]] == [c["name"] for c in _INNER]
        and all(c.get("configuration", {}).get("endian", "little") == "little" for c in inner["codecs"])
    )


def narrowed(path: Location, values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Cast to the store's dtype in C order, if need be; refuses values that do not fit rather than writing infinity."""
    with np.errstate(over="ignore"):
        narrowed = values.astype(dtype, order="C", copy=False)
    if _has_infinity(narrowed):
        raise StoreError(f"{path}: a value does not fit {dtype}; set `dtype: float32` for this expert in params.yaml")
    return narrowed


def _has_infinity(values: np.ndarray) -> bool:
    if values.dtype != np.float16:
        return bool(np.isinf(values).any())
    # The largest magnitude's bits: several times faster than numpy's own test of halves. NaNs are above infinity.
    return bool(((values.view(np.uint16) & 0x7FFF) == 0x7C00).any())
