"""One object or part on its way in through a door that writes at offsets (gsiftp, sftp).

A `Target` (targets.py, parts.py) says where the bytes lie and what becomes of them. A name has one writer: a newer one
takes it over, so that a client that was cut off need not wait for its dead session to be noticed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from storage_provider.channel import Stored
from storage_provider.errors import Conflict, NoSpace
from storage_provider.landing import Landing
from storage_provider.ranges import Ranges

# What came of a transfer is made durable (and journalled) each time so many bytes have come, but a fast one's (the disk
# works best undisturbed) at most once in so many seconds: what a killed server forgets
SYNC_BYTES = 8 * 1024 * 1024
SYNC_SECONDS = 1.0
# A running transfer's rights are judged again this often (seconds)
JUDGE_SECONDS = 1.0
_LOCKS = 64


class Target(Protocol):
    """Where a Writing's bytes go. Each of `commit`, `keep` and `drop` ends it and closes its file."""

    @property
    def landing(self) -> Landing:
        """The file as it fills."""

    def reserve(self, end: int) -> None:
        """Make sure that bytes up to `end` may come; Refused or NoSpace."""

    def sync(self) -> None:
        """Make durable what came."""

    def commit(self) -> tuple[Stored, bool] | None:
        """Verify and publish an object: (what is there, whether it is new); of a part, sync and keep it (None)."""

    def keep(self) -> None:
        """Keep what came for the next try, where that can be."""

    def drop(self) -> None:
        """Throw everything away."""


class Writing:
    """Bytes on their way in; thread-safe. Ends with commit, close or discard (each harmless after the end)."""

    def __init__(
        self, target: Target, *, judge: Callable[[], None], ended: Callable[[Writing, int], None], key: str = ""
    ) -> None:
        self._target = target
        self._judge = judge
        self._judged = time.monotonic()
        self._ended = ended
        self._key = key
        self._turn = threading.Condition()
        self._busy = 0
        self._over = ""
        self._came = 0
        self._unsynced = 0
        self._synced = 0.0  # when; 0: not yet
        self._gone = False
        self.outcome: tuple[Stored, bool] | None = None

    @property
    def received(self) -> Ranges:
        """What is there, also from earlier tries."""
        return self._target.landing.received

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write bytes at an offset, from any thread.

        Raises Denied when the party lost its right meanwhile, NoSpace (all that came is thrown away), Refused, Conflict
        when a newer session has taken the transfer over.
        """
        try:
            with self._at_work():
                self._check(len(data))
                self._target.reserve(offset + len(data))
                self._target.landing.write(offset, data)
                if self._due(len(data)):
                    self._target.sync()
        except NoSpace:
            self.discard()
            raise

    def sync(self) -> Ranges:
        """Make durable what came (for a restart marker); returns it."""
        with self._at_work():
            safe = self.received
            self._target.sync()
            return safe

    def commit(self) -> Stored | None:
        """Verify what came and publish it (an object), or sync it and keep it (a part: None).

        Corrupt keeps nothing; Refused when bytes are missing (of a large object, what came stays).
        """
        self._end("committed")
        with self._ending():
            self.outcome = self._target.commit()
        return self.outcome[0] if self.outcome is not None else None

    def close(self, reason: str = "closed") -> None:
        """End without commit: keep what came, where it can be resumed."""
        if self._stop(reason):
            with self._ending():
                self._target.keep()

    def discard(self) -> None:
        """End and throw away what came."""
        if self._stop("thrown away"):
            with self._ending():
                self._target.drop()

    def finish(self, reason: str) -> None:
        """Close, and wait for an end that is under way: then no descriptor of this Writing is open any more."""
        self.close(reason)
        with self._turn:
            self._turn.wait_for(lambda: self._gone)

    def _check(self, count: int) -> None:
        now = time.monotonic()
        if now - self._judged > JUDGE_SECONDS:
            self._judge()
            self._judged = now
        self._came += count

    def _due(self, count: int) -> bool:
        now = time.monotonic()
        with self._turn:
            self._unsynced += count
            if self._unsynced < SYNC_BYTES or (self._synced and now - self._synced < SYNC_SECONDS):
                return False
            self._unsynced, self._synced = 0, now
            return True

    @contextmanager
    def _ending(self) -> Iterator[None]:
        try:
            yield
        finally:
            try:
                self._ended(self, self._came)
            finally:
                with self._turn:
                    self._gone = True
                    self._turn.notify_all()

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        with self._turn:
            self._refuse_ended()
            self._busy += 1
        try:
            yield
        finally:
            with self._turn:
                self._busy -= 1
                self._turn.notify_all()

    def _refuse_ended(self) -> None:
        if self._over:
            raise Conflict(f"this transfer was {self._over}", key=self._key)

    def _end(self, how: str) -> None:
        if not self._stop(how):
            self._refuse_ended()

    def _stop(self, how: str) -> bool:
        """Let no more bytes in and wait for those that are being written; says whether it was still open."""
        with self._turn:
            if self._over:
                return False
            self._over = how
            self._turn.wait_for(lambda: self._busy == 0)
            return True


def writer_name(owner: str, what: str) -> str:
    """Return the name that an owner's Writing of an object (its key) or a part (its name) has among the Writers."""
    return f"{owner}\0{what}"


class Writers:
    """The open Writings of an area by name; a new one of the same name ends the one before."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, Writing] = {}
        self._making = tuple(threading.Lock() for _ in range(_LOCKS))

    def begin(self, name: str, make: Callable[[], Writing]) -> Writing:
        """Close the Writing of this name (it keeps what came), then make and register the new one.

        Two are never open at once: the new one is made when the old one's file is closed, also when that is in the
        middle of its commit.
        """
        while True:
            self.end(name)  # outside the lock: a commit may take long, and others share the lock
            with self._making[hash(name) % _LOCKS]:
                with self._lock:
                    if name in self._open:
                        continue
                writing = make()
                with self._lock:
                    self._open[name] = writing
                return writing

    def end(self, name: str) -> None:
        """Close the Writing of this name, when there is one, and wait until it has ended."""
        with self._lock:
            writing = self._open.get(name)
        if writing is not None:
            try:
                writing.finish("taken over by a newer session of yours")
            finally:
                self.forget(name, writing)

    def forget(self, name: str, writing: Writing) -> None:
        """Note that a Writing has ended."""
        with self._lock:
            if self._open.get(name) is writing:
                del self._open[name]
