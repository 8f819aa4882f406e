"""MODE E blocks (GFD.20 section 3.4): a 17-byte header before each piece of a file; no I/O here.

One transfer may use several data connections. Each ends with EOD; one block somewhere carries EOF and, in its offset
field, how many EODs there will be. A connection whose EOD has no close flag is used again by the next transfer.
"""

from __future__ import annotations

import struct

# 8 bits of descriptor, 64 bits of byte count, 64 bits of offset
_HEADER = struct.Struct(">BQQ")
HEADER_BYTES = _HEADER.size
_EOF = 64
_SUSPECT = 32
_RESTART = 16
_EOD = 8
_CLOSE = 4
_KNOWN = _EOF | _EOD | _CLOSE
# No file and no count of connections comes near it; keeps sums far from what a disk call cannot take.
MOST_BYTES = 1 << 50
MOST_STREAMS = 1024

Piece = tuple[int, memoryview]


class BlockError(Exception):
    """The bytes are no MODE E blocks; the data connection is of no more use."""


def block_header(size: int, offset: int) -> bytes:
    """Return the header of `size` bytes that belong at `offset`."""
    return _HEADER.pack(0, size, offset)


def end_of_data(*, streams: int | None = None, close: bool = False) -> bytes:
    """Return the block that ends a data connection's part; `streams` (on one of them) tells how many such ends come."""
    flags = _EOD | (_CLOSE if close else 0)
    return _HEADER.pack(flags, 0, 0) if streams is None else _HEADER.pack(flags | _EOF, 0, streams)


class BlockParser:
    """Cuts the bytes of one data connection into pieces of a file, up to the end of one transfer."""

    def __init__(self) -> None:
        self.ended = False
        self.closing = False
        self.streams: int | None = None
        self._head = b""
        self._left = 0
        self._offset = 0
        self._last = False
        self._seen = False

    @property
    def begun(self) -> bool:
        """Whether anything of this transfer has come."""
        return bool(self._head) or self._seen

    @property
    def wanted(self) -> int:
        """How many bytes surely belong to this transfer still: a block's rest and a header; 0 when it has ended."""
        if self.ended:
            return 0
        if self._left:
            return self._left if self._last else self._left + HEADER_BYTES
        return HEADER_BYTES - len(self._head)

    def feed(self, data: memoryview) -> tuple[list[Piece], int]:
        """Return the pieces in `data` (slices of it) and how many bytes were used; the rest is the next transfer's.

        Raises BlockError.
        """
        pieces: list[Piece] = []
        at, stop = 0, len(data)
        while at < stop and not self.ended:
            if self._left:
                taken = min(self._left, stop - at)
                pieces.append((self._offset, data[at : at + taken]))
                self._offset += taken
                self._left -= taken
                at += taken
                self.ended = self._last and not self._left
                continue
            part = bytes(data[at : at + HEADER_BYTES - len(self._head)])
            at += len(part)
            self._head += part
            if len(self._head) == HEADER_BYTES:
                self._begin(*_HEADER.unpack(self._head))
                self._head = b""
        return pieces, at

    def _begin(self, flags: int, size: int, offset: int) -> None:
        if flags & (_SUSPECT | _RESTART) or flags & ~_KNOWN:
            raise BlockError("a block has a descriptor that is not understood")
        if size > MOST_BYTES or offset > MOST_BYTES:
            raise BlockError("a block lies beyond every file")
        self._seen = True
        self.closing = self.closing or bool(flags & _CLOSE)
        if flags & _EOF:
            if size or not 1 <= offset <= MOST_STREAMS:
                raise BlockError("an end of file names no sensible number of connections")
            self.streams = offset
            offset = 0
        self._left, self._offset = size, offset
        self._last = bool(flags & _EOD)
        self.ended = self._last and not size
