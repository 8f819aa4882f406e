"""Parts: files under names of their owner's choice, on their way to become objects by a rename (gsiftp, sftp).

    ROOT/parts/<hash of the owner>/<name>.part      kept over restarts, thrown away a day after the last touch
A part belongs to the party that made it; nobody else sees it. Its length is that of its gapless front, so whoever finds
it may go on from there.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from storage_provider.channel import Stored
from storage_provider.disk import disk_errors
from storage_provider.errors import Corrupt, NotFound, Refused
from storage_provider.keys import parse_key
from storage_provider.landing import Landing
from storage_provider.ranges import Ranges
from storage_provider.space import Room
from storage_provider.store import Store
from storage_provider.uploads import EXPIRY_SECONDS
from storage_provider.wire import SINGLE_PUT_BYTES

MOST_PARTS = 2000  # of one owner: what a careless client can leave behind


@dataclass(slots=True)
class _Part:
    path: Path
    room: Room
    landing: Landing
    touched: float
    open: bool = False


@dataclass(frozen=True, slots=True)
class PartStat:
    """A part as listed."""

    name: str
    size: int
    modified: datetime


class Parts:
    """The parts of one store; thread-safe; blocking. Names come from `paths.parse_path`."""

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._root = store.root / "parts"
        self._clock = clock
        self._lock = threading.Lock()
        self._parts: dict[tuple[str, str], _Part] = {}
        self._root.mkdir(mode=0o700, exist_ok=True)
        for folder in self._root.iterdir():
            for path in folder.iterdir():
                self._reload(folder.name, path)

    def write(self, owner: str, name: str, *, size: int | None, fresh: bool) -> PartTarget:
        """Open a part for writing, new or to go on; `fresh` forgets what was there, `size` promises the room now."""
        self.expire()
        where = (_mark(owner), name)
        with self._lock:
            part = self._parts.get(where) or self._make(where)
            with disk_errors(name):
                part.landing.fd = os.open(part.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
                if fresh:
                    os.ftruncate(part.landing.fd, 0)
                    part.landing = Landing(part.landing.fd, rewrite=True)
                    part.room.fit(0)
            part.open, part.touched = True, self._clock()
        target = PartTarget(self, where, part.landing, part.room)
        try:
            part.room.reach(size or 0)
        except BaseException:
            target.drop()
            raise
        return target

    def stat(self, owner: str, name: str) -> PartStat:
        """Return length and age of a part; NotFound."""
        with self._lock:
            return _stat(name, self._known((_mark(owner), name)))

    def received(self, owner: str, name: str) -> Ranges:
        """Return what is there of a part, nothing when it does not exist."""
        with self._lock:
            part = self._parts.get((_mark(owner), name))
            return part.landing.received if part is not None else Ranges()

    def of(self, owner: str) -> list[PartStat]:
        """Return the owner's parts by name."""
        mark = _mark(owner)
        with self._lock:
            return [_stat(name, part) for (whose, name), part in sorted(self._parts.items()) if whose == mark]

    def open(self, owner: str, name: str) -> tuple[int, int]:
        """Open a part for reading: (descriptor, length). The caller closes it."""
        with self._lock:
            part = self._known((_mark(owner), name))
            with disk_errors(name):
                return os.open(part.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), part.landing.front

    def take(self, owner: str, name: str, key: str) -> tuple[Stored, bool]:
        """Make a closed part the object `key`: verified, synced, renamed. Corrupt throws the part away."""
        where = (_mark(owner), name)
        with self._lock:
            part = self._known(where)
            if part.open:
                raise Refused("the part is still being written", key=key)
            del self._parts[where]
        size = part.landing.front
        try:
            with disk_errors(key):
                part.landing.fd = os.open(part.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    if part.landing.digest() != parse_key(key):
                        raise Corrupt("the part does not have the key's SHA-256", key=key)
                    # The folders first: syncing the file then syncs them too on a journalling file system
                    self._store.prepare(key)
                    os.fsync(part.landing.fd)
                finally:
                    os.close(part.landing.fd)
        except BaseException:
            part.path.unlink(missing_ok=True)
            part.room.give_back()
            raise
        part.room.fit(size)
        try:
            return self._store.adopt(part.path, key, size)
        finally:
            part.path.unlink(missing_ok=True)

    def delete(self, owner: str, name: str) -> None:
        """Throw a part away that nobody is writing; NotFound."""
        where = (_mark(owner), name)
        with self._lock:
            if self._known(where).open:
                raise Refused("the part is still being written")
            self._drop(where)

    def expire(self) -> None:
        """Throw away what nobody touched for a day."""
        limit = self._clock() - EXPIRY_SECONDS
        with self._lock:
            for where, part in list(self._parts.items()):
                if part.touched < limit and not part.open:
                    self._drop(where)

    def ended(self, where: tuple[str, str], *, drop: bool) -> None:
        """Note that a writer has closed its part (called by PartTarget)."""
        with self._lock:
            part = self._parts[where]
            part.open, part.touched = False, self._clock()
            if drop:
                self._drop(where)

    def _make(self, where: tuple[str, str]) -> _Part:
        if sum(whose == where[0] for whose, _ in self._parts) >= MOST_PARTS:
            raise Refused(f"you have {MOST_PARTS} unfinished parts here; remove some")
        path = self._root / where[0] / where[1]
        with disk_errors(where[1]):
            path.parent.mkdir(mode=0o700, exist_ok=True)
        part = _Part(path, Room(self._store.ledger), Landing(-1, rewrite=True), self._clock())
        self._parts[where] = part
        return part

    def _known(self, where: tuple[str, str]) -> _Part:
        part = self._parts.get(where)
        if part is None:
            raise NotFound("no such part")
        return part

    def _drop(self, where: tuple[str, str]) -> None:
        part = self._parts.pop(where)
        part.path.unlink(missing_ok=True)
        part.room.give_back()

    def _reload(self, mark: str, path: Path) -> None:
        try:
            stat = path.stat()
        except OSError:
            return
        landing = Landing(-1, received=Ranges.of([(0, stat.st_size)]), rewrite=True)
        room = Room(self._store.ledger, stat.st_size, allocated=True)
        self._parts[mark, path.name] = _Part(path, room, landing, stat.st_mtime)


class PartTarget:
    """A part being written (see writing.Target)."""

    def __init__(self, parts: Parts, where: tuple[str, str], landing: Landing, room: Room) -> None:
        self._parts = parts
        self._where = where
        self._room = room
        self.landing = landing

    def reserve(self, end: int) -> None:
        """See Target."""
        self._room.reach(end)

    def sync(self) -> None:
        """See Target."""
        with disk_errors(self._where[1]):
            os.fdatasync(self.landing.fd)

    def commit(self) -> None:
        """See Target."""
        try:
            self.sync()
        finally:
            self.keep()

    def keep(self) -> None:
        """Keep the gapless front; a large one is synced, so that it is there after a power failure."""
        front = self.landing.front
        try:
            with disk_errors(self._where[1]):
                if self.landing.end > front:
                    os.ftruncate(self.landing.fd, front)
                    self.landing.cut(front)
                if front > SINGLE_PUT_BYTES:
                    os.fdatasync(self.landing.fd)
            self._room.fit(front)
        finally:
            os.close(self.landing.fd)
            self._parts.ended(self._where, drop=False)

    def drop(self) -> None:
        """See Target."""
        os.close(self.landing.fd)
        self._parts.ended(self._where, drop=True)


def _mark(owner: str) -> str:
    return hashlib.sha256(owner.encode()).hexdigest()[:32]


def _stat(name: str, part: _Part) -> PartStat:
    return PartStat(name, part.landing.front, datetime.fromtimestamp(part.touched, UTC))
