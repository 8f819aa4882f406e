"""The accept loop: connections wait here, without thread and without association slot, for their A-ASSOCIATE-RQ.

One thread polls the listening socket and every waiting connection; nothing in it blocks. A waiting connection may hold
one descriptor and the bytes of one A-ASSOCIATE-RQ for the ARTIM time, counted from accept (a slow drip gains nothing);
when there are too many the oldest goes first.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from dgis.dimse.runtime.sockets import PduRefused, Wakeup, acknowledge, pdu_length, tune

_ASSOCIATE_RQ: Final = 0x01
_TLS_HANDSHAKE: Final = 0x16
_READ: Final = 64 * 1024
# A-ABORT, service provider: "reason not specified", "unrecognized PDU", "unexpected PDU" (PS3.8 9.3.8).
_ABORT_NONE: Final = bytes.fromhex("07000000000400000200")
_ABORT_UNRECOGNISED: Final = bytes.fromhex("07000000000400000201")
_ABORT_UNEXPECTED: Final = bytes.fromhex("07000000000400000202")
_ACCEPTS_IN_A_ROW: Final = 16

Admit = Callable[[socket.socket, tuple[str, int], bytes], None]


@dataclass(slots=True)
class _Guest:
    sock: socket.socket
    address: tuple[str, int]
    deadline: float
    data: bytearray = field(default_factory=bytearray)


class Lobby:
    """Accepts on a listening socket that other processes may share, and hands on connections that have spoken."""

    def __init__(
        self, listener: socket.socket, admit: Admit, *, max_guests: int, artim: float, refused: Callable[[str], None]
    ) -> None:
        """Call `admit(connection, address, bytes read)` for a whole A-ASSOCIATE-RQ, `refused(why)` for others."""
        listener.setblocking(False)
        self._listener = listener
        self._admit = admit
        self._max_guests = max_guests
        self._artim = artim
        self._refused = refused
        self._guests: dict[int, _Guest] = {}  # in order of arrival, so the first is the oldest
        self._wakeup = Wakeup()
        self._poller = select.poll()
        self._stopping = False

    def run(self) -> None:
        """Serve until `stop`; the listening socket stays open, it may be shared."""
        self._poller.register(self._wakeup.open(), select.POLLIN)
        self._poller.register(self._listener.fileno(), select.POLLIN)
        try:
            while not self._stopping:
                self._round()
        finally:
            for guest in list(self._guests.values()):
                self._dismiss(guest, _ABORT_NONE, "shutting down")
            self._wakeup.close()

    def stop(self) -> None:
        """Make `run` return; safe from any thread."""
        self._stopping = True
        self._wakeup.set()

    def _round(self) -> None:
        oldest = next(iter(self._guests.values()), None)
        wait = None if oldest is None else max(oldest.deadline - time.monotonic(), 0.0) * 1000 + 1
        for fd, _ in self._poller.poll(wait):
            if fd == self._listener.fileno():
                self._accept()
            elif (guest := self._guests.get(fd)) is not None:
                self._listen(guest)
        now = time.monotonic()
        for guest in [g for g in self._guests.values() if g.deadline <= now]:
            self._dismiss(guest, _ABORT_NONE, "no A-ASSOCIATE-RQ in time")

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_IN_A_ROW):
            try:
                sock, address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return  # another process took it, or it is gone already
            except OSError as error:
                self._out_of_descriptors(error)
                return
            tune(sock)
            self._guests[sock.fileno()] = _Guest(sock, address[:2], time.monotonic() + self._artim)
            self._poller.register(sock.fileno(), select.POLLIN)
            if len(self._guests) > self._max_guests:
                self._dismiss(next(iter(self._guests.values())), _ABORT_NONE, "too many waiting connections")

    def _out_of_descriptors(self, error: OSError) -> None:
        """Make room for the connection that could not be accepted: it stays in the kernel's queue and comes again."""
        oldest = next(iter(self._guests.values()), None)
        if oldest is not None:
            self._dismiss(oldest, _ABORT_NONE, f"accept failed: {error.strerror}")
        else:
            self._refused(f"accept failed: {error.strerror}")
            self._poller.unregister(self._listener.fileno())
            self._poller.poll(100)  # no guest to dismiss: let associations end before trying again
            self._poller.register(self._listener.fileno(), select.POLLIN)

    def _listen(self, guest: _Guest) -> None:
        try:
            piece = guest.sock.recv(_READ)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            piece = b""
        if not piece:
            self._leave(guest)
            guest.sock.close()
            return
        acknowledge(guest.sock)
        guest.data += piece
        if len(guest.data) >= 6:
            self._judge(guest)

    def _judge(self, guest: _Guest) -> None:
        """Hand on a whole A-ASSOCIATE-RQ; refuse what cannot become one."""
        pdu_type, announced = guest.data[0], int.from_bytes(guest.data[2:6], "big")
        if pdu_type == _TLS_HANDSHAKE:
            self._dismiss(guest, b"", "a TLS client on the plain DICOM port")
            return
        try:
            length = pdu_length(pdu_type, announced, max_pdu=0)
        except PduRefused as error:
            self._dismiss(guest, _ABORT_UNRECOGNISED, str(error))
            return
        if pdu_type != _ASSOCIATE_RQ:
            self._dismiss(guest, _ABORT_UNEXPECTED, f"a PDU of type {pdu_type:02X} before association")
        elif len(guest.data) >= 6 + length:
            self._leave(guest)
            self._admit(guest.sock, guest.address, bytes(guest.data))

    def _leave(self, guest: _Guest) -> None:
        with contextlib.suppress(KeyError):
            self._poller.unregister(guest.sock.fileno())
        self._guests.pop(guest.sock.fileno(), None)

    def _dismiss(self, guest: _Guest, last_words: bytes, why: str) -> None:
        """Close a connection that has no association, with an A-ABORT if it fits."""
        self._leave(guest)
        with contextlib.suppress(OSError):
            guest.sock.send(last_words)  # a new connection's send buffer has room for ten bytes
        with contextlib.suppress(OSError):
            guest.sock.shutdown(socket.SHUT_WR)
        guest.sock.close()
        self._refused(why)
