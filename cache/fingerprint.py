"""Digests that say whether two things on disk are the same. No timestamps, no host names, no paths go into them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

DIGEST_BYTES = 16
"""Bytes of a per-record digest (BLAKE2b, shortened)."""


def canonical_json(content: Mapping[str, Any]) -> str:
    """Return JSON that is the same for equal content: sorted keys, no spaces, no NaN."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def fingerprint(identity: Mapping[str, Any]) -> str:
    """Return the sha256 (hex) of everything that changes the numbers."""
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the sha256 (hex) of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_digest(items: Iterable[str]) -> str:
    """Return the sha256 (hex) of a sequence of strings; order and borders between them count."""
    digest = hashlib.sha256()
    for item in items:
        encoded = item.encode()
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.hexdigest()


def row_digest(row: np.ndarray) -> np.ndarray:
    """Return the digest of one record's samples as uint8 [DIGEST_BYTES]; never all zero."""
    raw = hashlib.blake2b(np.ascontiguousarray(row).data, digest_size=DIGEST_BYTES).digest()
    return np.frombuffer(raw if any(raw) else b"\x01" * DIGEST_BYTES, dtype=np.uint8)
