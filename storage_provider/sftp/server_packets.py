"""SFTP version 3 as a server speaks it, sans-I/O: bytes become requests, answers become bytes.

draft-ietf-secsh-filexfer-02, and OpenSSH's extensions (its PROTOCOL file, section 4). What is no request of this
protocol raises BadPacket, and the session ends; nothing is kept of a frame longer than any client may send.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from storage_provider.sftp.numbers import VERSION, Attr, Code, Kind

# OpenSSH's limit of one message, which its client keeps to; others send less
LONGEST_FRAME = 256 * 1024
LONGEST_DATA = LONGEST_FRAME - 1024
LONGEST_PATH = 4096

_HEAD = struct.Struct(">IB")
_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")
_TYPED = struct.Struct(">IBI")  # length, type, request id


class BadPacket(Exception):
    """What came is not SFTP."""


@dataclass(frozen=True, slots=True)
class Attributes:
    """What of a file's attributes matters here; None where it was not sent. `mode` has the file type, too."""

    size: int | None = None
    mode: int | None = None
    modified: int | None = None


class Request:
    """One request: `kind` (a number: it may be none we know), `ident`, and a cursor over the fields that follow."""

    __slots__ = ("_at", "_frame", "ident", "kind")

    def __init__(self, frame: bytes) -> None:
        self._frame = frame
        self.kind = frame[0]
        self._at = 1
        self.ident = self.u32()  # the version, of an INIT

    def __len__(self) -> int:
        return len(self._frame)

    def u32(self) -> int:
        """Take a number."""
        return int.from_bytes(self._take(4))

    def u64(self) -> int:
        """Take a long number."""
        return int.from_bytes(self._take(8))

    def blob(self) -> bytes:
        """Take a string."""
        return self._take(self.u32())

    def rest_of_write(self) -> memoryview:
        """Take a string as a view, without copying it."""
        length = self.u32()
        view = memoryview(self._frame)[self._at : self._at + length]
        if len(view) != length:
            raise BadPacket("a field is longer than its packet")
        return view

    def text(self) -> str:
        """Take a name or path: UTF-8, of bounded length."""
        raw = self.blob()
        if len(raw) > LONGEST_PATH:
            raise BadPacket("a path is too long")
        return raw.decode("utf-8", errors="replace")

    def attributes(self) -> Attributes:
        """Take a file's attributes (section 5)."""
        flags = self.u32()
        size = self.u64() if flags & Attr.SIZE else None
        if flags & Attr.OWNER:
            self.u64()
        mode = self.u32() if flags & Attr.MODE else None
        modified = self.u64() & 0xFFFFFFFF if flags & Attr.TIMES else None
        if flags & Attr.EXTENDED:
            for _ in range(min(self.u32(), 100)):
                self.blob()
                self.blob()
        return Attributes(size, mode, modified)

    def first(self) -> bytes:
        """Return the string that it begins with (a handle, a path), without moving the cursor; b"" without one."""
        length = int.from_bytes(self._frame[5:9])
        return self._frame[9 : 9 + length] if len(self._frame) >= 9 + length else b""

    def answer_bytes(self) -> int:
        """Return about how long the answer to it may be, without moving the cursor."""
        if self.kind != Kind.READ:
            return 0
        return min(int.from_bytes(self._frame[-4:]), LONGEST_DATA)

    def _take(self, count: int) -> bytes:
        piece = self._frame[self._at : self._at + count]
        if len(piece) != count:
            raise BadPacket("a field is longer than its packet")
        self._at += count
        return piece


class Framer:
    """Cuts the stream of one session into requests; holds at most one frame that is not whole yet."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Request]:
        """Yield the requests that are whole by now."""
        buffer = self._buffer
        buffer += data
        at = 0
        try:
            while len(buffer) - at >= 4:
                length = int.from_bytes(buffer[at : at + 4])
                if not 5 <= length <= LONGEST_FRAME:
                    raise BadPacket("a packet is too short or too long")
                if len(buffer) - at - 4 < length:
                    break
                frame = bytes(memoryview(buffer)[at + 4 : at + 4 + length])
                at += 4 + length
                yield Request(frame)
        finally:
            del buffer[:at]


def _string(value: bytes) -> bytes:
    return _U32.pack(len(value)) + value


def _packet(kind: Kind, ident: int, *fields: bytes) -> bytes:
    body = b"".join(fields)
    return _TYPED.pack(5 + len(body), kind, ident) + body


def version(extensions: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Answer INIT (section 4)."""
    pairs = b"".join(_string(name) + _string(value) for name, value in extensions)
    return _TYPED.pack(5 + len(pairs), Kind.VERSION, VERSION) + pairs


def status(ident: int, code: Code, message: str = "") -> bytes:
    """Answer with a status."""
    return _packet(Kind.STATUS, ident, _U32.pack(code), _string(message.encode()), _string(b"en"))


def handle(ident: int, name: bytes) -> bytes:
    """Answer OPEN and OPENDIR."""
    return _packet(Kind.HANDLE, ident, _string(name))


def data(ident: int, block: bytes) -> bytes:
    """Answer READ."""
    return b"".join((_TYPED.pack(9 + len(block), Kind.DATA, ident), _U32.pack(len(block)), block))


def names(ident: int, entries: Iterable[tuple[str, str, Attributes]]) -> bytes:
    """Answer READDIR and REALPATH: (name, line as of `ls -l`, attributes) each."""
    coded = [_string(name.encode()) + _string(line.encode()) + _attrs(found) for name, line, found in entries]
    return _packet(Kind.NAME, ident, _U32.pack(len(coded)), *coded)


def attributes(ident: int, found: Attributes) -> bytes:
    """Answer STAT, LSTAT and FSTAT."""
    return _packet(Kind.ATTRS, ident, _attrs(found))


def extended(ident: int, *numbers: int) -> bytes:
    """Answer an extended request with numbers of 64 bits."""
    return _packet(Kind.EXTENDED_REPLY, ident, *(_U64.pack(number) for number in numbers))


def extended_text(ident: int, text: str) -> bytes:
    """Answer an extended request with a string."""
    return _packet(Kind.EXTENDED_REPLY, ident, _string(text.encode()))


def extended_spans(ident: int, spans: Iterable[tuple[int, int]]) -> bytes:
    """Answer an extended request with byte ranges: their number, then start and stop of each."""
    coded = [_U64.pack(start) + _U64.pack(stop) for start, stop in spans]
    return _packet(Kind.EXTENDED_REPLY, ident, _U32.pack(len(coded)), *coded)


def _attrs(found: Attributes) -> bytes:
    flags, fields = 0, []
    if found.size is not None:
        flags |= Attr.SIZE
        fields.append(_U64.pack(found.size))
    if found.mode is not None:
        flags |= Attr.MODE
        fields.append(_U32.pack(found.mode))
    if found.modified is not None:
        flags |= Attr.TIMES
        fields.append(_U32.pack(found.modified) * 2)
    return _U32.pack(flags) + b"".join(fields)
