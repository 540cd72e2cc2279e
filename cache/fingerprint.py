"""Digests that say whether two things on disk are the same. No timestamps, no host names, no paths go into them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from cache.storage.objects import ObjectPath

BLOCK_BYTES = 16 << 20
"""Of an object, read in one request."""
DIGEST_BYTES = 16
"""Bytes of a per-record digest."""


def canonical_json(content: Mapping[str, Any]) -> str:
    """Return JSON that is the same for equal content: sorted keys, no spaces, no NaN."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def fingerprint(identity: Mapping[str, Any]) -> str:
    """Return the sha256 (hex) of everything that changes the numbers."""
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()


def file_digest(path: Path | ObjectPath) -> str:
    """Return the sha256 (hex) of a file's or an object's bytes, read in blocks."""
    if isinstance(path, ObjectPath):
        return _object_digest(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _object_digest(path: ObjectPath) -> str:
    digest, size = hashlib.sha256(), path.size()
    for start in range(0, size, BLOCK_BYTES):
        digest.update(path.read_range(start, min(start + BLOCK_BYTES, size)))
    return digest.hexdigest()


def text_digest(items: Iterable[str]) -> str:
    """Return the sha256 (hex) of a sequence of strings; order and borders between them count."""
    digest = hashlib.sha256()
    for item in items:
        encoded = item.encode()
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.hexdigest()


def _blake2b(raw: memoryview) -> bytes:
    return hashlib.blake2b(raw, digest_size=DIGEST_BYTES).digest()


ROW_DIGESTS: dict[str, Callable[[memoryview], bytes]] = {"xxh3_128": xxhash.xxh3_128_digest, "blake2b_128": _blake2b}
"""How samples may be digested: by XXH3 (128 bits), or by BLAKE2b, twenty times slower, as stores first were."""


def row_digests(rows: np.ndarray | Sequence[np.ndarray], kind: str) -> np.ndarray:
    """Return the digests of the samples of each record, uint8 [row, DIGEST_BYTES]; none is all zero.

    Parameters
    ----------
    rows
        One array a record.
    kind
        One of `ROW_DIGESTS`.
    """
    digest = ROW_DIGESTS[kind]
    raw = [digest(np.ascontiguousarray(row).data) for row in rows]
    packed = b"".join(one if any(one) else b"\x01" * DIGEST_BYTES for one in raw)
    return np.frombuffer(packed, dtype=np.uint8).reshape(-1, DIGEST_BYTES)
