"""Bytes landing in one file at any offset from several threads, hashed in order as the gapless front grows.

So the digest is nearly done when the last byte comes, also when several streams interleave: what came early is read
back from the page cache once the gap before it closes.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from storage_provider.checksum import READ_BYTES, blocks
from storage_provider.disk import disk_errors, write_at
from storage_provider.errors import Conflict, LocalFault, Refused
from storage_provider.ranges import Ranges, Span

# So scattered a file costs memory; no transfer has as many gaps
_MOST_SPANS = 1024


class Landing:
    """A file that bytes land in; thread-safe. Whoever opens `fd` (and sets it anew after a close) closes it.

    `received` is what an earlier try left in the file. With `rewrite` bytes that came before are replaced by what comes
    now; without it they must be the same (Conflict).
    """

    def __init__(self, fd: int, *, received: Ranges | None = None, rewrite: bool = False, key: str = "") -> None:
        self.fd = fd
        self._key = key
        self._rewrite = rewrite
        self._lock = threading.Lock()
        self._turn = threading.Condition()
        self._under_way: list[Span] = []
        self._received = received or Ranges()
        self._digest = hashlib.sha256()
        self._hashed = 0
        self._hashing = False
        self._spoilt = False
        self.torn = False
        """Whether there may be bytes in the file beyond those that count: of a write that failed, or was cut off."""

    @property
    def received(self) -> Ranges:
        """What is in the file."""
        return self._received

    @property
    def front(self) -> int:
        """Up to where the file has no gap."""
        spans = self._received.spans
        return spans[0][1] if spans and spans[0][0] == 0 else 0

    @property
    def end(self) -> int:
        """Where the last byte of the file is."""
        spans = self._received.spans
        return spans[-1][1] if spans else 0

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write bytes at an offset; Refused when they are too scattered."""
        view = memoryview(data)
        end = offset + len(view)
        with disk_errors(self._key):
            try:
                with self._alone(offset, end):
                    for start, stop in self._meet(offset, view):
                        write_at(self.fd, view[start - offset : stop - offset], start)
                    with self._lock:
                        self._received = self._received.add(offset, end)
                        if len(self._received.spans) > _MOST_SPANS:
                            raise Refused("the bytes come in too many scattered pieces", key=self._key)
            except BaseException:
                self.torn = True
                raise
            self._follow(offset, view)

    def cut(self, size: int) -> None:
        """Forget what lies beyond `size`."""
        with self._lock:
            self._received = self._received.intersect(0, size)
            self._spoilt = self._spoilt or self._hashed > size
            self.torn = True

    def digest(self) -> str:
        """Return the SHA-256 of the gapless front, when nobody is writing; reads what was not hashed on the way."""
        with disk_errors(self._key):
            if self._spoilt:
                self._digest, self._hashed, self._spoilt = hashlib.sha256(), 0, False
            for block in blocks(self.fd, offset=self._hashed, length=self.front - self._hashed):
                self._digest.update(block)
                self._hashed += len(block)
        return self._digest.hexdigest()

    @contextmanager
    def _alone(self, start: int, stop: int) -> Iterator[None]:
        """Wait until nobody else writes to this place: else the one's bytes are hashed and the other's kept."""
        mine = (start, stop)
        with self._turn:
            self._turn.wait_for(lambda: not any(a < stop and b > start for a, b in self._under_way))
            self._under_way.append(mine)
        try:
            yield
        finally:
            with self._turn:
                self._under_way.remove(mine)
                self._turn.notify_all()

    def _meet(self, offset: int, view: memoryview) -> tuple[Span, ...]:
        """See to bytes for a place that has some already; returns the spans to be written."""
        end = offset + len(view)
        overlap = self._received.intersect(offset, end)
        if not overlap:
            return ((offset, end),)
        if self._rewrite:
            with self._lock:
                self._spoilt = True
            return ((offset, end),)
        for start, stop in overlap:
            if os.pread(self.fd, stop - start, start) != view[start - offset : stop - offset]:
                raise Conflict("the bytes differ from those received before for the same range", key=self._key)
        return self._received.missing(offset, end).spans

    def _follow(self, offset: int, view: memoryview) -> None:
        """Hash on along the front; one thread at a time does it, for whatever the others brought meanwhile."""
        with self._lock:
            if self._hashing or self._spoilt or offset > self._hashed:
                return
            self._hashing = True
        try:
            while self._hash_block(offset, view):
                pass
        except BaseException:
            self._hashing = False
            raise

    def _hash_block(self, offset: int, view: memoryview) -> bool:
        with self._lock:
            at, front = self._hashed, self.front
            if at >= front or self._spoilt:
                self._hashing = False
                return False
        if offset <= at < offset + len(view):
            block: bytes | memoryview = view[at - offset :]
        else:
            block = os.pread(self.fd, min(READ_BYTES, front - at), at)
        if not block:
            raise LocalFault("the file became shorter while it was written", key=self._key)
        self._digest.update(block)
        self._hashed = at + len(block)
        return True
