"""Shards of compressed chunks of whole rows, encoded without a detour: what signals.zarr is made of.

The bytes are Zarr v3's own (`sharding_indexed`; each chunk packed by Blosc and followed by a crc32c; the index at the
end) and zarr reads them. Lives here because zarr's general path costs half as much again as the packing itself, and
keeps no file of a shard that is all fill value, so that unreadable records could not be told from a lost file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numcodecs.blosc import Blosc
from zarr.codecs import BloscCodec

from cache.zarr_io.shards import ABSENT, CRC_BYTES

_SHUFFLES = {"noshuffle": Blosc.NOSHUFFLE, "shuffle": Blosc.SHUFFLE, "bitshuffle": Blosc.BITSHUFFLE}
_PLAIN = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]


def codec_of(array: zarr.Array[Any]) -> BloscCodec | None:
    """Return what packs an array's chunks, if these are whole rows, packed by Blosc, then a crc32c; else None."""
    metadata: dict[str, Any] = dict(array.metadata.to_dict())
    keys, codecs = metadata["chunk_key_encoding"], list(metadata["codecs"])
    if keys != {"name": "default", "configuration": {"separator": "/"}} or array.shards is None or len(codecs) != 1:
        return None
    inner = codecs[0]["configuration"]
    chunk = list(inner["codecs"])
    if (
        array.shards[1:] != array.chunks[1:]
        or any(size % chunk for size, chunk in zip(array.shape[1:], array.chunks[1:], strict=True))
        or inner["index_location"] != "end"
        or list(inner["index_codecs"]) != _PLAIN
        or [c["name"] for c in chunk] != ["bytes", "blosc", "crc32c"]
        or chunk[0] != _PLAIN[0]
    ):
        return None
    return BloscCodec.from_dict(chunk[1])


def packer_of(codec: BloscCodec) -> Blosc:
    """Return what packs as zarr would by this codec."""
    return Blosc(_name_of(codec.cname), codec.clevel, _SHUFFLES[_name_of(codec.shuffle)], codec.blocksize)


def _name_of(option: Any) -> str:
    """Return an option's name: zarr had members of an enumeration up to 3.1, and has strings since."""
    return str(getattr(option, "value", option))


Packed = tuple[bytes, bytes]
"""A chunk, and its checksum: taken while the chunk is in the processor's cache, in a third of the time."""


def pack_chunks(
    rows: np.ndarray, *, chunk_rows: int, fill: int, packer: Blosc, keep_empty: bool = True
) -> list[Packed | None]:
    """Pack rows that begin at the border of a chunk; a partly filled last chunk is padded with `fill`.

    Parameters
    ----------
    rows
        Contiguous [row, ...] in the store's dtype.
    keep_empty
        Whether a chunk that holds nothing but `fill` is packed like any other; None stands for it otherwise.
    """
    found: list[Packed | None] = []
    for start in range(0, len(rows), chunk_rows):
        part = rows[start : start + chunk_rows]
        if not keep_empty and (part == fill).all():
            found.append(None)
            continue
        chunk = packer.encode(_padded(part, chunk_rows, fill))
        found.append((chunk, _crc(chunk)))
    return found


def shard_pieces(chunks: Iterable[Packed | None], n_chunks: int) -> Iterator[bytes]:
    """Give a shard's bytes piece by piece, from its first packed chunks; a full shard has `n_chunks`."""
    index = np.full((n_chunks, 2), ABSENT, dtype="<u8")
    offset = 0
    for number, chunk in enumerate(chunks):
        if chunk is None:
            continue
        packed, checksum = chunk
        yield packed
        yield checksum
        index[number] = offset, len(packed) + CRC_BYTES
        offset += len(packed) + CRC_BYTES
    yield index.tobytes()
    yield _crc(index.tobytes())


def packed_pieces(
    values: np.ndarray, piece: int, chunk_rows: int, fill: int, packer: Blosc
) -> Iterator[list[Packed | None]]:
    """Give the packed chunks of each piece of the last axis of [row, lead, time], `piece` long.

    A row of nothing but `fill` keeps its first chunk, so that it can be told from a lost file.
    """
    for start in range(0, max(values.shape[2], 1), piece):
        part = np.ascontiguousarray(values[:, :, start : start + piece])
        if (lacking := piece - part.shape[2]) > 0:
            part = np.pad(part, ((0, 0), (0, 0), (0, lacking)), constant_values=fill)
        yield pack_chunks(part, chunk_rows=chunk_rows, fill=fill, packer=packer, keep_empty=start == 0)


def side_by_side(
    parts: Sequence[tuple[Sequence[list[Packed | None]], int]], chunk_rows: int
) -> Iterator[list[Packed | None]]:
    """Give the chunks of all parts (pieces, rows), piece after piece; a part of shorter rows has none there."""
    for k in range(max(len(pieces) for pieces, _ in parts)):
        empty: list[list[Packed | None]] = [[None] * -(-n_rows // chunk_rows) for _, n_rows in parts]
        found = (pieces[k] if k < len(pieces) else empty[n] for n, (pieces, _) in enumerate(parts))
        yield [chunk for chunks in found for chunk in chunks]


def _padded(rows: np.ndarray, chunk_rows: int, fill: int) -> np.ndarray:
    if len(rows) == chunk_rows:
        return rows
    padded = np.full((chunk_rows, *rows.shape[1:]), fill, dtype=rows.dtype)
    padded[: len(rows)] = rows
    return padded


def _crc(raw: bytes) -> bytes:
    return int(google_crc32c.value(raw)).to_bytes(CRC_BYTES, "little")
