"""The clock of an object storage, as far as its answers tell it, and between them this machine's steady one."""

from __future__ import annotations

import threading
import time
import uuid
from datetime import datetime, timedelta

from cache.storage.objects import ObjectPath

ASKED_EVERY_S = 600
"""Two clocks that are kept by the network's time differ by less than 0.3 s after that (500 parts in a million)."""


class StorageClock:
    """The storage's time, never ahead of it.

    Some clients do not pass on when the storage answered. What they do pass on is when an object was written: so one is
    written and looked at, once in ten minutes. The time since then is counted from the answer on, which comes later
    than the time it tells: the clock is behind by that, and by a part of a second that storages do not tell.
    """

    def __init__(self, folder: ObjectPath) -> None:
        self._folder, self._guard = folder, threading.Lock()
        self._known: tuple[datetime, float] | None = None

    def now(self) -> datetime:
        """Return the time; asks the storage (three requests) where it was not asked for long."""
        with self._guard:
            if self._known is None or time.monotonic() - self._known[1] > ASKED_EVERY_S:
                self._known = self._ask()
            at_that_time, then = self._known
            return at_that_time + timedelta(seconds=time.monotonic() - then)

    def _ask(self) -> tuple[datetime, float]:
        while True:
            file = self._folder / uuid.uuid4().hex
            file.create(b"")
            try:
                written = file.read_tagged().written
            except FileNotFoundError:
                continue  # somebody has just cleaned up
            then = time.monotonic()
            file.unlink(missing_ok=True)
            return written, then
