"""The transport connection of one association: buffered reads of whole PDUs, writes that push back, no select()."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from pynetdicom.transport import T_CONNECT, AddressInformation, AssociationSocket

if TYPE_CHECKING:
    from pynetdicom.association import Association

_FIRST_BUFFER: Final = 16 * 1024
_HEADER: Final = 6
# What a PDU of each type may announce. P-DATA is limited by what we negotiated, plus what sloppy senders add.
_CONTROL_LIMIT: Final = 256 * 1024
_FIXED_LIMIT: Final = 1024
_SLACK: Final = 64
_BEFORE: Final = 4096  # a command before the first P-DATA of its data set, so that this fits where it is
_LITTLE_ROOM: Final = 4096
_LONG: Final = 32 * 1024
P_DATA: Final = 0x04


class PeerGone(ConnectionError):
    """The transport connection is closed or broken, or the peer took nothing for too long."""


class PduRefused(ValueError):
    """A PDU header that must not be followed: unknown type or an announced length beyond reason."""


def tune(sock: socket.socket) -> None:
    """Make a connection non-blocking and switch Nagle off (stack.md: 44 ms an object otherwise)."""
    sock.setblocking(False)
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def acknowledge(sock: socket.socket) -> None:
    """Acknowledge at once what was read. The kernel forgets this after a while, so it is set again and again."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def pdu_length(pdu_type: int, length: int, *, max_pdu: int) -> int:
    """Return the announced length of a PDU body; raise PduRefused before anything is allocated for it."""
    limits = {0x01: _CONTROL_LIMIT, 0x02: _CONTROL_LIMIT, P_DATA: max_pdu + _SLACK}
    if not 0x01 <= pdu_type <= 0x07:
        raise PduRefused(f"unknown PDU type {pdu_type:02X}")
    if length > limits.get(pdu_type, _FIXED_LIMIT):
        raise PduRefused(f"a PDU of type {pdu_type:02X} announces {length} bytes")
    return length


def _receive(sock: socket.socket, room: memoryview) -> int:
    """Read once; over TLS, which gives one record of 16 KiB at a time, as much as there is."""
    count = sock.recv_into(room)
    if isinstance(sock, ssl.SSLSocket):
        with contextlib.suppress(OSError):  # nothing more now; what broke will be seen at the next read
            while 0 < count < len(room) and (more := sock.recv_into(room[count:])):
                count += more
    return count


