"""Shards of compressed chunks of whole rows, encoded without a detour: what signals.zarr is made of.

The bytes are Zarr v3's own (`sharding_indexed`; each chunk packed by Blosc and followed by a crc32c; the index at the
end) and zarr reads them. Lives here because zarr's general path costs half as much again as the packing itself, and
keeps no file of a shard that is all fill value, so that unreadable records could not be told from a lost file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numcodecs.blosc import Blosc
from zarr.codecs import BloscCodec

from cache._shards import ABSENT, CRC_BYTES


def is_packed(array: zarr.Array, codec: BloscCodec) -> bool:
    """Whether an array is laid out as here, its chunks of whole rows packed by `codec`."""
    metadata: dict[str, Any] = dict(array.metadata.to_dict())
    shape = array.shape
    keys, codecs = metadata["chunk_key_encoding"], list(metadata["codecs"])
    if keys != {"name": "default", "configuration": {"separator": "/"}} or array.shards is None or len(codecs) != 1:
        return False
    inner = codecs[0]["configuration"]
    plain = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    return (
        array.shards[1:] == array.chunks[1:] == shape[1:]
        and inner["index_location"] == "end"
        and list(inner["index_codecs"]) == plain
        and list(inner["codecs"]) == [plain[0], codec.to_dict(), plain[1]]
    )


def packed_pieces(
    rows: np.ndarray, *, chunk_rows: int, shard_rows: int, fill: int, codec: Blosc
) -> Iterator[np.ndarray | bytes]:
    """Give a shard's bytes piece by piece.

    Parameters
    ----------
    rows
        Contiguous [row, ...] in the store's dtype, at most `shard_rows`; a partly filled chunk is padded with `fill`.
    """
    index = np.full((shard_rows // chunk_rows, 2), ABSENT, dtype="<u8")
    offset = 0
    for number, start in enumerate(range(0, len(rows), chunk_rows)):
        packed = codec.encode(_padded(rows[start : start + chunk_rows], chunk_rows, fill))
        yield packed
        yield _crc(packed)
        index[number] = offset, len(packed) + CRC_BYTES
        offset += len(packed) + CRC_BYTES
    yield index.tobytes()
    yield _crc(index.tobytes())


def _padded(rows: np.ndarray, chunk_rows: int, fill: int) -> np.ndarray:
    if len(rows) == chunk_rows:
        return rows
    padded = np.full((chunk_rows, *rows.shape[1:]), fill, dtype=rows.dtype)
    padded[: len(rows)] = rows
    return padded


def _crc(raw: bytes) -> bytes:
    return int(google_crc32c.value(raw)).to_bytes(CRC_BYTES, "little")
