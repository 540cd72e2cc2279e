"""Writing large files past the kernel's page cache. Used by `writing`; not here: names, renaming, flushing folders.

A shard is flushed to the disk as soon as it is whole, so pages of it in memory bring nothing but their cost: copying,
and finding memory for them, which in a virtual machine takes longer than the disk does (docs/decisions.md).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import threading
from collections.abc import Iterable

import numpy as np

STAGED_BYTES = 1 << 20
"""Handed to the disk at a time; what is no larger goes through the page cache, as usual."""
ALIGNMENT = 4096
"""Of memory, place in the file and length, for any disk."""
_DIRECT = getattr(os, "O_DIRECT", 0)  # macOS has none
_NOTHING = np.empty(0, dtype=np.uint8)
_thread_memory = threading.local()


def write_pieces(descriptor: int, pieces: Iterable[np.ndarray | bytes]) -> None:
    """Write buffers (bytes, contiguous arrays) one behind the other to an empty file, and flush them to the disk."""
    memory, filled, staged, direct = _memory(), 0, False, False
    for piece in pieces:
        empty = not (len(piece) if isinstance(piece, bytes) else piece.size)
        content = _NOTHING if empty else np.frombuffer(piece, dtype=np.uint8)  # which refuses what is empty
        while len(content):
            part = content[: STAGED_BYTES - filled]
            memory[filled : filled + len(part)] = part  # numpy lets other threads run meanwhile
            filled, content = filled + len(part), content[len(part) :]
            if filled == STAGED_BYTES:
                direct = direct if staged else _set_direct(descriptor, wanted=True)
                direct = _write(descriptor, memory, direct=direct)
                filled, staged = 0, True
    whole = filled // ALIGNMENT * ALIGNMENT if direct else 0
    if whole:
        _write(descriptor, memory[:whole], direct=True)
    if direct:
        _set_direct(descriptor, wanted=False)
    _write(descriptor, memory[whole:filled], direct=False)
    os.fsync(descriptor)


def _memory() -> np.ndarray:
    """Memory of this thread, at a page's border; asking for it anew would cost as much as filling it."""
    if not hasattr(_thread_memory, "memory"):
        _thread_memory.memory = np.frombuffer(mmap.mmap(-1, STAGED_BYTES), dtype=np.uint8)
    return _thread_memory.memory


def _set_direct(descriptor: int, *, wanted: bool) -> bool:
    """Switch the page cache off or on; returns whether it is off, which some file systems do not allow."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    with contextlib.suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | _DIRECT if wanted else flags & ~_DIRECT)
        return wanted and bool(_DIRECT)
    return False


def _write(descriptor: int, content: np.ndarray, *, direct: bool) -> bool:
    """Write all of it; returns whether that still goes past the page cache."""
    while len(content):
        try:
            content = content[os.write(descriptor, content.data) :]
        except OSError as error:
            if not direct or error.errno != errno.EINVAL:
                raise
            direct = _set_direct(descriptor, wanted=False)  # the file system took the flag, and refuses the write
    return direct
