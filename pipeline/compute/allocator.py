"""How the C library hands out memory in processes that hold large arrays for a moment, batch after batch.

glibc gives every thread a heap of its own. Batches are made in one thread and freed in another, so that each heap keeps
gaps as large as a batch, and a long run grows by all of them. One heap for all threads reuses them (docs/decisions.md).
"""

from __future__ import annotations

import ctypes
import os

VARIABLE = "MALLOC_ARENA_MAX"
_M_ARENA_MAX = -8
"""glibc's number of the option, malloc.h."""


def share_one_heap() -> bool:
    """Let all threads of this process, and of processes that it starts, share one heap; returns whether glibc does.

    To be called before other threads have asked for memory: what heaps there are stay. A value that the environment
    has is left alone, and so are C libraries other than glibc.
    """
    if VARIABLE in os.environ:
        return False
    os.environ[VARIABLE] = "1"  # for processes that are started from here
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_ARENA_MAX, 1))
