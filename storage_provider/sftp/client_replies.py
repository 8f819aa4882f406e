"""SFTP version 3 as a client hears it, sans-I/O: bytes become replies, and pieces of data as they arrive.

The content of files is handed out as it comes, not reply by reply, so that a slow line shows its progress.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from storage_provider.sftp.numbers import VERSION, Attr, Kind

# A server's longest reply: what limits@openssh.com allows for data, and then some for names
MOST_REPLY = 1024 * 1024
# Every server takes reads and writes of this length (section 3 of the draft)
SAFE_LENGTH = 32 * 1024
_U32 = struct.Struct(">I")
_HEAD = struct.Struct(">IBI")  # length, type, request id
_DATA_HEAD = 13  # the head, and the length of the data
_MOST_NAMES = 10_000


class ProtocolError(Exception):
    """What came is not SFTP version 3; the connection is of no use any more."""


@dataclass(frozen=True, slots=True)
class Status:
    """How a request went."""

    code: int
    message: str = ""


@dataclass(frozen=True, slots=True)
class Attrs:
    """Size, type and permissions, and time of the last change; None where the server does not say."""

    size: int | None = None
    mode: int | None = None
    modified: int | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole reply: a status, or what the request was for."""

    number: int
    status: Status | None = None
    handle: bytes = b""
    attrs: Attrs | None = None
    names: tuple[tuple[str, Attrs], ...] = ()
    extended: bytes = b""


@dataclass(frozen=True, slots=True)
class Piece:
    """Some of the data that a read brings; `left` bytes of the same reply are still to come."""

    number: int
    data: bytes
    left: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server takes at once (limits@openssh.com), in bytes."""

    read: int = SAFE_LENGTH
    write: int = SAFE_LENGTH


@dataclass(frozen=True, slots=True)
class Volume:
    """A file system's space in bytes (statvfs@openssh.com)."""

    total: int
    free: int
    available: int


class Replies:
    """Takes a server's bytes, in any portions, and gives its version, replies and pieces of data."""

    def __init__(self) -> None:
        self.extensions: dict[str, str] | None = None
        self._buffer = b""
        self._piece: tuple[int, int] | None = None  # request id and bytes left of the data that is arriving

    def feed(self, data: bytes) -> Iterator[Reply | Piece]:
        """Yield what is complete by now; raises ProtocolError for what is no SFTP."""
        buffer = self._buffer + data if self._buffer else data
        at, end = 0, len(buffer)
        while at < end or (self._piece is not None and self._piece[1] == 0):
            if self._piece is not None:
                number, left = self._piece
                taken = min(left, end - at)
                self._piece = (number, left - taken) if left > taken else None
                yield Piece(number, buffer[at : at + taken], left - taken)
                at += taken
                continue
            used = self._head(buffer, at, end)
            if used == 0:
                whole = self._whole(buffer, at, end)
                if whole is None:
                    break
                used, reply = whole
                if reply is not None:
                    yield reply
            at += used
        self._buffer = buffer[at:]

    def _head(self, buffer: bytes, at: int, end: int) -> int:
        """Begin to take data when a data reply's head is there; returns the bytes used."""
        if end - at < _DATA_HEAD or buffer[at + 4] != Kind.DATA:
            return 0
        length, _kind, number = _HEAD.unpack_from(buffer, at)
        (size,) = _U32.unpack_from(buffer, at + 9)
        if size + 9 != length or length > MOST_REPLY:
            raise ProtocolError("a data reply of a wrong length")
        self._piece = (number, size)
        return _DATA_HEAD

    def _whole(self, buffer: bytes, at: int, end: int) -> tuple[int, Reply | None] | None:
        if end - at < 5:
            return None
        (length,) = _U32.unpack_from(buffer, at)
        if not 5 <= length <= MOST_REPLY:
            raise ProtocolError("a reply of a wrong length; is there a program that prints at login?")
        kind = buffer[at + 4]
        if (kind == Kind.VERSION) is not (self.extensions is None):
            raise ProtocolError("not the reply that must come first")
        if end - at < 4 + length or kind == Kind.DATA:
            return None
        body = _Fields(buffer[at + 5 : at + 4 + length])
        if kind == Kind.VERSION:
            self.extensions = _version(body)
            return 4 + length, None
        return 4 + length, _reply(kind, body)


