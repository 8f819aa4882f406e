"""The disk store of one area: committed objects by key, and the way in: stage, fsync, verify, rename, fsync the names.

    ROOT/.lock  one server per store     ROOT/objects/v1/ab/cd/<sha256>  committed, never written again
    ROOT/stage/*.part  on the way in, thrown away at start     ROOT/uploads/ID/  resumable (see uploads.py)
A kill at any instant leaves either the whole object under its key or nothing visible.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from storage_provider.channel import Space, Stat, Stored
from storage_provider.checksum import sha256_of
from storage_provider.disk import (
    Folders,
    Pathlike,
    create,
    disk_errors,
    fsync_dir,
    make_apart,
    publish,
    sync,
    write_at,
)
from storage_provider.errors import Corrupt, LocalFault, NotFound, Refused
from storage_provider.keys import is_sha256, object_key, parse_key, parse_prefix
from storage_provider.space import Ledger

_LOCKS = 64


class Store:
    """Objects of one area on a local file system; thread-safe; blocking (call it off the event loop)."""

    def __init__(self, root: Path, *, quota: int | None = None, reserve: int = 0) -> None:
        self.root = root
        self._objects = root / "objects"
        self._stage = root / "stage"
        self._locks = tuple(threading.Lock() for _ in range(_LOCKS))
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        fsync_dir(root.parent)
        self._guard = _claim(root)
        for directory in (self._objects, root / "uploads"):
            if not directory.exists():
                make_apart(directory)
        self._top = str(self._objects)
        self._folders = Folders(self._top)
        self._numbers = itertools.count()
        if self._stage.exists():
            for orphan in self._stage.iterdir():
                orphan.unlink()
        make_apart(self._stage)
        fsync_dir(root)
        used = sum(stat.st_size for _, stat in self._walk("", ""))
        self.ledger = Ledger(root, quota=quota, reserve=reserve, used=used)

    def close(self) -> None:
        """Give the store up to another process."""
        os.close(self._guard)

    def begin(self, key: str, size: int) -> Incoming:
        """Open the way in for one object of known size; NoSpace when there is no room for it."""
        sha256 = parse_key(key)
        self.ledger.promise(size)
        try:
            with disk_errors(key):
                path = Path(self.place())
                return Incoming(self, key=key, sha256=sha256, size=size, path=path, fd=create(path))
        except BaseException:
            self.ledger.release(size)
            raise

    def place(self) -> str:
        """Return a new name on the stage; it is emptied at start, and nobody else writes there."""
        return f"{self._stage}/{next(self._numbers):08x}.part"

    def put(self, key: str, data: memoryview) -> tuple[Stored, bool]:
        """Store an object whose bytes are all here, once: (what is there, whether it is new).

        The room must have been promised; it is settled here, also on failure. Corrupt when the digest is not the key's.
        """
        path, promised = self.place(), True
        try:
            if hashlib.sha256(data).hexdigest() != parse_key(key):
                raise Corrupt("the bytes sent do not have the key's SHA-256", key=key)
            with disk_errors(key):
                fd = create(path)
                try:
                    write_at(fd, data, 0)
                    # The folders first: syncing the file then syncs them too on a journalling file system
                    self.prepare(key)
                    os.fsync(fd)
                finally:
                    os.close(fd)
            promised = False
            return self.adopt(path, key, len(data))
        except BaseException:
            if promised:
                self.ledger.release(len(data))
            with suppress(FileNotFoundError):
                os.unlink(path)
            raise

    def adopt(self, source: Pathlike, key: str, size: int) -> tuple[Stored, bool]:
        """Take a synced, verified file of this file system in under its key; (what is there, whether it is new).

        The room must have been promised; it is settled here, also on failure. Idempotent: what is there already is
        read again and, when it is no longer what it should be, replaced.
        """
        target = f"{self._top}/{key}"
        settled = False
        try:
            with disk_errors(key), self._lock(key):
                existing = _size_of(target)
                if existing is not None and existing == size and sha256_of(Path(target)) == parse_key(key):
                    # Whoever brought it may have been killed between the rename and its folder's sync
                    fsync_dir(os.path.dirname(target))
                    os.unlink(source)
                    return self._stored(key, size), False
                publish(source, target, self._folders)
                self.ledger.keep(size, replaced=existing or 0)
                settled = True
            return self._stored(key, size), True
        finally:
            if not settled:
                self.ledger.release(size)

    def admit(self, key: str, size: int, bring: Callable[[Path], None]) -> tuple[Stored, bool]:
        """Take in an object that `bring` writes to a path of the stage; verified by re-reading it from disk."""
        parse_key(key)
        self.ledger.promise(size)
        path = Path(self.place())
        try:
            bring(path)
            with disk_errors(key):
                if _size_of(path) != size or sha256_of(path) != parse_key(key):
                    raise Corrupt("what was brought does not have the key's SHA-256", key=key)
                sync(path)
        except BaseException:
            path.unlink(missing_ok=True)
            self.ledger.release(size)
            raise
        return self.adopt(path, key, size)

    def prepare(self, key: str) -> None:
        """Make the folder that will hold an object."""
        self._folders.make(f"{self._top}/{key.rpartition('/')[0]}")

    def confirm(self, key: str, size: int) -> Stored | None:
        """Return the object when it is there and its size and re-read digest are right; None otherwise."""
        path = self._path(key)
        with disk_errors(key):
            if _size_of(path) != size or sha256_of(path) != parse_key(key):
                return None
        return self._stored(key, size)

    def open(self, key: str) -> tuple[int, int]:
        """Open a committed object for reading: (descriptor, size). The caller closes it."""
        try:
            fd = os.open(self._path(key), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise NotFound("no such object", key=key) from error
        return fd, os.fstat(fd).st_size

    def stat(self, key: str) -> Stat:
        """Return size and age of a committed object."""
        try:
            return _stat(key, os.stat(self._path(key), follow_symlinks=False))
        except FileNotFoundError as error:
            raise NotFound("no such object", key=key) from error

    def checksum(self, key: str, *, stop: Callable[[], bool] | None = None) -> tuple[str, int]:
        """Re-read an object: (SHA-256 as it is now, size)."""
        path = self._path(key)
        try:
            return sha256_of(path, stop=stop), path.stat().st_size
        except FileNotFoundError as error:
            raise NotFound("no such object", key=key) from error
        except OSError as error:
            raise LocalFault(f"disk: {error.strerror}", key=key) from error

    def delete(self, key: str) -> None:
        """Remove an object, durably."""
        path = self._path(key)
        with disk_errors(key), self._lock(key):
            size = _size_of(path)
            if size is None:
                raise NotFound("no such object", key=key)
            path.unlink()
            fsync_dir(path.parent)
        self.ledger.freed(size)

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[Stat]:
        """Yield objects whose key begins with `prefix` and comes after `after`, in key order, in bounded memory."""
        for key, stat in self._walk(parse_prefix(prefix), after):
            yield _stat(key, stat)

    def folders(self, inside: str) -> Iterator[str]:
        """Return the names of the layout's folders in `v1` or `v1/ab` that are there."""
        yield from _names(self._objects / parse_prefix(inside), 2)

    def space(self) -> Space:
        """Return the area's space."""
        return self.ledger.space()

    def set_aside(self, key: str) -> Path:
        """Move an object that is no longer what it should be out of sight, into ROOT/quarantine; return where."""
        path = self._path(key)
        away = self.root / "quarantine"
        with disk_errors(key), self._lock(key):
            size = _size_of(path)
            if size is None:
                raise NotFound("no such object", key=key)
            away.mkdir(mode=0o700, exist_ok=True)
            target = away / f"{parse_key(key)}.{secrets.token_hex(4)}"
            os.replace(path, target)
            fsync_dir(path.parent)
        self.ledger.freed(size)
        return target

    def _path(self, key: str) -> Path:
        parse_key(key)
        return self._objects / key

    def _lock(self, key: str) -> threading.Lock:
        return self._locks[int(key[-2:], 16) % _LOCKS]

    def _stored(self, key: str, size: int) -> Stored:
        return Stored(key=key, size=size, sha256=key[-64:], verified_at=datetime.now(UTC))

    def _walk(self, prefix: str, after: str) -> Iterator[tuple[str, os.stat_result]]:
        top = self._objects / "v1"
        for first in _names(top, 2):
            if not _may_hold(f"v1/{first}/", prefix, after):
                continue
            for second in _names(top / first, 2):
                if not _may_hold(f"v1/{first}/{second}/", prefix, after):
                    continue
                yield from _objects_in(top / first / second, prefix, after)


