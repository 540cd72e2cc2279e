"""Large files are written past the page cache, to the same bytes, and as usual where the file system refuses that."""

import errno
import itertools
import os
from pathlib import Path

import numpy as np
import pytest

from cache.storage import direct_io as _direct
from cache.storage.direct_io import ALIGNMENT, STAGED_BYTES, write_pieces

SIZES = [0, 1, ALIGNMENT, STAGED_BYTES - 1, STAGED_BYTES, STAGED_BYTES + 1, 2 * STAGED_BYTES + 3 * ALIGNMENT + 17]
needs_direct = pytest.mark.skipif(not _direct._DIRECT, reason="this system cannot write past the page cache")


def written(file: Path, pieces: list) -> bytes:
    with file.open("wb", buffering=0) as handle:
        write_pieces(handle.fileno(), pieces)
    return file.read_bytes()


def pieces_of(size: int) -> list:
    content = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    cuts = [0, min(5, size), size // 3, size // 3, size]
    parts = [content[a:b] for a, b in itertools.pairwise(cuts) if b >= a]
    return [part.tobytes() if k % 2 else part for k, part in enumerate(parts)]


def joined(pieces: list) -> bytes:
    return b"".join(bytes(piece) for piece in pieces)


@pytest.mark.parametrize("size", SIZES)
def test_the_file_holds_the_pieces(tmp_path, size):
    pieces = pieces_of(size)
    assert written(tmp_path / "a", pieces) == joined(pieces)


def test_arrays_of_any_type_are_written_as_they_lie_in_memory(tmp_path):
    halves = np.arange(3 * STAGED_BYTES // 2, dtype=np.float16).reshape(-1, 2)
    assert written(tmp_path / "a", [halves, b"end"]) == halves.tobytes() + b"end"


@needs_direct
def test_whole_stages_go_past_the_page_cache(tmp_path, monkeypatch):
    asked = []
    real = _direct._write
    monkeypatch.setattr(
        _direct, "_write", lambda d, c, *, direct: (asked.append((len(c), direct)), real(d, c, direct=direct))[1]
    )
    pieces = pieces_of(STAGED_BYTES + ALIGNMENT + 9)
    with (tmp_path / "a").open("wb", buffering=0) as handle:
        if not _direct._set_direct(handle.fileno(), wanted=True):
            pytest.skip("this file system cannot be written past the page cache")
    assert written(tmp_path / "a", pieces) == joined(pieces)
    assert asked == [(STAGED_BYTES, True), (ALIGNMENT, True), (9, False)]


@pytest.mark.parametrize("size", SIZES)
def test_a_file_system_that_takes_the_flag_and_refuses_the_write_is_written_as_usual(tmp_path, monkeypatch, size):
    real, flags = os.write, []

    def write(descriptor, content):
        if flags and flags[-1]:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(descriptor, content)

    monkeypatch.setattr(_direct, "_set_direct", lambda _, *, wanted: (flags.append(wanted), wanted)[1])
    monkeypatch.setattr(os, "write", write)
    pieces = pieces_of(size)
    assert written(tmp_path / "a", pieces) == joined(pieces)


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no file system in memory")
def test_a_file_system_in_memory_is_written_too(tmp_path):
    file = Path("/dev/shm", f"ensemble-test-{os.getpid()}")
    pieces = pieces_of(SIZES[-1])
    try:
        assert written(file, pieces) == joined(pieces)
    finally:
        file.unlink()


def test_a_full_disk_is_an_error(tmp_path, monkeypatch):
    def write(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match="No space"):
        written(tmp_path / "a", pieces_of(SIZES[-1]))
