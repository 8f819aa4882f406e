"""Putting objects over one session: small ones sent ahead of the answers, large ones with resume."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from storage_provider.channel import ObjectSpec, Put, Stored
from storage_provider.errors import Corrupt, LocalFault, StorageError
from storage_provider.gridftp.blocks import HEADER_BYTES, block_header, end_of_data
from storage_provider.gridftp.client.hearing import Hearing
from storage_provider.gridftp.client.session import Session
from storage_provider.gridftp.client.sessions import Sessions
from storage_provider.gridftp.client.staging import Staging
from storage_provider.gridftp.markers import format_spans
from storage_provider.gridftp.replies import Reply
from storage_provider.ranges import Ranges, Span
from storage_provider.wire import SINGLE_PUT_BYTES

BLOCK_BYTES = 1024 * 1024
# Objects up to this size are read whole and sent ahead
SMALL_BYTES = BLOCK_BYTES
# What may be sent before its answer has come
_AHEAD = 32
_AHEAD_BYTES = 16 * 1024 * 1024
_END = end_of_data(streams=1)


class StalePart(Exception):
    """The far side holds wrong bytes, part of them from an earlier call; they are gone now, so try once more."""


class OutOfStep(Exception):
    """An object that was sent ahead was refused: what followed it on the data connection was read by nobody."""


@dataclass(frozen=True, slots=True)
class Local:
    """The object's bytes in an open local file."""

    fd: int
    offset: int

    def frame(self, spec: ObjectSpec) -> memoryview:
        """Return a small object as the blocks of one transfer."""
        frame = bytearray(HEADER_BYTES + spec.size + HEADER_BYTES) if spec.size else bytearray(_END)
        if spec.size:
            view = memoryview(frame)
            view[:HEADER_BYTES] = block_header(spec.size, 0)
            self.read(view[HEADER_BYTES : HEADER_BYTES + spec.size], 0)
            view[HEADER_BYTES + spec.size :] = _END
        return memoryview(frame)

    def read(self, view: memoryview, position: int) -> None:
        """Fill `view` from `position` of the object; raises LocalFault."""
        try:
            read = os.preadv(self.fd, [view], self.offset + position)
        except OSError as error:
            raise LocalFault(f"cannot read the file to store: {error.strerror}") from error
        if read != len(view):
            raise LocalFault(f"the file ends {len(view) - read} bytes early")


@contextmanager
def opened(put: Put) -> Iterator[Local]:
    """Open the file of a put and see that the object is in it; raises LocalFault."""
    fd = _open(put.path, put.spec.key)
    try:
        short = put.offset + put.spec.size - os.fstat(fd).st_size
        if short > 0:
            raise LocalFault(f"the file ends {short} bytes early", key=put.spec.key)
        yield Local(fd, put.offset)
    finally:
        os.close(fd)


def stored_now(spec: ObjectSpec) -> Stored:
    """Say that the far side has verified the object just now."""
    return Stored(spec.key, spec.size, spec.sha256, datetime.now(UTC))


def put_one(session: Session, staging: Staging, put: Put, local: Local) -> None:
    """Send what is missing of one object, verify and commit it.

    Raises StalePart, Corrupt, NoSpace, Denied, Refused, Unreachable, LocalFault.
    """
    spec = put.spec
    have = staging.have(session, spec) if spec.size > SINGLE_PUT_BYTES else Ranges()
    missing = have.missing(0, spec.size).spans
    try:
        if missing or not have or staging.door.own:
            send(session, staging.path(spec.key), Sending(spec, local, have, missing))
        staging.commit(session, spec)
    except Corrupt as error:
        if have:
            raise StalePart from error
        raise


def discard(sessions: Sessions, staging: Staging, key: str) -> None:
    """Remove the part of an object for which there is no space; our own servers keep none of those."""
    if not staging.door.own:
        with suppress(StorageError), sessions.lent() as session:
            staging.discard(session, key)


@dataclass(frozen=True, slots=True)
class Sending:
    """One transfer: what the far side has, and the spans to send."""

    spec: ObjectSpec
    local: Local
    have: Ranges
    missing: tuple[Span, ...]


def send(session: Session, path: str, sending: Sending) -> None:
    """Send spans of an object in mode E and wait until the far side has them safe."""
    control, spec = session.control, sending.spec
    session.mode("E")
    ahead = [f"ALLO {spec.size}"]
    if sending.have:
        ahead.append(f"REST {format_spans(sending.have.spans)}")
    endpoint = None if session.linked(up=True) else session.passive()
    control.send(*ahead, f"STOR {path}")
    for _ in ahead:
        reply = control.final()
        if reply.kind in (4, 5):
            control.broken = True  # what STOR does now is not what was meant
        control.checked(reply, spec.key)
    hearing = Hearing(control, spec.key, sending=True)
    session.moving = True
    if endpoint is not None:
        session.join(endpoint, hearing, up=True)
    hearing.begin()
    _send_spans(session, sending, hearing)
    hearing.end(control.timeouts.verifying(spec.size))
    session.moving = False


