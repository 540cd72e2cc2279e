"""MATLAB v5 files of one recording. What packed elements unpack to is looked at before they are read."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np

from cache.errors import InputError

HEAD_BYTES, TAG_BYTES, PACKED = 128, 8, 15
MAX_FILE_BYTES, MAX_UNPACKED_BYTES = 64 << 20, 512 << 20
_PIECE_BYTES = 1 << 22


def read_struct(content: bytes, name: str) -> Any:
    """Return the structure `name` of a file, as scipy gives it (fields by name).

    Raises
    ------
    InputError
        Not such a file, damaged, without the structure, or of more than 512 MB when unpacked.
    """
    from scipy.io import loadmat

    if len(content) > MAX_FILE_BYTES:
        raise InputError(f"it has {len(content) >> 20} MB, more than the {MAX_FILE_BYTES >> 20} that are read")
    _check_size(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = loadmat(io.BytesIO(content), variable_names=[name])
    # scipy says of a damaged file whatever its parser does.
    except Exception as error:
        raise InputError(f"it is no readable MATLAB file ({type(error).__name__})") from error
    value = found.get(name)
    if not isinstance(value, np.ndarray) or value.dtype.names is None or value.size != 1:
        raise InputError(f"it has no structure '{name}'")
    return value.reshape(-1)[0]


def _check_size(content: bytes) -> None:
    """Refuse a file whose packed elements unpack to more than a recording has."""
    order = ">" if content[126:128] == b"MI" else "<"
    place, total = HEAD_BYTES, 0
    while place + TAG_BYTES <= len(content):
        kind, size = struct.unpack_from(f"{order}II", content, place)
        place += TAG_BYTES
        if kind == PACKED:
            unpacking, rest = zlib.decompressobj(), content[place : place + size]
            while rest and not unpacking.eof and total <= MAX_UNPACKED_BYTES:
                try:
                    total += len(unpacking.decompress(rest, _PIECE_BYTES))
                except zlib.error as error:
                    raise InputError("it is no readable MATLAB file: a packed element is damaged") from error
                rest = unpacking.unconsumed_tail
        if total > MAX_UNPACKED_BYTES:
            raise InputError(f"it unpacks to more than {MAX_UNPACKED_BYTES >> 20} MB")
        place += size if size else len(content)