class Wakeup:
    """A descriptor that another thread can make readable. Safe to set before `open` and after `close`."""

    def __init__(self) -> None:
        """Hold no descriptor yet."""
        self._lock = threading.Lock()
        self._fd: int | None = None
        self._due = False

    def open(self) -> int:
        """Make the descriptor and return it for poll()."""
        with self._lock:
            self._fd = os.eventfd(1 if self._due else 0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            return self._fd

    def set(self) -> None:
        """Make it readable."""
        with self._lock:  # the number of a closed descriptor may belong to a file by now
            self._due = True
            if self._fd is not None:
                os.eventfd_write(self._fd, 1)

    def clear(self) -> None:
        """Make it unreadable again."""
        if not self._due:  # nearly always; whoever sets it now wakes the next poll()
            return
        with self._lock, contextlib.suppress(BlockingIOError):
            self._due = False
            if self._fd is not None:
                os.eventfd_read(self._fd)

    def close(self) -> None:
        """Give the descriptor back."""
        with self._lock:
            fd, self._fd = self._fd, None
            if fd is not None:
                os.close(fd)


class GridSocket(AssociationSocket):
    """One reader, any number of writers that take turns (`GridAssociation.turn`)."""

    def __init__(
        self,
        assoc: Association,
        client_socket: socket.socket | None = None,
        address: AddressInformation | None = None,
        *,
        max_pdu: int,
        send_timeout: float,
        head: bytes = b"",
    ) -> None:
        """Wrap an accepted connection of which `head` was already read, or make one to connect from `address`."""
        super().__init__(assoc, client_socket=client_socket, address=address)
        self._max_pdu = max_pdu
        self._send_timeout = send_timeout
        self._buffer = bytearray(max(_FIRST_BUFFER, len(head)))
        self._buffer[: len(head)] = head
        self._start, self._end = 0, len(head)
        self._wanted = 0  # the length of the PDU that is being received, 0 when its header is not there yet
        self._owed = False  # an acknowledgement
        self.secure: Callable[[socket.socket], ssl.SSLSocket] | None = None
        # OpenSSL objects must not be used by two threads at once; a plain socket may.
        self._io_lock = threading.Lock() if isinstance(client_socket, ssl.SSLSocket) else contextlib.nullcontext()
        if client_socket is not None:
            tune(client_socket)

    def connect(self, primitive: T_CONNECT) -> None:
        """Connect (bounded by the association's connection timeout), then go non-blocking."""
        super().connect(primitive)
        if self.socket is not None and self.secure is not None:
            self._secure(primitive, self.secure)
        if self.socket is not None:
            tune(self.socket)

    def _secure(self, primitive: T_CONNECT, secure: Callable[[socket.socket], ssl.SSLSocket]) -> None:
        """Shake hands; a failure becomes that of the connection, which nobody has looked at yet."""
        plain = self.socket
        assert plain is not None
        try:
            plain.settimeout(self.assoc.connection_timeout)
            self.socket = secure(plain)
            self._io_lock = threading.Lock()
        except OSError:
            self._shutdown_socket()
            self.socket = None
            self._is_connected = False
            primitive.result = "Evt17"

    # --- reading: the reading thread only ------------------------------------------------------------------------

    def next_pdu(self) -> tuple[int, memoryview] | None:
        """Return (type, body) of the next whole PDU in the buffer, valid until the next `fill`; None for more input."""
        available, self._wanted = self._end - self._start, 0
        if available < _HEADER:
            return None
        head = self._start
        announced = int.from_bytes(self._buffer[head + 2 : head + _HEADER], "big")
        length = pdu_length(self._buffer[head], announced, max_pdu=self._max_pdu)
        if available < _HEADER + length:
            self._wanted = _HEADER + length
            self._make_room(self._wanted)
            return None
        self._start += _HEADER + length
        return self._buffer[head], memoryview(self._buffer)[head + _HEADER : self._start]

    @property
    def in_pdu(self) -> bool:
        """Whether a PDU has begun and is not complete."""
        return self._end > self._start

    def fill(self) -> int:
        """Read what there is without blocking; return how many bytes, -1 when the peer has closed or it broke."""
        sock = self.socket
        if sock is None:
            return -1
        try:
            with self._io_lock:
                count = _receive(sock, self._room())
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError, InterruptedError):
            return 0
        except OSError:
            return -1
        self._end += count
        self._owed = True
        return count or -1

    def _room(self) -> memoryview:
        """Where the next bytes go. Of a long PDU no more than its rest, so that the one after it need not be moved."""
        if self._start == self._end:
            self._start = self._end = 0
        elif len(self._buffer) - self._end < _LITTLE_ROOM:
            self._make_room(len(self._buffer))
        stop = len(self._buffer)
        if self._wanted > _LONG:
            stop = min(stop, self._start + self._wanted + _HEADER)
        return memoryview(self._buffer)[self._end : stop]

    def acknowledge(self) -> None:
        """Acknowledge what was read before waiting for more, unless something was sent since: that said it too.

        A peer with Nagle's algorithm keeps its next piece back until then (DCMTK: 44 ms an object).
        """
        sock = self.socket
        if self._owed and sock is not None:
            self._owed = False
            acknowledge(sock)

    def discard(self) -> None:
        """Forget what was read: nobody will look at it any more."""
        self._start = self._end = 0

    def pending(self) -> bool:
        """Whether TLS holds decrypted bytes that poll() cannot see."""
        return isinstance(self.socket, ssl.SSLSocket) and bool(self.socket.pending())

    def _make_room(self, wanted: int) -> None:
        """Have `wanted` bytes fit from the unread rest on: move it to the front, in a larger buffer if need be."""
        if self._start + wanted <= len(self._buffer):
            return
        rest = self._end - self._start
        if wanted > len(self._buffer):
            # One step from control PDUs to full-sized P-DATA; idle associations keep the small buffer.
            grown = bytearray(max(wanted, self._max_pdu + _SLACK + _HEADER) + _BEFORE)
            grown[:rest] = memoryview(self._buffer)[self._start : self._end]
            self._buffer = grown
        else:
            self._buffer[:rest] = self._buffer[self._start : self._end]
        self._start, self._end = 0, rest

    # --- writing -------------------------------------------------------------------------------------------------

    def send_all(self, data: bytes | memoryview) -> None:
        """Write all of it, waiting for a slow peer at most the send timeout. Raises PeerGone."""
        view, deadline = memoryview(data), time.monotonic() + self._send_timeout
        while view:
            sock = self.socket
            if sock is None:
                raise PeerGone("the connection is closed")
            self._owed = False  # before sending: what is read from now on is not covered by it
            try:
                with self._io_lock:
                    sent = sock.send(view)
                view = view[sent:]
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError, InterruptedError):
                self._wait_writable(sock, deadline)
            except OSError as error:
                raise PeerGone(f"the connection broke: {error.strerror}") from error

    def send(self, bytestream: bytes) -> None:
        """Write one control PDU; a broken connection becomes Evt17, as upstream has it."""
        try:
            self.send_all(bytestream)
        except PeerGone:
            self.event_queue.put("Evt17")

    def hang_up(self) -> None:
        """Break the connection under whoever reads or writes it; safe from any thread."""
        sock = self.socket
        if sock is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # not SSLSocket's, which would go on in clear

    def _wait_writable(self, sock: socket.socket, deadline: float) -> None:
        left = deadline - time.monotonic()
        fd = sock.fileno()
        if left <= 0 or fd < 0:
            raise PeerGone("the peer takes no data")
        poller = select.poll()
        poller.register(fd, select.POLLOUT)
        if not poller.poll(left * 1000):
            raise PeerGone("the peer takes no data")

    def _shutdown_socket(self) -> None:
        """Shut down and close, each whatever the other does (upstream leaves the socket open when shutdown fails)."""
        sock = self.socket
        if sock is not None:
            if isinstance(sock, ssl.SSLSocket):
                with contextlib.suppress(OSError, ValueError), self._io_lock:
                    sock.unwrap()  # close_notify, so that the end does not look like a cut
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
            with contextlib.suppress(OSError):
                sock.close()
