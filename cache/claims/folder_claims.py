"""Claims on the shards of a store in a folder, so that two processes never write one shard. They die with their owner.

A claim is a kernel record lock on one byte of one file: byte k stands for shard k. The kernel drops it when the process
ends, however it ends, so there is nothing stale to clean up. The file lies outside the store.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from cache.claims.leases import Leases
from cache.errors import StoreError
from cache.storage.locations import Location

HELD = (errno.EACCES, errno.EAGAIN)


def claims_on(store: Location, state_folder: Path) -> AnyClaims:
    """Return what claims on a store are made with: kernel locks on a file system, leases on object storage."""
    if isinstance(store, Path):
        return Claims(store, state_folder)
    return Leases(store)


class Claims:
    """Claims on one store's shards, shared by every process that names the same store and state folder.

    One instance a process: POSIX record locks do not exclude threads of one process from each other.
    """

    pause_s = 0.5
    """Seconds between two looks at claims of others."""
    apart = False
    """Whether processes had better look for shards in different places, since each look costs requests."""

    def __init__(self, store: Path, state_folder: Path) -> None:
        name = hashlib.sha256(str(store.resolve()).encode()).hexdigest()[:16]
        folder = state_folder / "claims"
        self._folder, self._path = folder, folder / f"{store.stem}-{name}.lock"
        self._file = self._opened()

    def _opened(self) -> int:
        while True:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except FileNotFoundError:
                continue  # another process has just removed its file and the folder
            except OSError as error:
                reason = f"cannot be opened for claims ({error.strerror}); give write access"
                raise StoreError(f"{self._path}: {reason}") from error

    def close(self) -> None:
        """Give back every claim of this process."""
        os.close(self._file)

    def remove(self) -> None:
        """Remove the file, and its folders where they are empty; whoever waits for it opens a new one.

        Only its owner may: one who has a claim on everything that is claimed with it.
        """
        self._path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # another process has a file there
            self._folder.rmdir()
            self._folder.parent.rmdir()

    @contextlib.contextmanager
    def claim(self, shard: int) -> Iterator[bool]:
        """Try to claim a shard; gives whether it is ours. Never waits."""
        if not self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB, shard + 1):
            yield False
            return
        try:
            yield True
        finally:
            self._lock(fcntl.LOCK_UN, shard + 1)

    def share(self) -> None:
        """Say that this process works in the store; waits while another one makes or replaces it."""
        self._lock(fcntl.LOCK_SH, 0)

    def leave(self) -> None:
        """Say that this process no longer works in the store."""
        self._lock(fcntl.LOCK_UN, 0)

    def try_acquire(self) -> bool:
        """Take the whole store, to make or replace it, if nobody works in it; gives whether it is ours. Never waits."""
        return self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB, 0)

    def confirm(self) -> None:
        """Do nothing: a kernel lock is there as long as its owner."""

    def _lock(self, kind: int, byte: int) -> bool:
        """Take or give back one byte of the file that is there now; False where another process holds it.

        A file that was removed while we waited for it excludes nobody any more.

        Raises
        ------
        StoreError
            The file system has no record locks: claims there would never exclude anybody.
        """
        while self._lock_opened(kind, byte):
            if kind == fcntl.LOCK_UN or self._is_current():
                return True
            os.close(self._file)
            self._file = self._opened()
        return False

    def _is_current(self) -> bool:
        opened = os.fstat(self._file)
        try:
            on_disk = os.stat(self._path)
        except FileNotFoundError:
            return False
        return (opened.st_dev, opened.st_ino) == (on_disk.st_dev, on_disk.st_ino)

    def _lock_opened(self, kind: int, byte: int) -> bool:
        try:
            fcntl.lockf(self._file, kind, 1, byte)
        except OSError as error:
            if error.errno in HELD:
                return False
            raise StoreError(
                f"{self._folder}: the file system gives no record locks ({error.strerror}); put the study on one that "
                "does (local disks, NFSv4, Lustre with flock)"
            ) from error
        return True


AnyClaims = Claims | Leases
