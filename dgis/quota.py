"""How much the spool may still grow: its own limit, and the disk's reserve, over all processes that share it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from dgis.errors import SpoolFull

_SCAN_SECONDS = 2.0
_STATVFS_BYTES = 8 * 1024 * 1024


class SpoolRoom:
    """The space left for one process.

    Other processes are seen by a scan of the directory, at most every two seconds and never more than 2 % of the
    time; so the limit may be passed by what they receive meanwhile, the reserve is there for that. The disk is asked
    by statvfs.
    """

    def __init__(
        self, root: Path, *, limit_bytes: int | None, reserve_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`limit_bytes` None means: only the disk limits. `reserve_bytes` stay free on the disk."""
        self._root = root
        self._limit = limit_bytes
        self._reserve = reserve_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._used = 0
        self._next_scan = float("-inf")
        self._unasked = _STATVFS_BYTES

    def check(self) -> None:
        """Raise SpoolFull when not even a small object fits; asks the disk anew."""
        with self._lock:
            self._unasked = _STATVFS_BYTES
        self.take(1)

    def take(self, count: int) -> None:
        """Account for `count` bytes more; raises SpoolFull when they do not fit (then nothing is accounted)."""
        with self._lock:
            self._ask_disk(count)
            if self._limit is None:
                return
            if self._clock() >= self._next_scan:
                self._scan()
            if self._used + count > self._limit:
                raise SpoolFull("the spool's limit is reached")
            self._used += count

    def give_back(self, count: int) -> None:
        """Account for `count` bytes removed again."""
        with self._lock:
            self._used = max(0, self._used - count)

    def _ask_disk(self, count: int) -> None:
        self._unasked += count
        if self._unasked < _STATVFS_BYTES:
            return
        disk = os.statvfs(self._root)
        if disk.f_bavail * disk.f_frsize - count < self._reserve:
            raise SpoolFull("the disk's reserve is reached")
        self._unasked = 0

    def _scan(self) -> None:
        began = self._clock()
        self._used = sum(size for _, size, _ in walk(self._root))
        self._next_scan = self._clock() + max(_SCAN_SECONDS, 50 * (self._clock() - began))


def walk(root: Path) -> Iterable[tuple[str, int, float]]:
    """Yield (path, size, mtime) of every file below `root`; files that vanish meanwhile are left out."""
    waiting = [os.fspath(root)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                        continue
                    try:
                        info = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    yield entry.path, info.st_size, info.st_mtime
        except FileNotFoundError:
            continue
