"""The local store of the audit trail: append-only files whose lines are chained by SHA-256.

A line is ``{"seq": n, "prev": HASH, "xml": MESSAGE}``; HASH is the SHA-256 of the line before, of the newest file
before in the first line of a file. Every run of a process begins a file. What `record` takes is on disk within half a
second, or before it returns when the caller waits. Nothing is lost silently: what cannot be written is held while
there is room, refused or counted as the site decided, and told in the trail as soon as it can be.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from certs.audit.event import Event
from certs.audit.message import Source, write
from certs.errors import CertsError, ConfigError
from certs.log import get_log

WhenFull = Literal["refuse", "continue"]
FIRST: Final = "0" * 64
_FLUSH_SECONDS = 0.5
_WAIT_SECONDS = 10.0
_MOST_HELD = 10_000
_TELL_SECONDS = 10.0

log = get_log()


class AuditUnavailable(CertsError):
    """What is to be done cannot be recorded, and the site said that it must not be done then."""


class Journal:
    """Records events of one process. Thread-safe; one thread writes."""

    def __init__(self, directory: Path, source: Source, *, when_full: WhenFull = "refuse") -> None:
        """Begin a file. Raises OSError when the directory cannot be written, ConfigError when it is another's."""
        self._source, self._when_full = source, when_full
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = _lock(directory)
        number, self._prev = _end_of(directory)
        self._path = directory / f"audit-{number + 1:08d}.jsonl"
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        _sync_directory(directory)
        self._changed = threading.Condition()
        self._held: list[tuple[int, Event]] = []  # with their numbers
        self._taken = self._written = self._tried = self._seq = 0  # numbers: taken, on disk, tried in vain; lines
        self._dropped = 0
        self._wanted = self._closed = False
        self._broken: str | None = None
        self._told = float("-inf")
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    def ready(self) -> None:
        """Raise AuditUnavailable when what comes now could not be recorded, and must not be done then."""
        if self._broken is not None and self._when_full == "refuse":
            raise AuditUnavailable(f"nothing is done that cannot be audited: {self._broken}; see its disk")

    def record(self, event: Event, *, wait: bool = False) -> None:
        """Take an event; with `wait`, return when it is on disk.

        Raises AuditUnavailable when it is not within ten seconds, or there is no room to hold it, and the site said
        that nothing may go on unrecorded.
        """
        refuse = self._when_full == "refuse"
        with self._changed:
            if len(self._held) >= _MOST_HELD:
                self._dropped += not refuse
                problem = "lost, and counted"
            else:
                self._taken += 1
                number = self._taken
                self._held.append((number, event))
                problem = "" if not wait or self._reached(number) else "held in memory"
                if problem and refuse:  # it is not done: nor is it told
                    self._held = [one for one in self._held if one[0] != number]
        if problem and refuse:
            raise AuditUnavailable("this could not be recorded in the audit trail, so it is not done; see its disk")
        if problem:
            self._tell(problem)

    def _reached(self, number: int) -> bool:
        """Wait, holding the lock, until a record is on disk, or was tried in vain."""
        self._wanted = True
        self._changed.notify_all()
        self._changed.wait_for(lambda: max(self._written, self._tried) >= number, _WAIT_SECONDS)
        return self._written >= number

    def check(self) -> str:
        """Say that all is recorded (a health check). Raises AuditUnavailable when not."""
        if self._broken is not None or self._dropped:
            raise AuditUnavailable(f"{len(self._held)} records wait, {self._dropped} are lost: {self._broken}")
        return f"{self._seq} records in {self._path.name}"

    def close(self) -> None:
        """Write what is held, and end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(_WAIT_SECONDS)
        os.close(self._file)
        os.close(self._lock)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._wanted, _FLUSH_SECONDS)
                batch, dropped, closed = list(self._held), self._dropped, self._closed
                self._wanted = False
            if batch or dropped or self._broken is not None:  # broken: try whether it is well again
                self._flush(batch, dropped)
            if closed:
                return

    def _flush(self, batch: list[tuple[int, Event]], dropped: int) -> None:
        events = [event for _, event in batch]
        last = batch[-1][0] if batch else self._written
        if self._broken is not None:
            events.append(Event("lost", datetime.now(UTC), self._source.name, outcome=12, detail=self._stopped()))
        if dropped:
            lost = f"{dropped} records could not be written and are lost"
            events.append(Event("lost", datetime.now(UTC), self._source.name, outcome=12, detail=lost))
        size, text, prev = os.fstat(self._file).st_size, bytearray(), self._prev
        for number, event in enumerate(events, start=self._seq + 1):
            line = _line(number, prev, write(event, self._source))
            prev = hashlib.sha256(line).hexdigest()
            text += line + b"\n"
        try:
            _write_all(self._file, text)
            os.fsync(self._file)
        except OSError as error:
            self._failed(error, size, last)
            return
        with self._changed:
            self._held = [one for one in self._held if one[0] > last]
            self._dropped -= dropped
            self._prev, self._seq, self._broken = prev, self._seq + len(events), None
            self._written = last
            self._changed.notify_all()

    def _stopped(self) -> str:
        return f"recording had stopped: {self._broken}"

    def _failed(self, error: OSError, size: int, last: int) -> None:
        """Take back what was half written, so that the chain stays whole, and wake who waits."""
        try:
            os.ftruncate(self._file, size)
        except OSError:
            log.error("audit_file_torn", file=str(self._path))
        with self._changed:
            self._broken, self._tried = error.strerror or type(error).__name__, last
            self._changed.notify_all()
        self._tell("held in memory")

    def _tell(self, what: str) -> None:
        now = time.monotonic()
        if now - self._told >= _TELL_SECONDS:
            self._told = now
            log.error("audit_not_written", reason=self._broken or "no room", records=what, file=str(self._path))


def files_of(directory: Path) -> list[Path]:
    """List the files of a trail, the oldest first."""
    return sorted(directory.glob("audit-????????.jsonl"))


def _line(number: int, prev: str, xml: bytes) -> bytes:
    return json.dumps({"seq": number, "prev": prev, "xml": xml.decode()}, ensure_ascii=False).encode()


def _end_of(directory: Path) -> tuple[int, str]:
    """Give the number of the newest file and the hash that the next line carries on from.

    A line without its end was cut by a crash: it counts as it is, and `verify` tells it.
    """
    for path in reversed(files_of(directory)):
        lines = path.read_bytes().splitlines()
        if lines:
            return int(path.stem[-8:]), hashlib.sha256(lines[-1]).hexdigest()
    newest = files_of(directory)
    return (int(newest[-1].stem[-8:]) if newest else 0), FIRST


def _write_all(descriptor: int, text: bytes | bytearray) -> None:
    left = memoryview(text)
    while left:
        left = left[os.write(descriptor, left) :]


def _lock(directory: Path) -> int:
    """Hold the directory for this process: two of them would make two chains."""
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise ConfigError(f"{directory}: another process writes its audit trail here; give each its own") from None
    return descriptor


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
