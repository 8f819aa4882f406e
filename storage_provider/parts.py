"""Parts: files under names of their owner's choice, on their way to become objects by a rename (gsiftp, sftp).

    ROOT/parts/<hash of the owner>/<name>.part      kept over restarts, thrown away a day after the last touch
                                  /<name>.part.open    while somebody writes it: it may have gaps, whatever its length
                                  /<name>.part.front   how far an open one was gapless and synced at last
                                  /<name>.part.<hex>.taken   on its way to be an object: no session can open it
A part belongs to the party that made it; nobody else sees it. Its length is that of its gapless front, so whoever finds
it may go on from there: after a kill, too, where only a journalled front counts. At most one descriptor that can write
is open of a part (PartTarget has it), and none once it is taken.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from storage_provider.channel import Stored
from storage_provider.disk import disk_errors, fsync_dir, replace_file
from storage_provider.errors import Busy, Corrupt, LocalFault, NotFound, Refused
from storage_provider.keys import parse_key
from storage_provider.landing import Landing
from storage_provider.ranges import Ranges
from storage_provider.space import Room
from storage_provider.store import Store
from storage_provider.uploads import EXPIRY_SECONDS
from storage_provider.wire import SINGLE_PUT_BYTES

MOST_PARTS = 2000  # of one owner: what a careless client can leave behind
_OPEN, _FRONT, _TAKEN = ".open", ".front", ".taken"
_LONGEST_FRONT = 20


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
        self._taking: list[tuple[str, str]] = []
        self._root.mkdir(mode=0o700, exist_ok=True)
        for folder in self._root.iterdir():
            restore(folder)
            for path in folder.iterdir():
                self._reload(folder.name, path)

    def write(self, owner: str, name: str, *, size: int | None, fresh: bool) -> PartTarget:
        """Open a part for writing, new or to go on; `fresh` forgets what was there, `size` promises the room now.

        Busy while another writer has it (whose Writing must have ended, see writing.Writers).
        """
        self.expire()
        where = (_mark(owner), name)
        with self._lock:
            part = self._parts.get(where)
            if part is None:
                part = self._make(where)
            elif part.open:
                raise Busy("the part is being written")
            try:
                with disk_errors(name):
                    _reopen(part, fresh=fresh)
            except BaseException:
                if not part.path.exists():
                    self._drop(where)
                raise
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
        """Make a closed part the object `key`: verified, synced, renamed. Corrupt throws the part away.

        From here on the file has a name that no session can open, so that a new part of the old name is another file:
        nothing can write to what is digested. Busy while an earlier call of the same part is at it.
        """
        where = (_mark(owner), name)
        with self._lock:
            if where in self._taking and where not in self._parts:
                raise Busy("the part is being verified", key=key)
            part = self._known(where)
            if part.open:
                raise Refused("the part is still being written", key=key)
            with disk_errors(key):
                private = part.path.with_name(f"{name}.{secrets.token_hex(8)}{_TAKEN}")
                os.rename(part.path, private)
            part.path = private
            del self._parts[where]
            self._taking.append(where)
        try:
            return self._publish(part, key)
        finally:
            with self._lock:
                self._taking.remove(where)

    def _publish(self, part: _Part, key: str) -> tuple[Stored, bool]:
        size = part.landing.front
        try:
            with disk_errors(key):
                part.landing.fd = os.open(part.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    if os.fstat(part.landing.fd).st_size != size:
                        raise Corrupt("the part's length is not what was written", key=key)
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
                return
            try:
                with disk_errors(where[1]):
                    _rename(part, part.path.with_name(where[1]))
                    _front_of(part.path).unlink(missing_ok=True)
            except BaseException:
                self._drop(where)
                raise

    def front_path(self, where: tuple[str, str]) -> Path:
        """Where the front of an open part is journalled (for PartTarget)."""
        return self._root / where[0] / (where[1] + _FRONT)

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
        part.path.with_name(where[1] + _FRONT).unlink(missing_ok=True)
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
        self._front = parts.front_path(where)
        self._journalled = 0
        self._syncing = threading.Lock()
        self._lost = False
        self.landing = landing

    def reserve(self, end: int) -> None:
        """See Target."""
        self._room.reach(end)

    def sync(self) -> None:
        """See Target; also journals how far the part is gapless."""
        with self._syncing:
            front = self.landing.front
            self._sync()
            if front != self._journalled:
                with disk_errors(self._where[1]):
                    replace_file(self._front, b"%d" % front)
                self._journalled = front

    def commit(self) -> None:
        """See Target."""
        self._end(sync=True)

    def keep(self) -> None:
        """Keep the gapless front; a large one is synced, so that it is there after a power failure."""
        self._end(sync=self.landing.front > SINGLE_PUT_BYTES)

    def drop(self) -> None:
        """See Target."""
        self._shut()
        self._parts.ended(self._where, drop=True)

    def _end(self, *, sync: bool) -> None:
        front = self.landing.front
        try:
            with disk_errors(self._where[1]):
                # A write that failed half way leaves more than `landing` knows of
                os.ftruncate(self.landing.fd, front)
            self.landing.cut(front)
            if sync or self._lost:
                self._sync()
            self._room.fit(front)
        except BaseException:
            self.drop()
            raise
        self._shut()
        self._parts.ended(self._where, drop=False)

    def _sync(self) -> None:
        if self._lost:
            raise LocalFault("disk: an earlier sync failed")
        try:
            with disk_errors(self._where[1]):
                os.fdatasync(self.landing.fd)
        except BaseException:
            self._lost = True  # the disk says it once only
            raise

    def _shut(self) -> None:
        fd, self.landing.fd = self.landing.fd, -1
        os.close(fd)


def restore(folder: Path) -> None:
    """Make closed parts again of what a kill left in a folder; an open one is as long as was journalled."""
    for path in sorted(folder.glob(f"*{_OPEN}")):
        closed = folder / path.name.removesuffix(_OPEN)
        found, front = path.stat(), _journalled(_front_of(path))
        if front and not closed.exists():
            os.truncate(path, min(front, found.st_size))
            os.utime(path, (found.st_atime, found.st_mtime))
            path.rename(closed)
    for path in sorted(folder.glob(f"*{_TAKEN}")):
        closed = folder / path.name.rsplit(".", 2)[0]
        if not closed.exists():
            path.rename(closed)
    for path in folder.iterdir():
        if path.suffix != ".part":
            path.unlink()


def _reopen(part: _Part, *, fresh: bool) -> None:
    """Open a part's file under its open name; a kill from now on leaves its journalled front."""
    front, journal = part.landing.front, _front_of(part.path)
    if front > SINGLE_PUT_BYTES and not fresh:
        replace_file(journal, b"%d" % front)
    elif journal.exists():
        journal.unlink()  # of what is overwritten now: it must not come back
        fsync_dir(journal.parent)
    opened = part.path.with_name(part.path.name.removesuffix(_OPEN) + _OPEN)
    if part.path.exists():
        _rename(part, opened)
    part.path = opened
    fd = os.open(part.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        if fresh:
            os.ftruncate(fd, 0)
            part.room.fit(0)
            part.landing = Landing(fd, rewrite=True)
    except BaseException:
        os.close(fd)
        raise
    part.landing.fd = fd


def _rename(part: _Part, to: Path) -> None:
    os.rename(part.path, to)
    part.path = to


def _front_of(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(_OPEN) + _FRONT)


def _journalled(path: Path) -> int:
    try:
        text = path.read_bytes()
    except OSError:
        return 0
    return int(text) if text.isdigit() and len(text) < _LONGEST_FRONT else 0


def _mark(owner: str) -> str:
    return hashlib.sha256(owner.encode()).hexdigest()[:32]


def _stat(name: str, part: _Part) -> PartStat:
    return PartStat(name, part.landing.front, datetime.fromtimestamp(part.touched, UTC))
