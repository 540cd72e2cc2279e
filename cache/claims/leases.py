"""Claims on the shards of a store of objects: leases, since a bucket has no locks.

A process that works in a store has a session: an object that it writes again every few seconds. What it claims are
objects that name its session. A session that was not written again for its length has ended, whatever became of the
process: its claims are anybody's, and it is told so when it comes back. All of it rests on single requests that the
storage does or refuses whole (put if there is none, put if it is still the one I read), and on the storage's own clock;
those of the machines play no part.

Not here: that no process can damage what its successor has written; see `cache.storage.writing.put`.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from cache.claims.clock import StorageClock
from cache.errors import ClaimsLostError, StorageError, UsageError
from cache.storage.clients import Tagged
from cache.storage.objects import ObjectPath

LENGTH_VARIABLE = "ENSEMBLE_LEASE_SECONDS"
LENGTH_S = 60.0
SHORTEST_S = 2.0
"""Storages tell times in whole seconds."""
WAIT_S = 0.5
OWNER, CLOCK = "owner", "clock"


@dataclass
class _Lease:
    """An object that shows by being written again that its writer is alive."""

    file: ObjectPath
    holder: str
    length_s: float
    tag: str = ""
    turn: int = 0
    written_at: float = 0.0
    """By this machine's steady clock, at the earliest."""

    def content(self) -> bytes:
        """Return what is written: each time something else, so that the tag tells whether it was written since."""
        self.turn += 1
        self.written_at = time.monotonic()
        return json.dumps({"holder": self.holder, "seconds": self.length_s, "turn": self.turn}).encode()

    def take(self) -> bool:
        """Make the object; whether there was none."""
        self.tag = self.file.create(self.content()) or self._tag_after_unclear_write()
        return bool(self.tag)

    def renew(self) -> bool:
        """Write the object again, or look at it where its storage wants a pause; whether it was still ours."""
        if time.monotonic() - self.written_at < self.file.rewrite_pause_s:
            return self.file.tag() == self.tag
        self.tag = self.file.replace(self.content(), self.tag) or self._tag_after_unclear_write()
        return bool(self.tag)

    def _tag_after_unclear_write(self) -> str:
        """Return the tag of what stands there if we wrote it, in a request whose answer did not reach us."""
        try:
            found = self.file.read_tagged()
        except FileNotFoundError:
            return ""
        return found.tag if f'"{self.holder}"'.encode() in found.content else ""

    def give_back(self) -> None:
        """Delete the object if it is still ours."""
        if self.tag and self.file.tag() == self.tag:
            self.file.unlink(missing_ok=True)
        self.tag = ""


