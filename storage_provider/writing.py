"""One object or part on its way in through a door that writes at offsets (gsiftp, sftp): `Writing` and its targets.

A target says where the bytes lie and what becomes of them: a staged file (small objects, and those whose size nobody
said), a resumable upload (larger ones), or a part (see parts.py). A name has one writer: a newer one takes it over, so
that a client that was cut off need not wait for its dead session to be noticed.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from storage_provider.channel import ObjectSpec, Stored
from storage_provider.disk import create, disk_errors
from storage_provider.errors import Conflict, Corrupt, NoSpace, Refused
from storage_provider.keys import parse_key
from storage_provider.landing import Landing
from storage_provider.ranges import Ranges
from storage_provider.space import Room
from storage_provider.store import Store
from storage_provider.uploads import Uploads

# What came of a large transfer is made durable (and journalled) each time so many bytes have come
SYNC_BYTES = 64 * 1024 * 1024
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
        try:
            self.outcome = self._target.commit()
        finally:
            self._ended(self, self._came)
        return self.outcome[0] if self.outcome is not None else None

    def close(self, reason: str = "closed") -> None:
        """End without commit: keep what came, where it can be resumed."""
        if self._stop(reason):
            try:
                self._target.keep()
            finally:
                self._ended(self, self._came)

    def discard(self) -> None:
        """End and throw away what came."""
        if self._stop("thrown away"):
            try:
                self._target.drop()
            finally:
                self._ended(self, self._came)

    def _check(self, count: int) -> None:
        now = time.monotonic()
        if now - self._judged > JUDGE_SECONDS:
            self._judge()
            self._judged = now
        self._came += count

    def _due(self, count: int) -> bool:
        self._unsynced += count
        if self._unsynced < SYNC_BYTES:
            return False
        self._unsynced = 0
        return True

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
        """Close the Writing of this name (it keeps what came), then make and register the new one."""
        with self._making[hash(name) % _LOCKS]:
            self.end(name)
            writing = make()
            with self._lock:
                self._open[name] = writing
        return writing

    def end(self, name: str) -> None:
        """Close the Writing of this name, when there is one."""
        with self._lock:
            writing = self._open.get(name)
        if writing is not None:
            writing.close("taken over by a newer session of yours")

    def forget(self, name: str, writing: Writing) -> None:
        """Note that a Writing has ended."""
        with self._lock:
            if self._open.get(name) is writing:
                del self._open[name]


class StagedTarget:
    """An object in a file of the store's stage: gone when it is not committed. `size` None: as long as it comes."""

    def __init__(self, store: Store, key: str, size: int | None) -> None:
        self._store = store
        self._key = key
        self._sha256 = parse_key(key)
        self._size = size
        self._room = Room(store.ledger, size or 0)
        self._path = store.root / "stage" / f"{secrets.token_hex(12)}.part"
        try:
            with disk_errors(key):
                self.landing = Landing(create(self._path), rewrite=size is None, key=key)
        except BaseException:
            self._room.give_back()
            raise

    def reserve(self, end: int) -> None:
        """See Target."""
        if self._size is not None and end > self._size:
            raise Refused("more bytes than announced", key=self._key)
        self._room.reach(end)

    def sync(self) -> None:
        """Nothing: what is staged is thrown away at the next start."""

    def commit(self) -> tuple[Stored, bool]:
        """See Target."""
        try:
            size = self.landing.front
            if self._size not in (None, size) or size != self.landing.end:
                raise Refused("fewer bytes than announced", key=self._key)
            if self.landing.digest() != self._sha256:
                raise Corrupt("the bytes sent do not have the key's SHA-256", key=self._key)
            with disk_errors(self._key):
                # The folders first: syncing the file then syncs them too on a journalling file system
                self._store.prepare(self._key)
                os.fsync(self.landing.fd)
        except BaseException:
            self.drop()
            raise
        os.close(self.landing.fd)
        self._room.fit(size)
        try:
            return self._store.adopt(self._path, self._key, size)
        finally:
            self._path.unlink(missing_ok=True)

    def keep(self) -> None:
        """See Target: nothing can be kept."""
        self.drop()

    def drop(self) -> None:
        """See Target."""
        os.close(self.landing.fd)
        self._path.unlink(missing_ok=True)
        self._room.give_back()


class UploadTarget:
    """A large object of known size in a resumable upload of its owner."""

    def __init__(self, uploads: Uploads, spec: ObjectSpec, owner: str) -> None:
        self._uploads = uploads
        self._spec = spec
        self._owner = owner
        self._ident, _ = uploads.begin(spec, owner)
        with disk_errors(spec.key):
            fd, before = uploads.open_missing(self._ident, owner)
        self.landing = Landing(fd, received=before.received, key=spec.key)

    def reserve(self, end: int) -> None:
        """See Target."""
        if end > self._spec.size:
            raise Refused("more bytes than announced", key=self._spec.key)

    def sync(self) -> None:
        """See Target."""
        came = self.landing.received
        with disk_errors(self._spec.key):
            os.fdatasync(self.landing.fd)
        self._uploads.note(self._ident, self._owner, came)

    def commit(self) -> tuple[Stored, bool]:
        """See Target."""
        whole = self.landing.front == self._spec.size
        digest = None
        try:
            digest = self.landing.digest() if whole else None
        finally:
            self.keep()
        return self._uploads.commit(self._ident, self._owner, digest=digest), True

    def keep(self) -> None:
        """See Target."""
        came = Ranges()
        try:
            with disk_errors(self._spec.key):
                os.fdatasync(self.landing.fd)
            came = self.landing.received
        finally:
            os.close(self.landing.fd)
            self._uploads.settle(self._ident, self._owner, came)

    def drop(self) -> None:
        """See Target."""
        os.close(self.landing.fd)
        self._uploads.settle(self._ident, self._owner, Ranges())
        self._uploads.abort(self._ident, self._owner)