def _send_spans(session: Session, sending: Sending, hearing: Hearing) -> None:
    assert session.link is not None
    buffer = memoryview(bytearray(HEADER_BYTES + BLOCK_BYTES))
    for start, stop in sending.missing:
        for position in range(start, stop, BLOCK_BYTES):
            size = min(BLOCK_BYTES, stop - position)
            buffer[:HEADER_BYTES] = block_header(size, position)
            sending.local.read(buffer[HEADER_BYTES : HEADER_BYTES + size], position)
            session.link.send(buffer[: HEADER_BYTES + size], hearing)
    session.link.send(memoryview(_END), hearing)


class Flight:
    """Small objects over a data connection that is up: commands and bytes go out while answers come in.

    `run` yields each put with its outcome. It raises OutOfStep when a transfer was refused whose bytes were perhaps
    read by nobody, StorageErrors when the connection is lost; puts without an outcome must then be tried again.
    """

    def __init__(self, session: Session, staging: Staging, puts: list[Put]) -> None:
        self._session = session
        self._staging = staging
        self._own = staging.door.own
        self._puts = puts
        self._asked: deque[tuple[str, Put | None]] = deque()
        self._begun = False
        self._ahead_bytes = 0
        self._done: deque[tuple[Put, Stored | StorageError]] = deque()

    def run(self) -> Iterator[tuple[Put, Stored | StorageError]]:
        """Send all; yields as answers come."""
        try:
            yield from self._sent()
        except BaseException:
            self._session.control.broken = True  # also when it is left: the far side still expects bytes ahead
            raise

    def _sent(self) -> Iterator[tuple[Put, Stored | StorageError]]:
        assert self._session.link is not None
        self._session.moving = True
        self._announce(True)
        for put in self._puts:
            try:
                with opened(put) as local:
                    frame = local.frame(put.spec)
            except LocalFault as error:
                self._finish(put, error)
                continue
            self._ask(put)
            self._session.link.send(frame, self._hear)
            self._hear()
            while len(self._asked) > 2 * _AHEAD or self._ahead_bytes > _AHEAD_BYTES:
                self._answer(self._session.control.reply(self._patience))
            yield from self._finished()
        self._announce(False)
        while self._asked:
            self._answer(self._session.control.reply(self._patience))
            yield from self._finished()
        yield from self._finished()
        self._session.moving = False

    def _announce(self, ahead: bool) -> None:
        """Tell our own servers that bytes come before the answer: those of a refused object are then read away."""
        if self._own:
            self._session.control.send(f"OPTS STOR Ahead={int(ahead)};")
            self._asked.append(("OPTS", None))

    @property
    def _patience(self) -> float:
        return self._session.control.timeouts.verifying(self._ahead_bytes)

    def _ask(self, put: Put) -> None:
        path = self._staging.path(put.spec.key)
        commands = [("ALLO", f"ALLO {put.spec.size}"), ("STOR", f"STOR {path}")]
        if not self._own:
            commands.append(("CKSM", f"CKSM SHA256 0 -1 {path}"))
        self._session.control.send(*(command for _, command in commands))
        self._asked.extend((verb, put) for verb, _ in commands)
        self._ahead_bytes += put.spec.size

    def _hear(self) -> None:
        while self._asked and self._session.control.ready():
            self._answer(self._session.control.reply())

    def _answer(self, reply: Reply) -> None:
        verb, put = self._asked[0]
        if reply.kind == 1:
            self._begun = True
            return
        self._asked.popleft()
        if put is None:
            self._session.control.checked(reply)
        elif verb == "STOR":
            self._stored(put, reply)
        elif verb == "CKSM":
            self._checked(put, reply)
        elif verb == "RNTO":
            self._renamed(put, reply)

    def _stored(self, put: Put, reply: Reply) -> None:
        begun, self._begun = self._begun, False
        self._ahead_bytes -= put.spec.size
        if reply.kind == 2:
            if self._own:
                self._finish(put, stored_now(put.spec))
            return
        try:
            self._session.control.checked(reply, put.spec.key)
        except StorageError as error:
            # Our servers take a refused object's bytes off the connection, and those of a wrong one have all come
            if not self._own or (begun and not isinstance(error, Corrupt)):
                raise OutOfStep from error
            self._finish(put, error)

    def _checked(self, put: Put, reply: Reply) -> None:
        try:
            found = reply.text.strip().lower()
            self._session.control.checked(reply, put.spec.key)
        except StorageError as error:
            raise OutOfStep from error
        if found != put.spec.sha256:
            raise OutOfStep  # put alone it is judged and cleared away
        target = self._staging.door.object(put.spec.key)
        made = [f"MKD {each}" for each in self._staging.unknown(target.rpartition("/")[0])]
        moves = (f"RNFR {self._staging.path(put.spec.key)}", f"RNTO {target}")
        self._session.control.send(*made, *moves)
        self._asked.extend([*[("MKD", put)] * len(made), ("RNFR", put), ("RNTO", put)])

    def _renamed(self, put: Put, reply: Reply) -> None:
        if reply.kind != 2:
            self._staging.forget_folders()
            raise OutOfStep
        self._staging.known(put.spec.key)
        self._finish(put, stored_now(put.spec))

    def _finish(self, put: Put, outcome: Stored | StorageError) -> None:
        self._done.append((put, outcome))

    def _finished(self) -> Iterator[tuple[Put, Stored | StorageError]]:
        while self._done:
            yield self._done.popleft()


def _open(path: Path, key: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise LocalFault(f"cannot read the file to store: {error.strerror}", key=key) from error