class _Fields:
    """Reads the fields of one packet."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    @property
    def more(self) -> bool:
        return self._at < len(self._body)

    def u32(self) -> int:
        return self._number(4)

    def u64(self) -> int:
        return self._number(8)

    def string(self) -> bytes:
        return self._take(self.u32())

    def text(self) -> str:
        return self.string().decode("utf-8", "replace")

    def rest(self) -> bytes:
        return self._take(len(self._body) - self._at)

    def _number(self, size: int) -> int:
        return int.from_bytes(self._take(size), "big")

    def _take(self, size: int) -> bytes:
        taken = self._body[self._at : self._at + size]
        if len(taken) != size:
            raise ProtocolError("a reply ends within a field")
        self._at += size
        return taken


def _version(fields: _Fields) -> dict[str, str]:
    if fields.u32() < VERSION:
        raise ProtocolError("the server speaks an SFTP older than version 3")
    found: dict[str, str] = {}
    while fields.more:
        name = fields.text()
        found[name] = fields.text()
    return found


def _reply(kind: int, fields: _Fields) -> Reply:
    number = fields.u32()
    if kind == Kind.STATUS:
        code = fields.u32()
        # The oldest servers end here
        return Reply(number, status=Status(code, fields.text() if fields.more else ""))
    if kind == Kind.HANDLE:
        return Reply(number, handle=fields.string())
    if kind == Kind.ATTRS:
        return Reply(number, attrs=_attrs(fields))
    if kind == Kind.NAME:
        return Reply(number, names=tuple(_names(fields)))
    if kind == Kind.EXTENDED_REPLY:
        return Reply(number, extended=fields.rest())
    raise ProtocolError("an unknown kind of reply")


def _names(fields: _Fields) -> Iterator[tuple[str, Attrs]]:
    count = fields.u32()
    if count > _MOST_NAMES:
        raise ProtocolError("too many names in one reply")
    for _ in range(count):
        name = fields.text()
        fields.string()  # the line of ls -l
        yield name, _attrs(fields)


def _attrs(fields: _Fields) -> Attrs:
    flags = Attr(fields.u32())
    size = fields.u64() if flags & Attr.SIZE else None
    if flags & Attr.OWNER:
        fields.u64()
    mode = fields.u32() if flags & Attr.MODE else None
    times = fields.u64() if flags & Attr.TIMES else None
    if flags & Attr.EXTENDED:
        for _ in range(min(fields.u32(), _MOST_NAMES)):
            fields.string(), fields.string()
    return Attrs(size, mode, None if times is None else times & 0xFFFFFFFF)


def parse_volume(body: bytes) -> Volume:
    """Read the answer to `statvfs`."""
    try:
        _block, unit, blocks, free, available = struct.unpack_from(">5Q", body)
    except struct.error as error:
        raise ProtocolError("a statvfs answer is too short") from error
    return Volume(blocks * unit, free * unit, available * unit)


def parse_limits(body: bytes) -> Limits:
    """Read the answer to `limits`; 0 there means that the server does not say."""
    try:
        _packet, most_read, most_write, _handles = struct.unpack_from(">4Q", body)
    except struct.error as error:
        raise ProtocolError("a limits answer is too short") from error
    largest = MOST_REPLY // 4
    return Limits(min(most_read or SAFE_LENGTH, largest), min(most_write or SAFE_LENGTH, largest))


def parse_text(body: bytes) -> str:
    """Read the answer to `checksum`."""
    return _Fields(body).text()


def parse_spans(body: bytes, size: int) -> tuple[tuple[int, int], ...]:
    """Read the answer to `missing`: half-open spans inside `size` bytes, in order."""
    fields, end = _Fields(body), 0
    found: list[tuple[int, int]] = []
    for _ in range(fields.u32()):
        start, stop = fields.u64(), fields.u64()
        if not end <= start < stop <= size:
            raise ProtocolError("spans that are none")
        found.append((start, stop))
        end = stop
    return tuple(found)