class Incoming:
    """One object on its way in. Ends with commit or abort; after an error it is aborted already.

    Thread-safe: the abort of a request that was given up waits for the thread that still writes to the descriptor.
    """

    def __init__(self, store: Store, *, key: str, sha256: str, size: int, path: Path, fd: int) -> None:
        self._store = store
        self._key = key
        self._sha256 = sha256
        self._size = size
        self._path = path
        self._fd = fd
        self._lock = threading.RLock()
        self._written = 0
        self._digest = hashlib.sha256()

    @property
    def path(self) -> Path:
        """Where the bytes are staged."""
        return self._path

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes; Refused when there are more than announced, or after the end."""
        with self._lock:
            self._write(data)

    def _write(self, data: bytes | memoryview) -> None:
        self._refuse_ended()
        try:
            if self._written + len(data) > self._size:
                raise Refused("more bytes than announced", key=self._key)
            with disk_errors(self._key):
                write_at(self._fd, data, self._written)
        except BaseException:
            self.abort()
            raise
        self._written += len(data)
        self._digest.update(data)

    def commit(self) -> tuple[Stored, bool]:
        """Verify, sync and rename: (what is there, whether it is new). Corrupt when the digest is not the key's."""
        with self._lock:
            return self._commit()

    def _commit(self) -> tuple[Stored, bool]:
        self._refuse_ended()
        try:
            if self._written != self._size:
                raise Refused("fewer bytes than announced", key=self._key)
            if self._digest.hexdigest() != self._sha256:
                raise Corrupt("the bytes sent do not have the key's SHA-256", key=self._key)
            with disk_errors(self._key):
                # The folders first: syncing the file then syncs them too on a journalling file system
                self._store.prepare(self._key)
                os.fsync(self._fd)
        except BaseException:
            self.abort()
            raise
        self._shut()
        try:
            return self._store.adopt(self._path, self._key, self._size)
        except BaseException:
            self._path.unlink(missing_ok=True)
            raise

    def abort(self) -> None:
        """Throw the staged bytes away and give the room back; harmless when ended already."""
        with self._lock:
            if self._fd >= 0:
                self._shut()
                self._path.unlink(missing_ok=True)
                self._store.ledger.release(self._size)

    def _refuse_ended(self) -> None:
        if self._fd < 0:
            raise Refused("this transfer was ended", key=self._key)

    def _shut(self) -> None:
        os.close(self._fd)
        self._fd = -1


def _claim(root: Path) -> int:
    fd = os.open(root / ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise LocalFault(f"another process serves the store {root}") from error
    return fd


def _size_of(path: Pathlike) -> int | None:
    try:
        return os.stat(path, follow_symlinks=False).st_size
    except FileNotFoundError:
        return None


def _stat(key: str, stat: os.stat_result) -> Stat:
    return Stat(key=key, size=stat.st_size, stored_at=datetime.fromtimestamp(stat.st_mtime, UTC))


def _names(directory: Path, length: int) -> list[str]:
    try:
        return sorted(name for name in os.listdir(directory) if len(name) == length)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _may_hold(folder: str, prefix: str, after: str) -> bool:
    inside = folder.startswith(prefix) or prefix.startswith(folder)
    return inside and folder >= after[: len(folder)]


def _objects_in(directory: Path, prefix: str, after: str) -> Iterator[tuple[str, os.stat_result]]:
    for name in _names(directory, 64):
        key = object_key(name) if is_sha256(name) else ""
        if key and key > after and key.startswith(prefix):
            try:
                yield key, os.stat(directory / name, follow_symlinks=False)
            except FileNotFoundError:
                continue  # deleted while we were listing
