"""The security layer of a control connection: TLS records as GSSAPI tokens (GFD.20 section 4, RFC 2228, GSI).

A GSI token is nothing but TLS records, so `ssl` over memory buffers makes and reads them; no socket here. The byte
after the handshake that says whether a proxy is delegated is the session's business.
"""

from __future__ import annotations

import ssl

# The biggest record is 16 KiB; a token carries a command or a reply, or a handshake flight with certificates.
MOST_TOKEN_BYTES = 1024 * 1024
_READ_BYTES = 64 * 1024
# What the client sends as the first protected byte when it delegates nothing, and when it does (GSI).
NO_DELEGATION = b"0"
DELEGATION = b"D"


class GssError(Exception):
    """The security exchange failed; `alert` holds what should still be sent to the far side, so that it learns why."""

    def __init__(self, reason: str, *, alert: bytes = b"", cause: ssl.SSLError | None = None) -> None:
        super().__init__(reason)
        self.alert = alert
        self.cause = cause


class Gss:
    """One end of a security layer; not thread-safe beyond one reader and one writer at a time.

    `host` is what the server's certificate must name (client side only).
    """

    def __init__(self, context: ssl.SSLContext, *, server_side: bool, host: str | None = None) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.tls: ssl.SSLObject = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=host
        )
        self.established = False

    def step(self, token: bytes = b"") -> bytes:
        """Take the far side's token (b"" to begin as a client) and return what to send, b"" for nothing.

        Raises GssError when the handshake fails. `established` says when it is complete on this side; a TLS 1.3 client
        is so with a token still to send.
        """
        self._take(token)
        try:
            self.tls.do_handshake()
            self.established = True
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLError, ssl.CertificateError) as error:
            cause = error if isinstance(error, ssl.SSLError) else None
            raise GssError(f"the handshake failed: {error}", alert=self._outgoing.read(), cause=cause) from error
        return self._outgoing.read()

    def wrap(self, data: bytes) -> bytes:
        """Return the token that carries these bytes."""
        try:
            self.tls.write(data)
        except ssl.SSLError as error:
            raise GssError(f"cannot protect: {error}", cause=error) from error
        return self._outgoing.read()

    def unwrap(self, token: bytes) -> bytes:
        """Return the bytes that a token carries, b"" when it carries none (TLS tickets). Raises GssError."""
        self._take(token)
        parts: list[bytes] = []
        try:
            while data := self.tls.read(_READ_BYTES):
                parts.append(data)
                if not self._incoming.pending and not self.tls.pending():
                    break  # asking once more would cost an exception, as much as the reading
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            raise GssError(f"cannot read what is protected: {error}", cause=error) from error
        return b"".join(parts)

    def _take(self, token: bytes) -> None:
        if len(token) > MOST_TOKEN_BYTES:
            raise GssError("a token is too long")
        if token:
            self._incoming.write(token)
