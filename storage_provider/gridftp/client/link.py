"""A data connection: mutual TLS under the session's throw-away credential, its waits watching the control connection.

A far side that fails says so on the control connection and often leaves the data connection as it is; so whoever waits
for one listens to the other.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable

from certs.tls import Side, holds_pinned, pinned_context
from storage_provider.errors import StorageError, Unreachable
from storage_provider.gridftp import dcsc
from storage_provider.gridftp.addresses import Endpoint
from storage_provider.gridftp.client.control import Control
from storage_provider.gridftp.settings import PortRange

# Half of a credential's life: no session outlives its credential
_RENEW_SECONDS = dcsc.LIFE.total_seconds() / 2
_RAW_BYTES = 512 * 1024
# Bytes that are encrypted in one go, for one send
_SLICE_BYTES = 256 * 1024

Heard = Callable[[], None]
# Makes a TCP connection within so many seconds; raises OSError
Dial = Callable[[Endpoint, float], socket.socket]


class DataIdentity:
    """The throw-away credential of the data connections to a door, made at first use and renewed in time.

    Each door has its own: who runs one of them could otherwise stand in for another.
    """

    def __init__(self, *, ours: bool) -> None:
        self._ours = ours
        self._lock = threading.Lock()
        self._made: DataTls | None = None
        self._until = 0.0

    def current(self) -> DataTls:
        """Return the credential for a new session."""
        with self._lock:
            if self._made is None or time.monotonic() > self._until:
                self._made = DataTls(dcsc.make(rsa_key=not self._ours))
                self._until = time.monotonic() + _RENEW_SECONDS
            return self._made


class DataTls:
    """One credential and the TLS contexts of both roles made of it."""

    def __init__(self, credential: dcsc.DataCredential) -> None:
        self.blob = credential.blob
        self.pem = credential.pem
        self._contexts: dict[Side, ssl.SSLContext] = {
            "client": pinned_context(credential.pem, "client"),
            "server": pinned_context(credential.pem, "server"),
        }

    def context(self, side: Side) -> ssl.SSLContext:
        """Return the context of one role."""
        return self._contexts[side]


class Link:
    """A data connection; `shake` must be called once before bytes move.

    TLS goes through memory buffers: from a socket `ssl` reads one record of 16 KiB by two system calls, from a buffer
    that one large read has filled it is twice as fast; so is writing. While bytes move, the server is judged again.
    """

    def __init__(self, sock: socket.socket, tls: DataTls, side: Side, control: Control, *, up: bool) -> None:
        self.up = up
        self.shaken = False
        self.closing = False
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = tls.context(side).wrap_bio(self._incoming, self._outgoing, server_side=side == "server")
        self._pem = tls.pem
        self._sock = sock
        self._sock.setblocking(False)
        self._raw = memoryview(bytearray(_RAW_BYTES))
        self._control = control
        self._patience = control.timeouts.answer
        self._poll = select.poll()
        self._stalled: float | None = None

    def shake(self, heard: Heard) -> None:
        """Do the handshake; raises Unreachable, or what `heard` raises about the far side's reply."""
        try:
            while not self._stepped():
                self._flush(heard)
                if not self._fill():
                    self._wait(select.POLLIN, heard)
            self._flush(heard)
        except (OSError, ValueError) as error:
            raise self._broken("the data connection failed", heard) from error
        if not holds_pinned(self._tls, self._pem):
            raise self.lost("the data connection ends at somebody else's")

    def _stepped(self) -> bool:
        try:
            self._tls.do_handshake()
            self.shaken = True
        except ssl.SSLWantReadError:
            pass
        return self.shaken

    def send(self, view: memoryview, heard: Heard) -> None:
        """Send all of it; `heard` is called whenever replies have come, and ends the sending by raising."""
        at, stop = 0, len(view)
        try:
            while at < stop:
                end = min(at + _SLICE_BYTES, stop)
                while at < end:
                    at += self._tls.write(view[at:end])
                self._flush(heard)
        except OSError as error:
            raise self._broken("the data connection was cut", heard) from error

    def receive(self, view: memoryview, heard: Heard, *, seconds: float) -> int:
        """Fill `view`, or what of it comes within `seconds` (at least one byte); 0 is the end of the stream.

        An end without TLS's close_notify looks the same: callers know by sizes and marks what must come.
        """
        at, stop, until = 0, len(view), time.monotonic() + seconds
        while at < stop:
            try:
                read = self._tls.read(stop - at, view[at:])
                if not read:
                    return at
                at += int(read)
            except ssl.SSLWantReadError:
                if self._came(heard):
                    continue
                if at and time.monotonic() >= until:
                    return at
                self._wait(select.POLLIN, heard, most=until - time.monotonic() if at else None)
            except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
                return at
            except ssl.SSLError as error:
                raise self._broken("the data connection broke", heard) from error
        return at

    def _came(self, heard: Heard) -> bool:
        try:
            return self._fill()
        except OSError as error:
            raise self._broken("the data connection was cut", heard) from error

    def _fill(self) -> bool:
        """Take what has come from the socket; False when nothing is there."""
        try:
            count = self._sock.recv_into(self._raw)
        except BlockingIOError:
            return False
        self._control.judge_again()
        self._stalled = None
        if count:
            self._incoming.write(self._raw[:count])
        else:
            self._incoming.write_eof()
        return True

    def _flush(self, heard: Heard) -> None:
        """Send what is encrypted."""
        left = memoryview(self._outgoing.read())
        while left:
            try:
                self._control.judge_again()
                left = left[self._sock.send(left) :]
                self._stalled = None
            except BlockingIOError:
                self._wait(select.POLLOUT, heard)

    def idle(self) -> bool:
        """Tell whether it is up with nothing to read, so that it can be used again."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN | select.POLLRDHUP)
        return not self._tls.pending() and not self._incoming.pending and not poll.poll(0)

    def lost(self, why: str) -> Unreachable:
        """Make the error that ends this connection."""
        return Unreachable(why, door=self._control.door.url)

    def reset_on_close(self) -> None:
        """Let closing reset the connection, which leaves nothing behind at either end."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def close(self) -> None:
        """Close without ceremony."""
        self._sock.close()

    def _wait(self, events: int, heard: Heard, *, most: float | None = None) -> None:
        """Wait for the data connection; replies that come meanwhile go to `heard`, but are no progress of its own."""
        now = time.monotonic()
        if self._stalled is None:
            self._stalled = now
        left = self._stalled + self._patience - now
        if left <= 0:
            raise self.lost(f"no progress within {self._patience:.1f} s")
        patience = left if most is None else max(0.0, min(most, left))
        poll = self._poll
        poll.register(self._sock, events)
        listen = not self._control.ready()
        if not listen:
            heard()
            listen = not self._control.ready()
        if listen:
            poll.register(self._control, select.POLLIN)
        found = {fd for fd, _ in poll.poll(patience * 1000)}
        if listen:
            poll.unregister(self._control)
            if self._control.fileno() in found and self._control.ready():
                heard()

    def _broken(self, why: str, heard: Heard) -> StorageError:
        """Give the far side a moment to say why it closed; else it is unreachable."""
        until = time.monotonic() + min(1.0, self._patience)
        try:
            while time.monotonic() < until:
                if self._control.ready():
                    heard()
                    break
                time.sleep(0.01)
        except StorageError as error:
            return error
        return self.lost(why)


