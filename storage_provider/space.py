"""Room accounting of one area: quota, reserve and what is promised to uploads under way."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from storage_provider.channel import Space
from storage_provider.errors import NoSpace


class Ledger:
    """Counts bytes used and promised; thread-safe.

    `quota` bounds what the area may hold (None: the file system does); `reserve` bytes of the file system stay free.
    """

    def __init__(self, root: Path, *, quota: int | None, reserve: int, used: int) -> None:
        self._root = root
        self._quota = quota
        self._reserve = reserve
        self._used = used
        self._promised = 0
        self._lock = threading.Lock()

    def promise(self, size: int, *, allocated: bool = False) -> None:
        """Set room aside for an object about to be written; NoSpace when there is none.

        `allocated` skips the file system's side: the blocks are already taken (an upload found at start).
        """
        disk_free = None if allocated else self._disk_free()
        with self._lock:
            if not allocated and self._quota is not None and self._used + self._promised + size > self._quota:
                raise NoSpace("the area's quota is used up")
            if disk_free is not None and disk_free < size:
                raise NoSpace("the disk is full (the reserve is kept)")
            self._promised += size

    def release(self, size: int) -> None:
        """Give promised room back."""
        with self._lock:
            self._promised -= size

    def keep(self, size: int, *, replaced: int = 0) -> None:
        """Turn promised room into used room, when an object of `replaced` bytes went away for it."""
        with self._lock:
            self._promised -= size
            self._used += size - replaced

    def freed(self, size: int) -> None:
        """Note that an object was deleted."""
        with self._lock:
            self._used -= size

    def space(self) -> Space:
        """Return total, free and used bytes as callers may count on them."""
        disk_free = self._disk_free()
        with self._lock:
            used, taken = self._used, self._used + self._promised
        if self._quota is None:
            return Space(total=used + disk_free, free=disk_free, used=used)
        return Space(total=self._quota, free=max(0, min(self._quota - taken, disk_free)), used=used)

    def _disk_free(self) -> int:
        status = os.statvfs(self._root)
        return max(0, status.f_bavail * status.f_frsize - self._reserve)


_STEP_BYTES = 8 * 1024 * 1024


class Room:
    """Room promised to one growing file; thread-safe."""

    def __init__(self, ledger: Ledger, size: int = 0, *, allocated: bool = False) -> None:
        self._ledger = ledger
        self._lock = threading.Lock()
        ledger.promise(size, allocated=allocated)
        self._size = size

    def reach(self, end: int) -> None:
        """Have room for `end` bytes, and some ahead where there is; NoSpace when there is none."""
        with self._lock:
            if end <= self._size:
                return
            ahead = min(max(end, 2 * self._size), end + _STEP_BYTES)
            try:
                self._ledger.promise(ahead - self._size)
            except NoSpace:
                ahead = end
                self._ledger.promise(ahead - self._size)
            self._size = ahead

    def fit(self, size: int) -> None:
        """Promise exactly `size`, no more than is promised already."""
        with self._lock:
            self._ledger.release(self._size - size)
            self._size = size

    def give_back(self) -> None:
        """End: all of it."""
        self.fit(0)
