"""The durable inbox that receivers and the worker share: a directory, and nothing else.

    incoming/<process>/   folders of objects being received; locked by their process, removed when it is gone
    inbox/                committed, not yet in the catalog; one rename puts an object here, names sort by arrival
    registered/ab/<sha>   in the catalog, not yet safe on enough storage elements; content-addressed
    rejected/             the catalog refused them; kept, with the reason beside (<name>.why)
    damaged/              spool files that cannot be read back; kept for the operator
    scratch/<process>/    objects fetched for a retrieve
    state/                the worker's lock, wake-up pipe and status board

Every step is one rename, so a kill or a power cut at any instant leaves whole objects only. UIDs never become names.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dgis.disk import Numbered, ProcessDirectory, SharedSync, fsync_directory, remove_stale, spool_error
from dgis.errors import DamagedEntry, SpoolFull
from dgis.incoming import Incoming, SpoolEntry
from dgis.quota import SpoolRoom, walk
from dgis.record import Arrival, SpoolRecord, read_record

__all__ = ["Arrival", "Backlog", "Incoming", "Spool", "SpoolEntry", "SpoolRecord"]

_DIRECTORIES = ("incoming", "inbox", "registered", "rejected", "damaged", "scratch", "state")
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class Backlog:
    """What is not yet both registered and copied. `unregistered` of `count` wait for the catalog."""

    count: int
    bytes: int
    oldest_seconds: float
    unregistered: int


class Spool:
    """One spool directory, shared by processes and threads; all methods are thread-safe.

    A forked child gets its own incoming/ directory at its first `begin`.
    """

    def __init__(self, root: Path, *, limit_bytes: int | None = None, reserve_bytes: int = 0) -> None:
        """Make the directories; raises SpoolError when they cannot be made or used."""
        self.root = root
        self._room = SpoolRoom(root, limit_bytes=limit_bytes, reserve_bytes=reserve_bytes)
        self._lock = threading.Lock()
        self._incoming = ProcessDirectory(root / "incoming")
        self._numbered = Numbered()
        self._inbox = os.fspath(root / "inbox")
        self._last_ns = 0
        try:
            for name in _DIRECTORIES:
                (root / name).mkdir(parents=True, exist_ok=True, mode=0o700)
            fsync_directory(root)
        except OSError as error:
            raise spool_error(error, f"cannot make the spool in {root}") from error
        self._inbox_sync = SharedSync(root / "inbox")

    # --- receiving ---------------------------------------------------------------------------------------------

    def begin(self, arrival: Arrival) -> Incoming:
        """Start one object. Raises SpoolFull before its first byte when there is no room, SpoolError, BadDataSet."""
        try:
            self._room.check()
            path, name = self._numbered.next(self._incoming.get())
        except OSError as error:
            raise spool_error(error, "cannot use the spool") from error
        return Incoming(arrival, path, room=self._room, publish=lambda record: self._publish(path, name, record))

    def full(self) -> str | None:
        """Say why nothing more fits now; None while something does."""
        try:
            self._room.check()
        except SpoolFull as error:
            return str(error)
        self._room.give_back(1)
        return None

    def close(self) -> None:
        """Remove this process's incoming/ directory."""
        self._incoming.close()

    def _publish(self, path: str, own_name: str, record: SpoolRecord) -> SpoolEntry:
        with self._lock:
            self._last_ns = max(self._last_ns + 1, time.time_ns())
            name = f"{self._last_ns:020d}-{own_name}"
            target = f"{self._inbox}/{name}"
            # Under the lock: a later name must not become visible before an earlier one of this process.
            os.rename(path, target)
        self._inbox_sync.wait()
        return SpoolEntry(name, Path(target), record)

    # --- the inbox ---------------------------------------------------------------------------------------------

    def inbox_names(self) -> list[str]:
        """Return the names in the inbox, oldest first."""
        return sorted(os.listdir(self.root / "inbox"))

    def read(self, name: str) -> SpoolEntry | None:
        """Return one inbox entry, None when it is gone. Raises DamagedEntry."""
        path = self.root / "inbox" / name
        try:
            return SpoolEntry(name, path, read_record(path))
        except FileNotFoundError:
            return None

    def inbox(self) -> Iterator[SpoolEntry]:
        """Yield the committed objects, oldest first; unreadable ones go to damaged/ and are left out."""
        for name in self.inbox_names():
            try:
                entry = self.read(name)
            except DamagedEntry:
                self.set_aside(self.root / "inbox" / name)
                continue
            if entry is not None:
                yield entry

    def pending(self, names: Iterable[str]) -> bool:
        """Say whether any of these entries is still in the inbox."""
        return any(os.path.lexists(f"{self._inbox}/{name}") for name in names)

    def still_pending(self, names: set[str]) -> set[str]:
        """Return those of `names` that are still in the inbox, with one listing."""
        return names.intersection(os.listdir(self._inbox)) if names else set()

    # --- after registration ------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the folders of registered/ at once: one costs half a millisecond, too much between two arrivals."""
        folder = self.root / "registered"
        there = set(os.listdir(folder))
        for name in (f"{number:02x}" for number in range(256)):
            if name not in there:
                (folder / name).mkdir(exist_ok=True, mode=0o700)
        fsync_directory(folder)

    def mark_registered(self, entry: SpoolEntry) -> Path:
        """Move an entry to registered/; an equal object that is already there is replaced. Idempotent by content."""
        target = self.registered_path(entry.record.sha256)
        try:
            os.replace(entry.path, target)
        except FileNotFoundError:  # the first object of its folder, or the entry is gone
            target.parent.mkdir(exist_ok=True, mode=0o700)
            os.replace(entry.path, target)
        return target

    def discard(self, entry: SpoolEntry) -> None:
        """Remove an inbox entry whose content is already safe elsewhere."""
        entry.path.unlink(missing_ok=True)

    def reject(self, entry: SpoolEntry, reason: str) -> Path:
        """Keep an entry that the catalog refused, with the reason beside it."""
        target = self.root / "rejected" / entry.name
        target.with_suffix(".why").write_text(reason + "\n", encoding="utf-8")
        os.replace(entry.path, target)
        return target

    def set_aside(self, path: Path) -> Path:
        """Move an unreadable spool file to damaged/, under its own name."""
        target = self.root / "damaged" / path.name
        os.replace(path, target)
        return target

    def find(self, sha256: str) -> Path | None:
        """Return the path of a registered object that is still here; it may go away at any time."""
        path = self.registered_path(sha256)
        return path if path.exists() else None

    def registered(self) -> Iterator[Path]:
        """Yield the registered objects that are still here, in no order."""
        for directory in sorted((self.root / "registered").iterdir()):
            yield from sorted(directory.iterdir())

    def free(self, sha256: str) -> None:
        """Remove a registered object; safe to repeat."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.registered_path(sha256))

    def rejected(self) -> tuple[tuple[str, str], ...]:
        """Return (name, reason) of what the catalog refused."""
        folder = self.root / "rejected"
        names = sorted(n for n in os.listdir(folder) if not n.endswith(".why"))
        return tuple((name, _read_text((folder / name).with_suffix(".why"))) for name in names)

    def rejected_count(self) -> int:
        """Count what the catalog refused."""
        return sum(1 for name in os.listdir(self.root / "rejected") if not name.endswith(".why"))

    def failed(self, entry: SpoolEntry) -> bool:
        """Say whether an entry ended in rejected/ or damaged/ instead of on its way to the storage elements."""
        damaged = self.root / "damaged"
        ends = (self.root / "rejected" / entry.name, damaged / entry.name, damaged / entry.record.sha256)
        return any(path.exists() for path in ends)

    def damaged(self) -> tuple[str, ...]:
        """Return the names of the unreadable files."""
        return tuple(sorted(os.listdir(self.root / "damaged")))

    def registered_path(self, sha256: str) -> Path:
        """Return where a registered object lies, there or not. ValueError when that is no digest."""
        if len(sha256) != 64 or not _HEX.issuperset(sha256):
            raise ValueError("not a SHA-256 in lower-case hex")
        return self.root / "registered" / sha256[:2] / sha256

    # --- looking -----------------------------------------------------------------------------------------------

    def backlog(self) -> Backlog:
        """Count what waits in inbox/ and registered/; walks both directories."""
        now, oldest, count, total, unregistered = time.time(), 0.0, 0, 0, 0
        for folder in ("inbox", "registered"):
            for _, size, mtime in walk(self.root / folder):
                count += 1
                total += size
                oldest = max(oldest, now - mtime)
            if folder == "inbox":
                unregistered = count
        return Backlog(count, total, oldest, unregistered)

    def remove_stale(self) -> int:
        """Remove what crashed processes left in incoming/ and scratch/; returns how many directories."""
        return remove_stale(self.root / "incoming") + remove_stale(self.root / "scratch")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