def plainly(endpoint: Endpoint, seconds: float) -> socket.socket:
    """Connect straight to the address."""
    return socket.create_connection(endpoint, timeout=seconds)


def connect(endpoint: Endpoint, control: Control, dial: Dial) -> socket.socket:
    """Connect to a passive far side."""
    try:
        sock = dial(endpoint, control.timeouts.answer)
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise Unreachable(f"cannot connect to data port {endpoint[1]}: {why}", door=control.door.url) from error
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def listener(host: str, ports: PortRange | None) -> socket.socket:
    """Listen for a far side that connects to us, at the first free port of the range."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    low, high = ports or (0, 0)
    for port in range(low, high + 1):
        with contextlib.suppress(OSError):
            return socket.create_server((host, port), family=family, backlog=4)
    raise OSError("no data port is free")


def accept(waiting: socket.socket, control: Control, heard: Heard) -> socket.socket:
    """Wait for the far side's connection, listening to what it says meanwhile."""
    poll = select.poll()
    poll.register(waiting, select.POLLIN)
    poll.register(control, select.POLLIN)
    until = time.monotonic() + control.timeouts.answer
    while (left := until - time.monotonic()) > 0:
        if control.ready():
            heard()
            with contextlib.suppress(KeyError):
                poll.unregister(control)
        if waiting.fileno() in {fd for fd, _ in poll.poll(left * 1000)}:
            sock, _ = waiting.accept()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
    raise Unreachable("the server did not connect to our data port", door=control.door.url)
