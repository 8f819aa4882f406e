"""One TLS connection to a service, through memory: large receives, few system calls, no copy after decryption.

An SSLSocket makes two system calls for each 16 KiB that it receives. Used by `certs.https.lines` only.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from contextlib import suppress

import requests

from certs.errors import TrustError
from certs.tls import RefusedMeanwhile, chain_of
from certs.trust import Trust, VerifiedChain

_RAW_BYTES = 256 * 1024  # received at once, before decryption
_SENT_BYTES = 128 * 1024  # encrypted and sent at once
_SEND_SECONDS = 30.0  # for each piece that is sent
# While bytes move, the server's certificate is judged again this often (seconds)
_JUDGE_SECONDS = 1.0
_YIELD_SECONDS = 0.5
_LEAST_SECONDS = 0.001


class Line:
    """A connection after its handshake; one user at a time. Raises OSErrors, and requests.ConnectTimeout."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext, trust: Trust, *, timeout: float) -> None:
        """Connect; the server's certificate is verified and must name the host."""
        self._context = context
        self._trust = trust
        self._chain: VerifiedChain | None = None
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._raw = memoryview(bytearray(_RAW_BYTES))
        try:
            self._sock = socket.create_connection((host, port), timeout)
        except TimeoutError as error:
            raise requests.ConnectTimeout from error
        try:
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
            self._shake_hands()
        except BaseException:
            self._sock.close()
            raise
        self._due = time.monotonic() + _JUDGE_SECONDS

    def fresh(self, context: ssl.SSLContext) -> bool:
        """Say whether an idle line may be used again: made under this context, and nothing came (the end would)."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return self._context is context and not poll.poll(0)

    def close(self) -> None:
        """End the connection."""
        self._sock.close()

    def send(self, data: bytes | memoryview) -> None:
        """Send bytes, unless the server is refused by now."""
        view = memoryview(data)
        self._sock.settimeout(_SEND_SECONDS)
        for start in range(0, len(view), _SENT_BYTES):
            self._judge()
            self._tls.write(view[start : start + _SENT_BYTES])
            self._flush()

    def read_some(self, room: memoryview, timeout: float) -> int:
        """Read what comes first, at most a record; 0 is the end. ``timeout`` is seconds without a byte."""
        while (count := self._decrypted(room)) is None:
            self._receive(timeout)
        return count

    def read_block(self, room: memoryview, timeout: float) -> int:
        """Fill ``room``, or what comes of it within half a second but at least one byte; 0 is the end."""
        until = time.monotonic() + _YIELD_SECONDS
        got = self.read_some(room, timeout)
        while 0 < got < len(room):
            left = until - time.monotonic()
            try:
                count = self.read_some(room[got:], max(left, _LEAST_SECONDS))
            except TimeoutError:
                break
            if not count:
                break
            got += count
        return got

    def _decrypted(self, room: memoryview) -> int | None:
        """Decrypt what was received; None when there is nothing yet."""
        try:
            return self._tls.read(len(room), room)  # type: ignore[return-value]  # into a buffer, it counts
        except ssl.SSLWantReadError:
            return None
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return 0

    def _receive(self, timeout: float) -> None:
        self._sock.settimeout(timeout)
        count = self._sock.recv_into(self._raw)
        self._judge()
        if count:
            self._incoming.write(self._raw[:count])
        else:
            self._incoming.write_eof()

    def _shake_hands(self) -> None:
        while not self._shaken():
            self._flush()
            count = self._sock.recv_into(self._raw)
            if count:
                self._incoming.write(self._raw[:count])
            else:
                self._incoming.write_eof()
        self._flush()

    def _shaken(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError:
            with suppress(OSError):
                self._flush()  # the alert that tells the other side why
            raise
        return True

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._sock.sendall(self._outgoing.read())

    def _judge(self) -> None:
        """Judge the server's chain again, at most once a second; what comes from who is refused is not handed out."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + _JUDGE_SECONDS
        try:
            self._trust.reload_if_changed()
            self._chain = self._chain or chain_of(self._tls)
            refusal = self._trust.refusal(self._chain)
        except TrustError as error:
            refusal = str(error)
        if refusal is not None:
            self._due = 0.0  # it stays refused
            raise RefusedMeanwhile(ssl.SSL_ERROR_SSL, refusal)
