"""A TLS ClientHello made by hand (RFC 5246 section 7.4.1.2, RFC 8446 section 4.1.2), and what a server says to it.

It can offer what no library of today makes any more: RC4, NULL and export suites, SSL 3.0, compression, weak curves.
"""

from __future__ import annotations

import base64
import os
import socket
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass

SSL_3, TLS_1_0, TLS_1_1, TLS_1_2, TLS_1_3 = 0x0300, 0x0301, 0x0302, 0x0303, 0x0304
# Forward secrecy with authenticated encryption: ECDHE with AES-GCM or ChaCha20-Poly1305 (RFC 9325 section 4.2)
SOUND_12 = frozenset({0xC02B, 0xC02C, 0xC02F, 0xC030, 0xCCA8, 0xCCA9})
SOUND_13 = frozenset({0x1301, 0x1302, 0x1303})
# X25519, P-256, P-384, P-521, X448; in TLS 1.3 also the finite fields of RFC 7919
SOUND_GROUPS = (0x001D, 0x0017, 0x0018, 0x0019, 0x001E)
# Binary curves, those below 224 bits, P-224, secp256k1, explicit curves of the client's own making
WEAK_GROUPS = (*range(0x0001, 0x0017), 0xFF01, 0xFF02)
_SIGNATURES = (0x0403, 0x0503, 0x0603, 0x0807, 0x0808, 0x0804, 0x0805, 0x0806, 0x0401, 0x0501, 0x0601, 0x0203, 0x0201)
# Everything that was ever registered in these blocks, and what was never: a server that picks one of them is told
EVERY_SUITE = (*range(0x00C6), *range(0x1301, 0x1308), *range(0xC001, 0xC0B8), *range(0xCCA8, 0xCCAF),
               *range(0xD001, 0xD006), 0xFEFE, 0xFEFF)  # fmt: skip
_SIGNALLING = {0x00FF, 0x5600}

Exchange = Callable[[bytes], bytes]
"""Send one flight to a server and return what it answers, b"" when it closes."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What a server chose; `alert` is set (RFC 8446 section 6) when it refused, -1 when it just closed."""

    version: int = 0
    suite: int = 0
    compression: int = 0
    alert: int | None = None


@dataclass(frozen=True, slots=True)
class Hello:
    """What a client offers; `version` is the highest, and the only one when it is TLS 1.3."""

    version: int = TLS_1_2
    suites: tuple[int, ...] = tuple(sorted(SOUND_12))
    groups: tuple[int, ...] = SOUND_GROUPS
    compressions: tuple[int, ...] = (0,)

    def record(self) -> bytes:
        """The ClientHello as one TLS record."""
        legacy = min(self.version, TLS_1_2)
        body = struct.pack(">H", legacy) + os.urandom(32) + b"\0"
        body += _words(self.suites) + _vector(bytes(self.compressions), 1)
        if legacy > SSL_3:
            body += _vector(self._extensions(), 2)
        message = b"\x01" + len(body).to_bytes(3, "big") + body
        return b"\x16" + struct.pack(">HH", min(legacy, TLS_1_0), len(message)) + message

    def _extensions(self) -> bytes:
        made = [(10, _words(self.groups)), (11, b"\x01\x00"), (13, _words(_SIGNATURES)), (0xFF01, b"\0")]
        if self.version == TLS_1_3:
            share = struct.pack(">H", 0x001D) + _vector(os.urandom(32), 2)
            made += [(43, b"\x02" + struct.pack(">H", TLS_1_3)), (51, _vector(share, 2))]
        return b"".join(struct.pack(">H", kind) + _vector(value, 2) for kind, value in made)

    def ask(self, exchange: Exchange) -> Choice:
        """Offer it and read what the server chose."""
        return read_choice(exchange(self.record()))


def weak_suites(version: int) -> tuple[int, ...]:
    """Every suite but the sound ones of this version."""
    sound = SOUND_13 if version == TLS_1_3 else SOUND_12
    return tuple(suite for suite in EVERY_SUITE if suite not in sound | _SIGNALLING)


def read_choice(answer: bytes) -> Choice:
    """Read a ServerHello (RFC 8446 section 4.1.3) or an alert."""
    if not answer:
        return Choice(alert=-1)
    if answer[0] == 21:
        return Choice(alert=answer[6])
    assert answer[0] == 22 and answer[5] == 2, f"no TLS: {answer[:16]!r}"
    body = answer[9:]
    (version,), at = struct.unpack(">H", body[:2]), 35 + body[34]
    suite, compression = struct.unpack(">HB", body[at : at + 3])
    extensions = body[at + 5 : at + 5 + int.from_bytes(body[at + 3 : at + 5], "big")]
    return Choice(_selected(extensions) or version, suite, compression)


def _selected(extensions: bytes) -> int:
    while extensions:
        kind, size = struct.unpack(">HH", extensions[:4])
        if kind == 43:
            return int.from_bytes(extensions[4:6], "big")
        extensions = extensions[4 + size :]
    return 0


def _words(values: Iterable[int]) -> bytes:
    return _vector(b"".join(struct.pack(">H", value) for value in values), 2)


def _vector(data: bytes, width: int) -> bytes:
    return len(data).to_bytes(width, "big") + data


class Plain:
    """Flights over a TCP connection, as they are."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, timeout=5)

    def __call__(self, flight: bytes) -> bytes:
        try:
            self.socket.sendall(flight)
            return self.socket.recv(65536)
        except ConnectionError:
            return b""

    def close(self) -> None:
        self.socket.close()


class Adat(Plain):
    """Flights as GSI tokens on a GridFTP control connection (RFC 2228); `code` is that of the last reply."""

    def __init__(self, address: tuple[str, int]) -> None:
        super().__init__(address)
        self._lines = self.socket.makefile("rb")
        self.code = 0
        assert self._reply().startswith("220")
        assert super().__call__(b"AUTH GSSAPI\r\n").startswith(b"334")

    def __call__(self, flight: bytes) -> bytes:
        try:
            self.socket.sendall(b"ADAT " + base64.b64encode(flight) + b"\r\n")
            reply = self._reply()
        except ConnectionError:
            return b""
        self.code = int(reply[:3] or 0)
        _, _, token = reply.partition("ADAT=")
        return base64.b64decode(token)

    def _reply(self) -> str:
        while (line := self._lines.readline().decode()) and line[3:4] == "-":
            pass
        return line.strip()

    def close(self) -> None:
        self._lines.close()
        super().close()


def ssh_offer(address: tuple[str, int]) -> list[list[str]]:
    """Read an SSH server's KEXINIT (RFC 4253 section 7.1): ten lists of names."""
    with socket.create_connection(address, 5) as raw:
        raw.sendall(b"SSH-2.0-test\r\n")
        stream = raw.makefile("rb")
        stream.readline()
        (length,) = struct.unpack(">I", stream.read(4))
        body = stream.read(length)[1 + 1 + 16 :]
    lists = []
    for _ in range(10):
        (size,) = struct.unpack(">I", body[:4])
        lists.append(body[4 : 4 + size].decode().split(","))
        body = body[4 + size :]
    return lists
