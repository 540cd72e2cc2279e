"""Claims on the shards of a store, so that two processes never write one shard. They die with their owner.

A claim is a kernel record lock on one byte of one file: byte k stands for shard k. The kernel drops it when the process
ends, however it ends, so there is nothing stale to clean up. The file lies outside the store.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path


class Claims:
    """Claims on one store's shards, shared by every process that names the same store and state folder.

    One instance a process: POSIX record locks do not exclude threads of one process from each other.
    """

    def __init__(self, store: Path, state_folder: Path) -> None:
        name = hashlib.sha256(str(store.resolve()).encode()).hexdigest()[:16]
        folder = state_folder / "claims"
        folder.mkdir(parents=True, exist_ok=True)
        self._file = os.open(folder / f"{store.stem}-{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def close(self) -> None:
        """Give back every claim of this process."""
        os.close(self._file)

    @contextlib.contextmanager
    def claim(self, shard: int) -> Iterator[bool]:
        """Try to claim a shard; gives whether it is ours. Never waits."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, shard + 1)
        except OSError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, shard + 1)

    def share(self) -> None:
        """Say that this process works in the store; waits while another one makes or replaces it."""
        fcntl.lockf(self._file, fcntl.LOCK_SH, 1, 0)

    def own(self) -> None:
        """Take the whole store, to make or replace it; waits until nobody works in it."""
        # Given back first: two processes that both upgraded a shared lock would wait for each other.
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, 0)
        fcntl.lockf(self._file, fcntl.LOCK_EX, 1, 0)
