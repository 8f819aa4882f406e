"""A control connection at the server: command lines in (clear or protected), replies out. Blocking, bounded."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections import deque
from collections.abc import Iterable

from storage_provider.gridftp.commands import CommandError
from storage_provider.gridftp.gss import Gss
from storage_provider.gridftp.replies import MOST_LINE_BYTES, ReplyError, decode64, format_reply, protected_reply

# Who does not read its replies for so long is cut off (seconds)
SEND_SECONDS = 30.0
_LINGER_SECONDS = 1.0
_READ_BYTES = 128 * 1024
# Commands may be sent ahead while a transfer runs; beyond this many bytes they wait in the kernel
_MOST_AHEAD = 512 * 1024
_PIECE_BYTES = 8 * 1024
_MOST_HELD = 32 * 1024
# Telnet's interrupt and synch before an ABOR (RFC 959 section 4.1.3)
_TELNET = (b"\xff\xf4", b"\xff\xf2", b"\xff\xf6")


class SessionOver(Exception):
    """The session has ended: the peer went away, was silent for too long, or broke the protocol for good."""


class Control:
    """One control connection; used by its session's thread alone. Every wait ends, by SessionOver."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sock.settimeout(SEND_SECONDS)
        # Replies are small and awaited: neither side may sit on one
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""
        # As they came; protected ones are opened in this order, once the session is protected
        self._lines: deque[bytes] = deque()
        self._opened: deque[bytes | CommandError] = deque()
        self._ahead = 0
        self._gone = False
        self._out = bytearray()
        self._joined = bytearray()
        self.gss: Gss | None = None
        self.join_replies = False
        """Whether replies that travel together are protected as one: our own clients in a batch understand it."""
        self.arrived = time.monotonic()
        """When the last commands came."""

    def fileno(self) -> int:
        """The socket, for poll."""
        return self._sock.fileno()

    def peer_address(self) -> str:
        """Return the IP address that the peer comes from, "" when it is gone."""
        try:
            return str(self._sock.getpeername()[0])
        except OSError:
            return ""

    @property
    def gone(self) -> bool:
        """Whether the peer has closed the connection."""
        return self._gone

    @property
    def crowded(self) -> bool:
        """Whether so much was sent ahead that no more is read for now."""
        return self._gone or self._ahead >= _MOST_AHEAD

    def next_line(self, seconds: float) -> bytes:
        """Return the next command line, waiting so long for all of it.

        Raises CommandError for a line that must be answered but cannot be read, SessionOver.
        """
        deadline = time.monotonic() + seconds
        while not self._opened and not self._lines:
            left = deadline - time.monotonic()
            if left <= 0:
                raise SessionOver("idle")
            if self._gone:
                raise SessionOver("closed")
            self.take(left)
        line = self._opened.popleft() if self._opened else self._open(self._lines.popleft())
        if not self._opened and not self._lines:
            self._ahead = 0
        if isinstance(line, CommandError):
            raise line
        return line

    def take(self, seconds: float = 0.0) -> None:
        """Read once what has come, waiting at most so long (replies go out first, unless nothing is waited for)."""
        if seconds:
            self.flush()
        waiting = select.poll()
        waiting.register(self._sock, select.POLLIN)
        if not waiting.poll(seconds * 1000):
            return
        try:
            data = self._sock.recv(_READ_BYTES)
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        except OSError:
            data = b""
        self.arrived = time.monotonic()
        if not data:
            self._gone = True
        *lines, self._rest = (self._rest + data).split(b"\n")
        if max(map(len, (self._rest, *lines))) > MOST_LINE_BYTES:
            raise SessionOver("a line is too long")
        self._lines += [line.removesuffix(b"\r") for line in lines]
        self._ahead += len(data)

    def take_abort(self) -> bool:
        """Tell whether an ABOR was sent ahead; it and what came before it are taken off."""
        while self._lines:
            self._opened.append(self._open(self._lines.popleft()))
        for number, line in enumerate(self._opened):
            if isinstance(line, bytes) and line.strip().upper() == b"ABOR":
                for _ in range(number + 1):
                    self._opened.popleft()
                return True
        return False

    def reply(self, code: int, *lines: str) -> None:
        """Reply; it goes out with the next `flush`, so that answers to commands sent ahead travel together."""
        self._send(format_reply(code, *lines))

    def reply_listing(self, code: int, first: str, middle: Iterable[str], last: str) -> None:
        """Send a reply of any number of lines in bounded memory: the protected pieces hold whole lines."""
        piece = [f"{code}-{first}\r\n"]
        size = len(piece[0])
        for line in middle:
            piece.append(f" {line}\r\n")
            size += len(piece[-1])
            if size > _PIECE_BYTES:
                self._send("".join(piece).encode("utf-8", "replace"))
                piece, size = [], 0
        piece.append(f"{code} {last}\r\n")
        self._send("".join(piece).encode("utf-8", "replace"))

    def flush(self) -> None:
        """Send the replies so far; whoever is about to wait calls it. Raises SessionOver."""
        self._seal()
        if not self._out:
            return
        held, self._out = self._out, bytearray()
        try:
            self._sock.sendall(held)
        except OSError as error:
            raise SessionOver("the peer does not read") from error

    def close(self) -> None:
        """Close the connection; what was sent still arrives."""
        with contextlib.suppress(OSError, SessionOver):
            self.flush()
            self._sock.shutdown(socket.SHUT_WR)
            # Commands sent ahead and never read would reset the connection, and the last reply with it
            deadline = time.monotonic() + _LINGER_SECONDS
            while (left := deadline - time.monotonic()) > 0:
                self._sock.settimeout(left)
                if not self._sock.recv(_READ_BYTES):
                    break
        self._sock.close()

    def _send(self, reply: bytes) -> None:
        if self.gss is not None and self.join_replies:
            self._joined += reply
        else:
            self._seal()
            self._out += protected_reply(self.gss.wrap, reply) if self.gss is not None else reply
        if len(self._out) + len(self._joined) > _MOST_HELD:
            self.flush()

    def _seal(self) -> None:
        """Protect what was joined."""
        if self._joined:
            assert self.gss is not None
            joined, self._joined = bytes(self._joined), bytearray()
            self._out += protected_reply(self.gss.wrap, joined)

    def _open(self, line: bytes) -> bytes | CommandError:
        if self.gss is None:
            for mark in _TELNET:
                line = line.removeprefix(mark)
            return line
        verb, _, token = line.partition(b" ")
        if verb.upper() != b"ENC":
            # RFC 2228 section 3: the command's protection is below what is asked for here
            return CommandError(533, "denied: send ENC commands only")
        try:
            inner = self.gss.unwrap(decode64(token))
        except ReplyError:
            return CommandError(501, "refused: not base64")
        return inner.rstrip(b"\0").removesuffix(b"\n").removesuffix(b"\r")
