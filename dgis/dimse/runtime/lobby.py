"""The accept loop: connections wait here, without thread and without association slot, for their A-ASSOCIATE-RQ.

One thread polls the listening socket and every waiting connection; nothing in it blocks, TLS handshakes included. A
waiting connection may hold one descriptor and the bytes of one A-ASSOCIATE-RQ for the ARTIM time, counted from accept
or from the end of its handshake, which has a time of its own (a slow drip gains nothing); when there are too many the
oldest goes first.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from dgis.dimse.limits import Limits
from dgis.dimse.runtime.sockets import PduRefused, Wakeup, acknowledge, pdu_length, tune

_ASSOCIATE_RQ: Final = 0x01
_TLS_HANDSHAKE: Final = 0x16
_READ: Final = 64 * 1024
_ABORT_RQ: Final = 0x07
# Table 9-10 of PS3.8 in Sta2: AA-1 sends an A-ABORT of the service user, AA-2 (ARTIM) closes without a word.
_AA_1: Final = bytes.fromhex("07000000000400000000")
_AA_2: Final = b""
# Ours to end: A-ABORT of the service provider, reason not specified (PS3.8 9.3.8).
_BUSY: Final = bytes.fromhex("07000000000400000200")
_ACCEPTS_IN_A_ROW: Final = 16


Judge = Callable[[], str | None]
"""Say why the peer of a connection is refused by now, None while it is not. From any thread."""


class Security(Protocol):
    """What a TLS port needs (`dgis.dimse.secure.TlsDoor`)."""

    def wrap(self, sock: socket.socket) -> ssl.SSLSocket:
        """Take over a non-blocking connection whose handshake has not begun. Raises OSError when it is gone."""

    def identify(self, connection: ssl.SSLSocket) -> tuple[str, Judge | None]:
        """Return the peer's subject DN and its judge, "" and None without a certificate.

        Raises OSError for one that is refused.
        """

    def explain(self, error: ssl.SSLError) -> str:
        """Say in words why a handshake failed."""


@dataclass(frozen=True, slots=True)
class Door:
    """A listening socket, shared or not; with `security` it speaks TLS."""

    listener: socket.socket
    security: Security | None = None


@dataclass(frozen=True, slots=True)
class Arrived:
    """A connection whose whole A-ASSOCIATE-RQ is in `head`; with the subject DN of its certificate, and its judge."""

    sock: socket.socket
    address: tuple[str, int]
    head: bytes
    certificate: str
    judge: Judge | None = None


Admit = Callable[[Arrived], None]
Refused = Callable[[str, str], None]
"""Why, and the address of the peer ("" when it has none)."""


@dataclass(slots=True)
class _Guest:
    sock: socket.socket
    address: tuple[str, int]
    deadline: float
    open: bool  # PDUs may be read: no handshake is due any more
    certificate: str = ""
    judge: Judge | None = None
    data: bytearray = field(default_factory=bytearray)


class Lobby:
    """Accepts on a listening socket that other processes may share, and hands on connections that have spoken."""

    def __init__(self, door: Door, admit: Admit, *, limits: Limits, refused: Refused) -> None:
        """Call `admit` for a whole A-ASSOCIATE-RQ, `refused` for every other end of a connection by us."""
        door.listener.setblocking(False)
        self._listener = door.listener
        self._security = door.security
        self._admit = admit
        self._max_guests = limits.waiting
        self._artim = limits.artim
        self._handshake_time = limits.handshake
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
                self._dismiss(guest, _BUSY, "shutting down")
            self._wakeup.close()

    def stop(self) -> None:
        """Make `run` return; safe from any thread."""
        self._stopping = True
        self._wakeup.set()

    def _round(self) -> None:
        due = min((guest.deadline for guest in self._guests.values()), default=None)
        wait = None if due is None else max(due - time.monotonic(), 0.0) * 1000 + 1
        for fd, _ in self._poller.poll(wait):
            if fd == self._listener.fileno():
                self._accept()
            elif (guest := self._guests.get(fd)) is not None:
                self._attend(guest)
        now = time.monotonic()
        for guest in [g for g in self._guests.values() if g.deadline <= now]:
            why = "no A-ASSOCIATE-RQ in time" if guest.open else "no TLS handshake in time"
            self._dismiss(guest, _AA_2, why)

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
            patience = self._artim if self._security is None else self._handshake_time
            guest = _Guest(sock, address[:2], time.monotonic() + patience, open=self._security is None)
            self._guests[sock.fileno()] = guest
            self._poller.register(sock.fileno(), select.POLLIN)
            if len(self._guests) > self._max_guests:
                self._dismiss(next(iter(self._guests.values())), _BUSY, "too many waiting connections")

    def _out_of_descriptors(self, error: OSError) -> None:
        """Make room for the connection that could not be accepted: it stays in the kernel's queue and comes again."""
        oldest = next(iter(self._guests.values()), None)
        if oldest is not None:
            self._dismiss(oldest, _BUSY, f"accept failed: {error.strerror}")
        else:
            self._refused(f"accept failed: {error.strerror}", "")
            self._poller.unregister(self._listener.fileno())
            self._poller.poll(100)  # no guest to dismiss: let associations end before trying again
            self._poller.register(self._listener.fileno(), select.POLLIN)

    def _attend(self, guest: _Guest) -> None:
        try:
            if guest.open or self._shake_hands(guest):
                self._listen(guest)
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError):
            self._poller.modify(guest.sock.fileno(), select.POLLIN)
        except ssl.SSLWantWriteError:
            self._poller.modify(guest.sock.fileno(), select.POLLOUT)
        except ssl.SSLError as error:  # the peer has got its TLS alert
            why = "TLS" if self._security is None else self._security.explain(error)
            self._dismiss(guest, b"", f"TLS handshake failed: {why}" if not guest.open else f"TLS failed: {why}")
        except OSError:
            self._leave(guest)
            guest.sock.close()

    def _shake_hands(self, guest: _Guest) -> bool:
        """Go on with the handshake of a connection to a TLS port; raises what it waits for or failed by."""
        security = self._security
        assert security is not None
        if not isinstance(guest.sock, ssl.SSLSocket):
            first = guest.sock.recv(1, socket.MSG_PEEK)
            if first and 0x01 <= first[0] <= 0x07:
                self._dismiss(guest, _AA_1, "a plain DICOM client on the DICOM TLS port")
                return False
            guest.sock = security.wrap(guest.sock)  # the same descriptor
        try:
            guest.sock.do_handshake()
        finally:
            acknowledge(guest.sock)  # or Nagle at the peer keeps its next message back
        try:
            guest.certificate, guest.judge = security.identify(guest.sock)
        except OSError as error:
            self._dismiss(guest, _BUSY, f"certificate refused: {error}")
            return False
        guest.open, guest.deadline = True, time.monotonic() + self._artim
        return True

    def _listen(self, guest: _Guest) -> None:
        """Read what is there. Raises OSError when nothing is, or nothing more will come."""
        piece = guest.sock.recv(_READ)
        if not piece:
            raise ConnectionResetError
        acknowledge(guest.sock)
        guest.data += piece
        if len(guest.data) >= 6:
            self._judge(guest)
        if guest.sock.fileno() in self._guests and isinstance(guest.sock, ssl.SSLSocket) and guest.sock.pending():
            self._listen(guest)  # at most one TLS record: poll() does not see what is decrypted already

    def _judge(self, guest: _Guest) -> None:
        """Hand on a whole A-ASSOCIATE-RQ; refuse what cannot become one."""
        pdu_type, announced = guest.data[0], int.from_bytes(guest.data[2:6], "big")
        if pdu_type == _TLS_HANDSHAKE and self._security is None:
            self._dismiss(guest, b"", "a TLS client on the plain DICOM port")
            return
        if pdu_type == _ABORT_RQ:
            self._dismiss(guest, _AA_2, "an A-ABORT before association")
            return
        try:
            if _ASSOCIATE_RQ < pdu_type < _ABORT_RQ:
                raise PduRefused(f"a PDU of type {pdu_type:02X} before association")
            length = pdu_length(pdu_type, announced, max_pdu=0)
        except PduRefused as error:
            self._dismiss(guest, _AA_1, str(error))
            return
        if len(guest.data) >= 6 + length:
            self._leave(guest)
            self._admit(Arrived(guest.sock, guest.address, bytes(guest.data), guest.certificate, guest.judge))

    def _leave(self, guest: _Guest) -> None:
        with contextlib.suppress(KeyError):
            self._poller.unregister(guest.sock.fileno())
        self._guests.pop(guest.sock.fileno(), None)

    def _dismiss(self, guest: _Guest, last_words: bytes, why: str) -> None:
        """Close a connection that has no association, with an A-ABORT if it fits."""
        self._leave(guest)
        with contextlib.suppress(OSError, ValueError):
            guest.sock.send(last_words)  # a new connection's send buffer has room for ten bytes
        with contextlib.suppress(OSError):
            socket.socket.shutdown(guest.sock, socket.SHUT_WR)
        with contextlib.suppress(OSError):
            while socket.socket.recv(guest.sock, _READ):
                pass  # unread bytes would turn the end into a reset, and the peer might miss alert or A-ABORT
        guest.sock.close()
        self._refused(why, guest.address[0])
