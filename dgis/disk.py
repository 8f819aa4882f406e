"""Small durable-file helpers: shared directory syncs, locked work directories, files replaced by rename."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import sys
import threading
from pathlib import Path

from dgis.errors import SpoolError, SpoolFull, SpoolLocked

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def spool_error(error: OSError, doing: str) -> SpoolError:
    """Return the spool's own error for `error`: SpoolFull for a full disk or quota, else SpoolError."""
    reason = f"{doing}: {error.strerror or error}"
    return SpoolFull(reason) if error.errno in _FULL else SpoolError(reason)


def fsync_directory(path: Path) -> None:
    """Make the names in `path` survive power loss."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class SharedSync:
    """One directory whose fsync several threads share (group commit).

    `wait` returns once an fsync that *began* after the call has ended, so that every rename done before it is durable.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changed = threading.Condition()
        self._begun = 0
        self._done = 0
        self._running = False
        self._failed: dict[int, OSError] = {}

    def wait(self) -> None:
        """Raise OSError when the fsync that covers this call failed."""
        with self._changed:
            wanted = self._begun + 1
            while self._done < wanted:
                if self._running:
                    self._changed.wait()
                else:
                    self._run()
            error = next((e for n, e in self._failed.items() if n >= wanted), None)
        if error is not None:
            raise error

    def _run(self) -> None:
        self._running = True
        self._begun += 1
        mine, error = self._begun, None
        self._changed.release()
        try:
            fsync_directory(self._path)
        except OSError as caught:
            error = caught
        finally:
            self._changed.acquire()
            self._running = False
            self._done = mine
            self._failed = {mine: error} if error is not None else {}
            self._changed.notify_all()


# Linux's FS_IOC_GETFLAGS and FS_IOC_SETFLAGS, and the flag that `chattr +T` sets
_GET_FLAGS, _SET_FLAGS, _TOP = 0x80086601, 0x40086602, 0x00020000
_A_PART = 2048


def spread(folder: Path) -> None:
    """Have what is made in `folder` lie in parts of the disk of its own, where the file system knows that (ext4)."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            flags = bytearray(8)
            fcntl.ioctl(fd, _GET_FLAGS, flags)
            there = int.from_bytes(flags[:4], sys.byteorder)
            fcntl.ioctl(fd, _SET_FLAGS, (there | _TOP).to_bytes(4, sys.byteorder))
        finally:
            os.close(fd)


class Lock:
    """An flock on `path`, held until `release` or the end of the process; take it after fork, not before."""

    def __init__(self, path: Path, *, wait: bool = False) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._fd)
            raise SpoolLocked(f"{path.name} is held by another process") from error

    def release(self) -> None:
        """Give the lock back; safe to call twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class WorkDirectory:
    """A private directory below `parent`, locked while this process lives.

    What crashed processes left below `parent` is removed when one is made, so nothing half-done ever piles up.
    """

    def __init__(self, parent: Path) -> None:
        parent.mkdir(parents=True, exist_ok=True)
        gate = Lock(parent / ".gate", wait=True)
        try:
            remove_stale(parent, gate=gate)
            self.token = f"{os.getpid()}-{secrets.token_hex(4)}"
            self.path = parent / self.token
            self.path.mkdir(mode=0o700)
            self._lock = Lock(self.path / ".lock")
        finally:
            gate.release()

    def close(self) -> None:
        """Remove the directory and everything in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.release()


class Numbered:
    """Numbered names for new files in folders below a work directory, a fresh folder for every 2048. Thread-safe.

    ext4 makes a file near its folder, and without a journal it first looks at every inode that was freed there in the
    last minutes: up to 0.5 ms a file beside a spool that frees thousands, 0.01 ms in a folder elsewhere (measured).
    """

    def __init__(self) -> None:
        """Make nothing yet."""
        self._lock = threading.Lock()
        self._work: WorkDirectory | None = None
        self._folders: list[str] = []
        self._count = 0

    def next(self, work: WorkDirectory) -> tuple[str, str]:
        """Return (path, name) of a file to make below `work`; the name is of this process alone. Raises OSError."""
        with self._lock:
            if work is not self._work:
                spread(work.path)
                self._work, self._folders = work, []
            if not self._folders or self._count % _A_PART == 0:
                self._turn(work)
            self._count += 1
            return f"{self._folders[-1]}/{self._count:08d}", f"{work.token}-{self._count:08d}"

    def _turn(self, work: WorkDirectory) -> None:
        # An object may still be under way there. The last folder stays until the next turn even when it is empty:
        # whoever was just given a name in it may not have made the file yet
        left = [folder for folder in self._folders[:-1] if not _removed(folder)] + self._folders[-1:]
        folder = os.fspath(work.path / secrets.token_hex(4))
        os.mkdir(folder, 0o700)
        self._folders = [*left, folder]


def _removed(folder: str) -> bool:
    with contextlib.suppress(OSError):
        os.rmdir(folder)
        return True
    return False


class ProcessDirectory:
    """The work directory of whatever process asks: a forked child gets one of its own. Thread-safe."""

    def __init__(self, parent: Path) -> None:
        """Make nothing yet."""
        self._parent = parent
        self._lock = threading.Lock()
        self._made: WorkDirectory | None = None
        self._pid = -1

    def get(self) -> WorkDirectory:
        """Return this process's directory, made at the first call. Raises OSError."""
        with self._lock:
            if self._made is None or self._pid != os.getpid():
                self._made, self._pid = WorkDirectory(self._parent), os.getpid()
            return self._made

    def close(self) -> None:
        """Remove it, if this process made one."""
        with self._lock:
            made, self._made = self._made, None
        if made is not None and self._pid == os.getpid():
            made.close()


def remove_stale(parent: Path, *, gate: Lock | None = None) -> int:
    """Remove the work directories below `parent` whose process is gone; returns how many.

    Pass the `gate` when it is already held; it keeps a directory that is just being made from being taken for stale.
    """
    held = gate or Lock(parent / ".gate", wait=True)
    removed = 0
    try:
        for directory in [d for d in parent.iterdir() if d.is_dir()]:
            try:
                lock = Lock(directory / ".lock")
            except (SpoolLocked, FileNotFoundError):
                continue
            shutil.rmtree(directory, ignore_errors=True)
            lock.release()
            removed += 1
    finally:
        if gate is None:
            held.release()
    return removed


def replace_file(path: Path, data: bytes) -> None:
    """Replace `path` by one rename; readers see the old bytes or the new ones, never a mixture."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(3)}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
