"""Storing one object over a session, as a job: sent, verified, made visible.

Our own server verifies and publishes when an object is closed. Any other server keeps a part (`stage/...part`), which
is made durable, read back, and renamed: the rename is the commit, and what it shows was verified before.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from storage_provider.channel import Put, Stored
from storage_provider.checksum import blocks
from storage_provider.errors import Corrupt, Faulty, LocalFault, NoSpace, StorageError
from storage_provider.ranges import Span
from storage_provider.sftp import client_packets as packets
from storage_provider.sftp import client_replies as replies
from storage_provider.sftp.client_errors import Failed
from storage_provider.sftp.client_get import digest, regular
from storage_provider.sftp.client_parts import Claims
from storage_provider.sftp.client_replies import Attrs, ProtocolError, Reply
from storage_provider.sftp.client_session import TAKE, Session, Steps, ask, attempt, checked
from storage_provider.sftp.numbers import Flag
from storage_provider.wire import SINGLE_PUT_BYTES

# Tries of a put in a row that bring it no byte further
TRIES = 4
FSYNC = "fsync@openssh.com"
# Bytes of one object on their way to the far side: twice an sshd's window, so that the window alone holds us up
FLIGHT_BYTES = 4 * 1024 * 1024
# A part of ours that was touched this recently may have a living writer in another process
_ALIVE_SECONDS = 60


@dataclass(slots=True)
class Putting:
    """One `put` over its tries: `progress` counts bytes that the far side has taken in this try."""

    put: Put
    claims: Claims
    tries: int = 0
    progress: int = 0
    _flight: deque[int] = field(default_factory=deque)

    def may_go_on(self) -> bool:
        """Count a try that was cut short; says whether another one is worth it."""
        self.tries = 1 if self.progress else self.tries + 1
        return self.tries < TRIES

    def steps(self, session: Session) -> Steps[Stored]:
        """Store the object over this session; raises StorageError."""
        self.progress, self._flight = 0, deque()
        key = self.put.spec.key
        try:
            with _opened(self.put) as fd:
                if session.door.own:
                    yield from self._own(session, fd)
                else:
                    yield from self._foreign(session, fd)
        except Failed as failed:
            raise failed.error(door=session.door.url, key=key) from failed
        except ProtocolError as error:
            raise Faulty(str(error), door=session.door.url, key=key) from error
        return Stored(key, self.put.spec.size, self.put.spec.sha256, datetime.now(UTC))

    # -- our own storage element ------------------------------------------------------------------------------------

    def _own(self, session: Session, fd: int) -> Steps[None]:
        spec, path = self.put.spec, session.door.object(self.put.spec.key)
        patience = session.timeouts.verifying(spec.size)
        if (yield from _size(path)) == spec.size:
            try:
                reply = yield from ask(packets.checksum(path, patience=patience))
                if replies.parse_text(reply.extended) == spec.sha256:
                    return
            except Failed as failed:
                if not failed.absent:
                    raise
        spans: tuple[Span, ...] = ((0, spec.size),) if spec.size else ()
        if spec.size > SINGLE_PUT_BYTES:
            reply = yield from ask(packets.missing(path, spec.size))
            spans = replies.parse_spans(reply.extended, spec.size)
        handle = (yield from ask(packets.open_file(path, Flag.WRITE | Flag.CREATE, size=spec.size))).handle
        try:
            for span in spans:
                yield from self._send(session, fd, handle, span)
            yield from self._drain()
        except (Failed, LocalFault):
            yield from self._quietly()
            yield from attempt(packets.close(handle))
            raise
        yield from ask(packets.patiently(packets.close(handle), patience))

    # -- any other server -------------------------------------------------------------------------------------------

    def _foreign(self, session: Session, fd: int) -> Steps[None]:
        spec, path = self.put.spec, session.door.object(self.put.spec.key)
        if (yield from _size(path)) == spec.size and (yield from self._holds(session, path)):
            return
        name, done = self.claims.claim(spec.sha256), False
        try:
            handle, part, start = yield from self._open_part(session, name)
            try:
                if start and not (yield from self._filled(session, fd, handle, start)):
                    yield from attempt(packets.close(handle))
                    yield from attempt(packets.remove(part))
                    handle, part, start = yield from self._open_part(session, name)
                if not start and not (yield from self._filled(session, fd, handle, 0)):
                    raise Corrupt("what lies at the far side has another SHA-256", door=session.door.url, key=spec.key)
                yield from self._publish(session, handle, part, path)
            except (Failed, StorageError) as error:
                yield from self._quietly()
                reason = yield from self._reason(session, error)
                yield from attempt(packets.close(handle))
                yield from attempt(packets.remove(part))
                raise reason from error
            yield from self._finish(session, handle)
            if part != f"{session.door.stage}/{self.claims.common(spec.sha256)}":
                # Who was writing that finds the object when it comes to its rename
                yield from attempt(packets.remove(f"{session.door.stage}/{self.claims.common(spec.sha256)}"))
            done = True
        finally:
            self.claims.release(name, left=not done)

    def _open_part(self, session: Session, name: str) -> Steps[tuple[bytes, str, int]]:
        """Open a part, new or (when nobody else writes it) to go on; returns handle, path and where to go on."""
        flags = Flag.READ | Flag.WRITE | Flag.CREATE
        part = f"{session.door.stage}/{name}"
        try:
            return (yield from ask(packets.open_file(part, flags | Flag.EXCLUSIVE))).handle, part, 0
        except Failed as failed:
            if failed.absent:
                yield from attempt(packets.mkdir(session.door.stage))
                return (yield from ask(packets.open_file(part, flags | Flag.EXCLUSIVE))).handle, part, 0
            attrs = yield from _attrs(part)
            there = regular(attrs)
            if attrs is None or there is None:
                raise
        if not self.claims.ours(name) and time.time() - (attrs.modified or 0) < _ALIVE_SECONDS:
            part = f"{session.door.stage}/{self.claims.other(self.put.spec.sha256)}"
            return (yield from ask(packets.open_file(part, flags | Flag.EXCLUSIVE))).handle, part, 0
        start = there if there <= self.put.spec.size else 0
        reopened = packets.open_file(part, flags if start else flags | Flag.TRUNCATE)
        return (yield from ask(reopened)).handle, part, start

    def _filled(self, session: Session, fd: int, handle: bytes, start: int) -> Steps[bool]:
        """Send from `start`, make it durable, and say whether the far side now holds the object."""
        spec = self.put.spec
        if start < spec.size:
            yield from self._send(session, fd, handle, (start, spec.size))
        # Sent behind the last bytes: a round trip that is waited for alone is time lost on a long line
        if session.has(FSYNC):
            yield from self._ahead(self._sync(session, handle))
        yield from self._ahead(packets.fstat(handle))
        while len(self._flight) > 1:
            yield from self._taken()
        size = regular((yield from self._taken()).attrs)
        return size == spec.size and (yield from digest(session, handle, spec.size)) == spec.sha256

    def _publish(self, session: Session, handle: bytes, part: str, path: str) -> Steps[None]:
        posix = session.has("posix-rename@openssh.com")
        call = packets.posix_rename(part, path) if posix else packets.rename(part, path)
        try:
            yield from ask(call)
        except Failed as failed:
            if failed.absent:
                yield from _folders(session.door.folders(self.put.spec.key))
            elif posix or not failed.vague:
                raise
            elif not (yield from self._holds(session, path)):
                yield from ask(packets.remove(path))  # it is there already, and bad
            yield from self._rename_again(session, call, part, path)

    def _rename_again(self, session: Session, call: packets.Call, part: str, path: str) -> Steps[None]:
        try:
            yield from ask(call)
        except Failed:
            # Somebody else has stored it in the meantime
            if not (yield from self._holds(session, path)):
                raise
            yield from attempt(packets.remove(part))

    def _sync(self, session: Session, handle: bytes) -> packets.Call:
        return packets.patiently(packets.fsync(handle), session.timeouts.verifying(self.put.spec.size))

    def _finish(self, session: Session, handle: bytes) -> Steps[None]:
        """Close the file, with a second sync: it makes its new name durable on the file systems that journal."""
        if session.has(FSYNC):
            yield from self._ahead(self._sync(session, handle))
        yield from self._ahead(packets.close(handle))
        yield from self._drain()

    def _holds(self, session: Session, path: str) -> Steps[bool]:
        """Say whether the file at the far side is this object, by reading it."""
        try:
            handle = (yield from ask(packets.open_file(path, Flag.READ))).handle
        except Failed:
            return False
        try:
            size = regular((yield from ask(packets.fstat(handle))).attrs)
            found = (yield from digest(session, handle, self.put.spec.size)) if size == self.put.spec.size else ""
        except Failed:
            found = ""
        yield from attempt(packets.close(handle))
        return found == self.put.spec.sha256

    def _reason(self, session: Session, error: Failed | StorageError) -> Steps[StorageError]:
        """Find out what a plain failure means: OpenSSH says no more when the disk is full."""
        if isinstance(error, StorageError):
            return error
        found = error.error(door=session.door.url, key=self.put.spec.key)
        if error.vague and session.has("statvfs@openssh.com"):
            try:
                reply = yield from ask(packets.statvfs(session.door.root))
                room = replies.parse_volume(reply.extended).available
            except (Failed, ProtocolError):
                return found
            if room < self.put.spec.size:
                return NoSpace("the far side's disk is full", door=session.door.url, key=self.put.spec.key)
        return found

    # -- both -------------------------------------------------------------------------------------------------------

    def _send(self, session: Session, fd: int, handle: bytes, span: Span) -> Steps[None]:
        """Write a span of the object, a bounded number of bytes ahead of the answers."""
        start, stop = span
        length = session.limits.write
        for data in blocks(fd, offset=self.put.offset + start, length=stop - start, block=length):
            while len(self._flight) * length >= FLIGHT_BYTES:
                yield from self._taken()
            yield from self._ahead(packets.write(handle, start, data))
            start += len(data)

    def _ahead(self, call: packets.Call) -> Steps[None]:
        """Make a request whose answer `_taken` gives later."""
        yield call
        self._flight.append(len(call.data))

    def _taken(self) -> Steps[Reply]:
        answer = yield TAKE
        written = self._flight.popleft()
        reply = checked(answer)
        self.progress += written
        return reply

    def _drain(self) -> Steps[None]:
        while self._flight:
            yield from self._taken()

    def _quietly(self) -> Steps[None]:
        """Take the answers that are still to come, whatever they say."""
        while self._flight:
            try:
                yield from self._taken()
            except Failed:
                continue


def _folders(paths: tuple[str, ...]) -> Steps[None]:
    """Make directories, outermost first; those that are there already are no failure."""
    for path in paths:
        yield packets.mkdir(path)
    for _ in paths:
        yield TAKE


def _size(path: str) -> Steps[int | None]:
    return regular((yield from _attrs(path)))


def _attrs(path: str) -> Steps[Attrs | None]:
    """Return a file's attributes, None when it is not there."""
    try:
        return (yield from ask(packets.lstat(path))).attrs
    except Failed as failed:
        if not failed.absent:
            raise
        return None


@contextmanager
def _opened(put: Put) -> Iterator[int]:
    """Open the local file, which must hold all of the object."""
    try:
        fd = os.open(put.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise LocalFault(f"cannot read the file to store: {error.strerror}", key=put.spec.key) from error
    try:
        if os.fstat(fd).st_size < put.offset + put.spec.size:
            raise LocalFault("the file is shorter than the object", key=put.spec.key)
        yield fd
    except OSError as error:
        raise LocalFault(f"cannot read the file to store: {error.strerror}", key=put.spec.key) from error
    finally:
        os.close(fd)
