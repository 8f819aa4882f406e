"""Small disk manners shared by the store and the uploads: durable renames, exclusive files, disk-full as an error."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from storage_provider.errors import LocalFault, NoSpace

Pathlike = Path | str
"""Strings where an object passes: a Path costs 5 to 10 microseconds for each step, a system call often less."""


def fsync_dir(path: Pathlike) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync(path: Pathlike) -> None:
    """Make a file's bytes durable."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# Linux's FS_IOC_GETFLAGS and FS_IOC_SETFLAGS, and the flag that `chattr +T` sets
_GET_FLAGS, _SET_FLAGS, _TOP = 0x80086601, 0x40086602, 0x00020000


def make_apart(folder: Path) -> None:
    """Make a folder in a part of the disk of its own; an empty one that is there is replaced, any other kept.

    ext4 puts files near their folder, and folders near their parent. Without a journal it then looks at every inode
    that was freed there within some minutes before it makes a file: 0.3 to 0.9 ms beside a spool that frees a thousand
    files, 0.03 ms apart from it (measured). Folders below one with the flag T are spread by the hash of their name,
    so the name is drawn by lot and changed afterwards. Other file systems do not know the flag and do not mind.
    """
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(OSError):
        _spread(folder.parent)
    fresh = folder.parent / f".{secrets.token_hex(8)}"
    fresh.mkdir(mode=0o700)
    try:
        os.rename(fresh, folder)
    except OSError:  # not empty, or a mount point
        fresh.rmdir()
        folder.mkdir(mode=0o700, exist_ok=True)


def _spread(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flags = bytearray(8)
        fcntl.ioctl(fd, _GET_FLAGS, flags)
        there = int.from_bytes(flags[:4], sys.byteorder)
        if not there & _TOP:
            fcntl.ioctl(fd, _SET_FLAGS, (there | _TOP).to_bytes(4, sys.byteorder))
    finally:
        os.close(fd)


def create(path: Pathlike) -> int:
    """Open a new private file for reading and writing; it must not exist."""
    return os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def write_at(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at `offset` (pwrite may be short)."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written


class Folders:
    """Makes the folders below `top` durable, each once; thread-safe (doing it twice is harmless)."""

    def __init__(self, top: Pathlike) -> None:
        self._durable = {str(top)}
        self._made: set[str] = set()

    def make(self, folder: str) -> None:
        """Make a folder and its parents; they are durable only after `settle`."""
        if folder in self._durable or folder in self._made:
            return
        try:
            os.mkdir(folder, 0o700)
        except FileExistsError:
            pass
        except FileNotFoundError:
            self.make(os.path.dirname(folder))
            with suppress(FileExistsError):
                os.mkdir(folder, 0o700)
        self._made.add(folder)

    def settle(self, folder: str) -> None:
        """Make sure that the folder survives power loss: sync the names of each one above it, from the top."""
        if folder not in self._durable:
            parent = os.path.dirname(folder)
            self.settle(parent)
            fsync_dir(parent)
            self._durable.add(folder)
            self._made.discard(folder)


def publish(source: Pathlike, target: str, folders: Folders) -> None:
    """Rename a synced file to its final name, durably; missing folders are made."""
    folder = os.path.dirname(target)
    folders.make(folder)
    folders.settle(folder)
    os.replace(source, target)
    fsync_dir(folder)


def replace_file(path: Path, data: bytes) -> None:
    """Write a small file whole by temporary name and rename; after a crash it holds the old or the new content."""
    temporary = path.with_name(path.name + ".new")
    fd = os.open(temporary, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        write_at(fd, data, 0)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(temporary, path)


@contextmanager
def disk_errors(key: str) -> Iterator[None]:
    """Turn the kernel's words into ours: ENOSPC and EDQUOT are NoSpace, any other OSError a LocalFault."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace("the disk is full", key=key) from error
        raise LocalFault(f"disk: {error.strerror or type(error).__name__}", key=key) from error
