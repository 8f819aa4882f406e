"""Reading over a session: several objects ahead, in the order asked, with a bounded number of bytes on their way."""

from __future__ import annotations

import hashlib
import stat
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from storage_provider.channel import Got, Want
from storage_provider.errors import NotFound, Refused, StorageError, Unreachable
from storage_provider.ranges import Span
from storage_provider.sftp import client_packets as packets
from storage_provider.sftp.client_errors import Failed
from storage_provider.sftp.client_replies import Attrs, Piece, Reply, Status
from storage_provider.sftp.client_session import ASKED_BYTES, TAKE, Session, Steps, Ticket, checked
from storage_provider.sftp.numbers import Code, Flag

# How many objects are opened ahead of the one that is read
AHEAD = 16


def digest(session: Session, handle: bytes, size: int) -> Steps[str]:
    """Return the SHA-256 of `size` bytes of an open file; raises Failed, with nothing left in flight."""
    sha256, flight, sent = hashlib.sha256(), deque[int](), 0
    trouble: Status | None = None
    while flight or (sent < size and trouble is None):
        while sent < size and trouble is None and len(flight) * session.limits.read < ASKED_BYTES:
            span = min(session.limits.read, size - sent)
            yield packets.read(handle, sent, span)
            flight.append(span)
            sent += span
        answer = yield TAKE
        if isinstance(answer, Piece):
            sha256.update(answer.data)
            flight[0] -= len(answer.data)
            if answer.left:
                continue
        # A read of a file brings less than asked for at its end only (draft-ietf-secsh-filexfer-02 section 6.4)
        if flight.popleft() and trouble is None:
            trouble = answer.status if isinstance(answer, Reply) else None
            trouble = trouble or Status(Code.EOF, "the file became shorter")
    if trouble is not None:
        raise Failed(trouble)
    return sha256.hexdigest()


def regular(attrs: Attrs | None) -> int | None:
    """Return the size of a regular file, None for anything else; servers that give no mode are believed."""
    if attrs is None or attrs.size is None or (attrs.mode is not None and not stat.S_ISREG(attrs.mode)):
        return None
    return attrs.size


@dataclass(slots=True)
class _File:
    """An object on its way: opened and asked for its size, then read span by span."""

    want: Want
    opening: Ticket
    sizing: Ticket
    span: Span | None = None  # what is wanted, once the size is known
    handle: bytes = b""
    asked: int = 0  # up to where reads were sent
    reads: deque[tuple[int, Ticket]] = field(default_factory=deque)
    over: bool = False


class Reader:
    """Reads objects over one session, in order; for one thread. Errors carry the door and the key."""

    def __init__(self, session: Session, wants: Sequence[Want]) -> None:
        self._session = session
        self._wants = iter(wants)
        self._files: deque[_File] = deque()
        self._held = 0  # bytes asked for and not handed out yet

    def each(self) -> Iterator[Got]:
        """Yield an answer to each want; what is left of one is passed over before the next.

        When the session breaks, it answers every want that is left with that.
        """
        try:
            while self._fill():
                file = self._files[0]
                yield Got(file.want, self._blocks(file))
                self._files.popleft()
                self._leave(file)
        except StorageError as error:
            yield from failing([*(file.want for file in self._files), *self._wants], error)

    def first(self) -> Iterator[bytes]:
        """Return the blocks of the only want, once it is known that there are some; raises what `get` raises."""
        self._fill()
        file = self._files[0]
        self._ready(file)
        return self._blocks(file)

    def finish(self) -> None:
        """Close what is open, unless data is still on its way: then the session is of no use to anybody else."""
        for file in self._files:
            if self._session.broken is None and self._session.quiet:
                self._leave(file)
        self._files.clear()

    def _fill(self) -> bool:
        """Open the next objects, and ask for data of those whose size is known, as far as there is room."""
        session = self._session
        while len(self._files) < AHEAD and (want := next(self._wants, None)) is not None:
            path = session.door.object(want.key)
            opening = session.send(packets.open_file(path, Flag.READ))
            self._files.append(_File(want, opening, session.send(packets.lstat(path))))
        for file in self._files:
            if not file.sizing.done or not file.opening.done:
                break
            if file.span is None and not file.over:
                self._size(file)
            while file.span and file.asked < file.span[1]:
                length = min(session.limits.read, file.span[1] - file.asked)
                if self._held and self._held + length > ASKED_BYTES:
                    return True
                file.reads.append((length, session.send(packets.read(file.handle, file.asked, length))))
                file.asked += length
                self._held += length
        return bool(self._files)

    def _size(self, file: _File) -> None:
        """Find out what to read; an object that cannot be read gets an empty span, `_ready` says why."""
        try:
            file.handle = checked(file.opening.answers[0]).handle
            file.span = self._wanted(file)
            file.asked = file.span[0]
        except (Failed, StorageError):
            file.over = True

    def _wanted(self, file: _File) -> Span:
        key, offset, length = file.want.key, file.want.offset, file.want.length
        size = regular(checked(file.sizing.answers[0]).attrs)
        if size is None:
            raise NotFound("there is no file under this key", door=self._session.door.url, key=key)
        stop = size if length is None else min(offset + length, size)
        if (offset or length is not None) and not 0 <= offset < stop:
            raise Refused("the range lies outside the object", door=self._session.door.url, key=key)
        return offset, stop

    def _ready(self, file: _File) -> None:
        """Wait until an object is opened; raises why it cannot be read."""
        while not (file.sizing.done and file.opening.done):
            self._session.receive()
        self._fill()
        try:
            checked(file.opening.answers[0])
            self._wanted(file)
        except Failed as failed:
            raise failed.error(door=self._session.door.url, key=file.want.key) from failed

    def _blocks(self, file: _File) -> Iterator[bytes]:
        self._ready(file)
        while file.reads:
            length, ticket = file.reads[0]
            while not ticket.answers:
                self._session.receive()
            answer = ticket.answers.popleft()
            if not isinstance(answer, Piece) or (not answer.left and len(answer.data) < length):
                self._short(file, answer)
            assert isinstance(answer, Piece)
            self._held -= len(answer.data)
            file.reads[0] = (length - len(answer.data), ticket)
            if not answer.left:
                file.reads.popleft()
            self._fill()
            if answer.data:
                yield answer.data

    def _short(self, file: _File, answer: Reply | Piece) -> None:
        """Raise for a read that brought less than the file was said to hold."""
        if isinstance(answer, Reply) and answer.status and answer.status.code != Code.EOF:
            raise Failed(answer.status).error(door=self._session.door.url, key=file.want.key)
        raise Unreachable("the object ended early", door=self._session.door.url, key=file.want.key)

    def _leave(self, file: _File) -> None:
        """Close an object; what of it is still on its way is awaited and thrown away."""
        if self._session.broken is not None:
            raise self._session.broken
        file.span = None
        file.over = True
        for length, ticket in file.reads:
            while not ticket.done:
                self._session.receive()
            self._held -= length
        while not (file.sizing.done and file.opening.done):
            self._session.receive()
        answer = file.opening.answers[0]
        if isinstance(answer, Reply) and answer.handle:
            self._session.send(packets.close(answer.handle), idle=True)


def failing(wants: Iterable[Want], error: StorageError) -> Iterator[Got]:
    """Answer wants with an error."""

    def blocks(raised: StorageError | None = error) -> Iterator[bytes]:
        if raised is not None:
            raise raised
        yield b""

    return (Got(want, blocks()) for want in wants)
