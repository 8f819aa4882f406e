"""SHA-256 of files, whole and per chunk, with flat memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from storage_provider.errors import Cancelled, LocalFault

CHUNK_BYTES = 4 * 1024 * 1024
READ_BYTES = 1024 * 1024


def chunk_count(size: int) -> int:
    """Return how many chunk digests an object of this size carries (none up to one chunk)."""
    return 0 if size <= CHUNK_BYTES else -(-size // CHUNK_BYTES)


def blocks(fd: int, *, offset: int, length: int, block: int = READ_BYTES) -> Iterator[bytes]:
    """Yield `length` bytes of an open file from `offset`; raise LocalFault when the file is shorter."""
    position, stop = offset, offset + length
    while position < stop:
        data = os.pread(fd, min(block, stop - position), position)
        if not data:
            raise LocalFault(f"the file ends {stop - position} bytes early")
        yield data
        position += len(data)


def sha256_of(path: Path, *, offset: int = 0, length: int | None = None, stop: Callable[[], bool] | None = None) -> str:
    """Return the SHA-256 of (a part of) a file as it is on disk now; `stop` makes it raise Cancelled."""
    digest = hashlib.sha256()
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        span = os.fstat(fd).st_size - offset if length is None else length
        for data in blocks(fd, offset=offset, length=span):
            if stop is not None and stop():
                raise Cancelled("checksum stopped")
            digest.update(data)
    finally:
        os.close(fd)
    return digest.hexdigest()


def digests_of(path: Path, *, size: int, offset: int = 0) -> tuple[str, tuple[str, ...]]:
    """Return (sha256, chunk digests) of `size` bytes of a file, in one pass; the chunks are () for a small object."""
    whole = hashlib.sha256()
    chunks: list[str] = []
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for data in blocks(fd, offset=offset, length=size, block=CHUNK_BYTES):
            whole.update(data)
            chunks.append(hashlib.sha256(data).hexdigest())
    finally:
        os.close(fd)
    return whole.hexdigest(), tuple(chunks) if size > CHUNK_BYTES else ()
