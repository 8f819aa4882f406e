"""One data connection: TLS over a socket that never blocks, by way of memory buffers.

`ssl` reads one record of 16 KiB per system call from a socket; from a buffer that a large read has filled it is
twice as fast, and so is writing.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from storage_provider.gridftp.blocks import Piece

_RAW_BYTES = 512 * 1024
_PLAIN_BYTES = 1024 * 1024 + 4096
# Plain bytes that are encrypted in one go, for one send
SLICE_BYTES = 256 * 1024
# Bytes taken from one stream before the others, the markers and the control connection get their turn
_TURN_BYTES = 4 * 1024 * 1024
_SMALL_BYTES = 16 * 1024
_DRAIN_BYTES = 64 * 1024
_MOST_DRAINS = 16


class StreamError(Exception):
    """A data connection failed: cut, TLS broken, or a stranger at the other end."""


class Parser(Protocol):
    """Makes pieces of a file from the bytes of one connection."""

    @property
    def wanted(self) -> int:
        """How many bytes surely belong to this transfer still; 0 when it has ended."""

    def feed(self, data: memoryview) -> tuple[list[Piece], int]:
        """Return the pieces in `data` and how much of it was used."""


@dataclass(slots=True)
class Scratch:
    """Buffers of one running transfer, used again by later ones; `spare` is made when it is first needed."""

    raw: memoryview = field(default_factory=lambda: memoryview(bytearray(_RAW_BYTES)))
    plain: memoryview = field(default_factory=lambda: memoryview(bytearray(_PLAIN_BYTES)))
    _spare: memoryview | None = None

    @property
    def spare(self) -> memoryview:
        """A second buffer as large as `plain`."""
        if self._spare is None:
            self._spare = memoryview(bytearray(_PLAIN_BYTES))
        return self._spare


class Sink(Protocol):
    """Takes the pieces of one file."""

    @property
    def buffer(self) -> memoryview:
        """Where the next bytes are put."""

    def take(self, pieces: Sequence[Piece]) -> None:
        """Take over pieces, slices of `buffer`."""


class Stream:
    """One data connection; not thread-safe. `context` is made for this connection alone.

    TLS lets go of the interpreter's lock for each record, which costs more than the record when another thread is after
    it. So all sessions take turns (`turn`) at ciphering a buffer; meanwhile the others hash and write.
    """

    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext, *, server_side: bool, turn: threading.Lock
    ) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self._turn = turn
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        self._pending = memoryview(b"")
        self.born = time.monotonic()
        self.secure = False
        self.ended = False
        self.ragged = False

    def fileno(self) -> int:
        """The socket, for poll."""
        return self._sock.fileno()

    @property
    def gone(self) -> bool:
        """Whether the peer has closed a connection on which it has nothing to say."""
        try:
            return not self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    @property
    def blocked(self) -> bool:
        """Whether there is something to send that the socket did not take yet."""
        return bool(self._pending)

    def shake(self) -> bool:
        """Go on with the handshake as far as it goes; says whether it is complete. Raises StreamError."""
        try:
            while not self.secure:
                try:
                    self.tls.do_handshake()
                    self.secure = True
                except ssl.SSLWantReadError:
                    if not self.flush() or not self._fill(memoryview(bytearray(_DRAIN_BYTES))):
                        break
            return self.flush() and self.secure
        except ssl.SSLError as error:
            self._pending = memoryview(self._outgoing.read())
            self._send_pending()
            raise StreamError(f"TLS: {error.reason or 'cut'}") from error

    def pump(self, parser: Parser, sink: Sink, raw: memoryview) -> bool:
        """Take what has come and hand its pieces to `sink`; says whether anything came.

        `ended` says that the peer has closed, `ragged` that it did so without TLS's farewell. Raises StreamError,
        BlockError, and what `sink` raises.
        """
        moved = 0
        while moved < _TURN_BYTES and parser.wanted:
            buffer = sink.buffer
            with self._turn:
                count = self._gather(buffer[: parser.wanted], raw)
            if not count:
                break
            sink.take(parser.feed(buffer[:count])[0])
            moved += count
        return moved > 0

    def offer(self, plain: memoryview) -> int:
        """Encrypt the beginning of `plain` and send what the socket takes; returns how much of it is on its way."""
        if not self.flush():
            return 0
        done, stop = 0, min(len(plain), SLICE_BYTES)
        try:
            with self._turn:
                while done < stop:
                    done += self.tls.write(plain[done:stop])
        except ssl.SSLError as error:
            raise StreamError("TLS broke while sending") from error
        self.flush()
        return done

    def flush(self) -> bool:
        """Send what is encrypted; says whether all of it is on its way."""
        while True:
            if not self._pending:
                if not self._outgoing.pending:
                    return True
                self._pending = memoryview(self._outgoing.read())
            if not self._send_pending():
                return False

    def farewell(self) -> None:
        """Say that nothing more comes, to be read as the end of the file; `drain` must follow."""
        with contextlib.suppress(ssl.SSLError, OSError):
            self.tls.unwrap()  # the peer's own farewell comes later, or never
        self.flush()

    def drain(self, scratch: Scratch) -> bool:
        """Throw away what still comes (tickets); says whether the peer has closed.

        A socket closed with unread bytes resets the connection, and the peer loses what it has not read yet.
        """
        if not self.flush():
            return False
        try:
            self._sock.shutdown(socket.SHUT_WR)
            while self._sock.recv_into(scratch.raw):
                pass
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def close(self) -> None:
        """Close the connection; what was sent still arrives, also where the peer sent what nobody asked for."""
        with contextlib.suppress(OSError):
            for _ in range(_MOST_DRAINS):
                if not self._sock.recv(_DRAIN_BYTES):
                    break
        self._sock.close()

    def _gather(self, target: memoryview, raw: memoryview) -> int:
        """Return how many plain bytes have come into `target`."""
        at = 0
        while at < len(target):
            count = self._decrypt(len(target) - at, target[at:], raw)
            if not count:
                break
            at += count
        return at

    def _decrypt(self, room: int, target: memoryview, raw: memoryview) -> int:
        """Return how many plain bytes were put into `target`; 0 when nothing has come, or the end."""
        while not self.ended:
            try:
                count = self.tls.read(room, target)
                self.ended = not count
                return int(count)
            except ssl.SSLWantReadError:
                if not self._fill(raw):
                    return 0
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError) as error:
                self.ended, self.ragged = True, isinstance(error, ssl.SSLEOFError)
            except ssl.SSLError as error:
                raise StreamError("TLS broke while receiving") from error
        return 0

    def _fill(self, raw: memoryview) -> bool:
        """Read from the socket once; False when nothing is there."""
        try:
            count = self._sock.recv_into(raw)
        except BlockingIOError:
            return False
        except OSError as error:
            raise StreamError("the data connection was cut") from error
        if count:
            self._incoming.write(raw[:count])
            if count < _SMALL_BYTES:
                # A sender with Nagle's algorithm holds its next block until this one is acknowledged
                self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        else:
            self._incoming.write_eof()
        return True

    def _send_pending(self) -> bool:
        try:
            while self._pending:
                self._pending = self._pending[self._sock.send(self._pending) :]
        except BlockingIOError:
            return False
        except OSError as error:
            raise StreamError("the data connection was cut") from error
        return True
