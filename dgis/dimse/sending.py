"""Write a C-STORE-RQ with its data set as it lies in a file or in memory; memory holds a bounded number of fragments.

Peers take small PDUs (DCMTK 16 KiB unless told otherwise), so the cost is in the calls: the command and as many
fragments as fit `BATCH_BYTES` are laid out in one buffer, read there by one preadv around their headers, and leave by
one send. Measured with 512 KiB: 0.113 ms of CPU with a read and a send for each fragment of 16 KiB, 0.069 so (0.064 and
0.061 at 128 KiB). 512 KiB at once cost 0.126: what is copied does not stay in the processor's cache.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from dgis.dimse import command as dimse
from dgis.dimse.command import PDV_HEAD_LENGTH
from dgis.dimse.outgoing import Outgoing
from dgis.dimse.runtime.association import GridAssociation

BATCH_BYTES = 256 * 1024
_MOST_FRAGMENTS = 1000  # of one preadv (IOV_MAX is 1024)
_HEAD = struct.Struct(">BBLLBB")


class SendCancelled(Exception):
    """The one who wanted the instance does not want it any more; the association was aborted in mid-message."""


class _Reader(Protocol):
    """Where a data set comes from, from its beginning on."""

    def fill(self, views: list[memoryview]) -> bool:
        """Fill the views one after the other; False when there is not so much."""


class Buffer:
    """The memory that data sets are laid out in, kept from one instance to the next of a sender."""

    def __init__(self) -> None:
        self._memory = memoryview(b"")

    def of(self, size: int) -> memoryview:
        """Return so many bytes, which hold anything."""
        if len(self._memory) < size:
            self._memory = memoryview(bytearray(size))
        return self._memory[:size]


def send_data_set(
    association: GridAssociation,
    context_id: int,
    request: bytes,
    item: Outgoing,
    *,
    buffer: Buffer | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> None:
    """Write a C-STORE-RQ and its data set.

    Raises OSError before anything is sent when the file cannot be read; PeerGone when the association ends;
    SendCancelled when `cancelled` came true (then the association has been aborted).
    """
    limit = association.peer_max_pdu
    command = b"".join(dimse.p_data(context_id, request, is_command=True, max_pdu=limit))
    message = _Message(context_id, command, item.length, dimse.fragment_room(limit), buffer or Buffer())
    with _opened(item) as reader, association.turn():
        for part in message.parts(reader):
            if part is None or (cancelled is not None and cancelled()):
                break
            association.write_in_turn(part)
        else:
            return
    association.abort(block=False)  # outside the turn: an A-ABORT waits for it
    raise SendCancelled


class _Message:
    """One message cut into fragments."""

    def __init__(self, context_id: int, command: bytes, length: int, room: int, buffer: Buffer) -> None:
        self._context_id, self._command = context_id, command
        self._length, self._room = length, room
        self._batch = max(1, min(BATCH_BYTES // (room + PDV_HEAD_LENGTH), _MOST_FRAGMENTS))
        size = min(self._batch * (room + PDV_HEAD_LENGTH), length + PDV_HEAD_LENGTH * (length // room + 1))
        self._memory = buffer.of(len(command) + size)

    def parts(self, reader: _Reader) -> Iterator[memoryview | None]:
        """Yield what to write, each valid until the next; None when the data set ends early, in mid-message."""
        left, at = self._length, len(self._command)
        self._memory[:at] = self._command
        while True:
            sizes = self._sizes(left)
            left -= sum(sizes)
            views, end = self._lay_out(sizes, at, last=left == 0)
            yield self._memory[:end] if reader.fill(views) else None
            if left == 0:
                return
            at = 0

    def _sizes(self, left: int) -> list[int]:
        full, rest = divmod(min(left, self._batch * self._room), self._room)
        return [self._room] * full + ([rest] if rest or not full else [])

    def _lay_out(self, sizes: list[int], at: int, *, last: bool) -> tuple[list[memoryview], int]:
        """Write the headers of fragments of these sizes; return where their bytes go, and the end."""
        views, memory = [], self._memory
        for number, size in enumerate(sizes, 1):
            control = 0x02 if last and number == len(sizes) else 0x00
            _HEAD.pack_into(memory, at, 0x04, 0, size + 6, size + 2, self._context_id, control)
            views.append(memory[at + PDV_HEAD_LENGTH : at + PDV_HEAD_LENGTH + size])
            at += PDV_HEAD_LENGTH + size
        return views, at


@contextlib.contextmanager
def _opened(item: Outgoing) -> Iterator[_Reader]:
    if item.content is not None:
        yield _Memory(item.content, item.offset)
        return
    fd = os.open(item.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_size < item.offset + item.length:
            raise OSError("the file is shorter than the object")
        yield _File(fd, item.offset)
    finally:
        os.close(fd)


class _File:
    """A data set in a file."""

    def __init__(self, fd: int, offset: int) -> None:
        self._fd, self._at = fd, offset

    def fill(self, views: list[memoryview]) -> bool:
        """Read; whole in one call unless the file system gives less at once."""
        while views:
            count = os.preadv(self._fd, views, self._at)
            if not count:
                return not any(views)
            self._at += count
            while views and count >= len(views[0]):
                count -= len(views.pop(0))
            if views:
                views[0] = views[0][count:]
        return True


class _Memory:
    """A data set in pieces."""

    def __init__(self, content: Sequence[bytes], offset: int) -> None:
        self._pieces = iter(content)
        self._rest = memoryview(b"")
        while offset > len(self._rest):
            offset -= len(self._rest)
            self._rest = memoryview(next(self._pieces, b""))
            if not self._rest:
                return
        self._rest = self._rest[offset:]

    def fill(self, views: list[memoryview]) -> bool:
        """Copy."""
        for view in views:
            at = 0
            while at < len(view):
                if not self._rest:
                    self._rest = memoryview(next(self._pieces, b""))
                    if not self._rest:
                        return False
                count = min(len(view) - at, len(self._rest))
                view[at : at + count] = self._rest[:count]
                self._rest, at = self._rest[count:], at + count
        return True
