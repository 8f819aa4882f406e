"""Small durable files: written in one step, and noticed when replaced."""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path

Signature = tuple[int, int, int, int]
# A file changed this recently may change again within the same tick of the file system's clock.
_RACY_NS = 20_000_000


def write_atomically(path: Path, data: bytes, *, mode: int) -> None:
    """Replace a file: staged beside it with ``mode``, fsynced, renamed, directory fsynced."""
    staged = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            os.fchmod(stream.fileno(), mode)
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(staged, path)
    except OSError:
        staged.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make renames in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def signature_of(path: Path) -> Signature | None:
    """Return a value that changes when the file or directory does; None: absent, or too fresh to tell."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    if abs(time.time_ns() - status.st_mtime_ns) < _RACY_NS:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size, status.st_ctime_ns