class Leases:
    """Claims on one store's shards, shared by every process that names the same URL. The counterpart of `Claims`.

    Raises
    ------
    StorageError
        The storage cannot be reached, or does not do what leases rest on.
    """

    pause_s = 2.0
    """Seconds between two looks at claims of others: each look is some requests."""
    apart = True

    def __init__(self, store: ObjectPath) -> None:
        self._store, self._folder = store, store.parent / ".claims" / store.name
        self._length_s, self._clock = _length_s(), StorageClock(self._folder / CLOCK)
        self._guard, self._stop = threading.RLock(), threading.Event()
        self._begin()
        self._heart: threading.Thread | None = None
        self._checked = False

    def _begin(self) -> None:
        """Take a name that nobody has had; one whose session has ended is not used again."""
        self._me = uuid.uuid4().hex
        self._session = _Lease(self._folder / "sessions" / self._me, self._me, self._length_s)
        self._owner = _Lease(self._folder / OWNER, self._me, self._length_s)

    def close(self) -> None:
        """Give back every claim of this process."""
        self._stop.set()
        if self._heart is not None:
            self._heart.join()
        with self._guard, contextlib.suppress(StorageError):  # then they end by themselves
            used = bool(self._session.tag or self._owner.tag)
            for lease in (self._owner, self._session):
                lease.give_back()
            if used:
                self._clean()

    def remove(self) -> None:
        """Do nothing: whoever closes the last session removes what is left."""

    def _clean(self) -> None:
        """Remove what dead processes left, if nobody is at work; a claim that slips through costs a shard's work."""
        listing = self._folder.files()
        if OWNER not in listing and all(
            self._ended(self._folder / name) for name in listing if name.startswith("sessions/")
        ):
            self._folder.delete([name for name in listing if name.startswith(("shards/", f"{CLOCK}/"))])

    # ---- the whole store ---------------------------------------------------------------------------------------------

    def share(self) -> None:
        """Say that this process works in the store; waits while another one makes or replaces it."""
        while True:
            with self._guard:
                if not self._hold(self._session):
                    self._begin()
                    continue
                if self._owner.tag or self._ended(self._owner.file):
                    self._owner.give_back()
                    return
                self._session.give_back()
            time.sleep(WAIT_S * random.uniform(0.5, 1.5))

    def leave(self) -> None:
        """Say that this process no longer works in the store."""
        with self._guard:
            self._session.give_back()

    def try_acquire(self) -> bool:
        """Take the whole store, to make or replace it, if nobody works in it; gives whether it is ours. Never waits."""
        with self._guard:
            if not self._ended(self._owner.file) or not self._hold(self._owner):
                return False
            others = [file for file in (self._folder / "sessions").children() if file != self._session.file]
            if all(self._ended(file) for file in others):
                return True
            self._owner.give_back()
            return False

    def confirm(self) -> None:
        """Make sure that nobody has taken over what this process has claimed.

        Raises
        ------
        ClaimsLostError
            Somebody has.
        """
        with self._guard:
            held = [lease for lease in (self._owner, self._session) if lease.tag]
            if held and all(lease.renew() for lease in held):
                return
            self._begin()
        raise ClaimsLostError(
            f"{self._store}: this process was paused or cut off for over {self._length_s:g} s and has lost its claims"
        )

    # ---- shards ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def claim(self, shard: int) -> Iterator[bool]:
        """Try to claim a shard; gives whether it is ours. Never waits."""
        claimed = self._folder / "shards" / str(shard)
        with self._guard:
            tag = claimed.create(self._me.encode()) or self._taken_over(claimed)
        if not tag:
            yield False
            return
        try:
            yield True
        finally:
            with self._guard, contextlib.suppress(StorageError):  # then it ends with the session
                if claimed.tag() == tag:
                    claimed.unlink(missing_ok=True)

    def _taken_over(self, claimed: ObjectPath) -> str:
        """Take a claim over whose session has ended; gives its new tag, or "" where that is not so."""
        try:
            found = claimed.read_tagged()
        except FileNotFoundError:
            return claimed.create(self._me.encode())
        name = found.content.decode()
        if name == self._me:  # left by a failed request of ours
            return found.tag
        if not self._ended(self._folder / "sessions" / name):
            return ""
        return claimed.replace(self._me.encode(), found.tag)

    # ---- leases ------------------------------------------------------------------------------------------------------

    def _hold(self, lease: _Lease) -> bool:
        """Make or renew a lease of our own, and see to it that it is renewed from now on."""
        if not (lease.renew() if lease.tag else lease.take()):
            return False
        if not self._checked:
            self._check_conditions(lease)
        if self._heart is None:
            self._heart = threading.Thread(target=self._beat, name="leases", daemon=True)
            self._heart.start()
        return True

    def _check_conditions(self, lease: _Lease) -> None:
        """Refuse a storage that does not know conditional requests: leases there would exclude nobody.

        Some make an object that `If-Match` names and that is not there.
        """
        none, tag = self._folder / "sessions" / f"{self._me}-none", lease.file.unused_tag
        if lease.file.create(b"") or lease.file.replace(b"", tag) or none.replace(b"", tag):
            for file in (lease.file, none):
                file.unlink(missing_ok=True)
            lease.tag = ""
            raise StorageError(
                f"{self._store}: the storage ignores conditions (If-None-Match, If-Match, generations), so that runs "
                "cannot be kept apart; update it, or write into a folder and copy it"
            )
        self._checked = True

    def _ended(self, file: ObjectPath) -> bool:
        """Whether nobody holds a lease (any more); one that has run out is ended for good, also for its holder."""
        try:
            found = file.read_tagged()
        except FileNotFoundError:
            return True
        try:
            length_s = float(json.loads(found.content)["seconds"])
        except (ValueError, KeyError, TypeError):
            length_s = self._length_s  # no lease of ours: give it the time one has
        if self._age_s(found) <= length_s:
            return False
        if not file.replace(b'{"seconds": 0}', found.tag):
            return not file.exists()
        file.unlink(missing_ok=True)
        return True

    def _age_s(self, found: Tagged) -> float:
        """Return how long ago an object was written, by the clock of the storage, to a second."""
        return ((found.answered or self._clock.now()) - found.written).total_seconds()

    def _beat(self) -> None:
        while not self._stop.wait(self._length_s / 4):
            with self._guard, contextlib.suppress(StorageError):  # a storage out of reach may be back in time
                for lease in (self._owner, self._session):
                    if lease.tag:
                        lease.renew()


def _length_s() -> float:
    text = os.environ.get(LENGTH_VARIABLE, str(LENGTH_S))
    try:
        length_s = float(text)
    except ValueError:
        length_s = 0.0
    if not length_s >= SHORTEST_S:  # also not a number
        raise UsageError(f"{LENGTH_VARIABLE}={text}: expected a number of seconds from {SHORTEST_S:g} up")
    return length_s
