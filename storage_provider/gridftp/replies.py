"""FTP replies and their protected forms, bytes in and values out: RFC 959 section 4.2, RFC 2228 sections 3 and 5.

Both sides use it: the client reads with `ReplyReader`, the server writes with `format_reply`; `protected_command` and
`protected_reply` put either into the security layer that `gss` made.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass

# An ADAT or 632 line carries a TLS flight with certificates in base64; nothing honest is longer.
MOST_LINE_BYTES = 128 * 1024
# A reply of a listing has a line per entry.
MOST_REPLY_BYTES = 4 * 1024 * 1024
# What an empty line costs us
_LINE_BYTES = 64
# RFC 2228 section 5: integrity, privacy, confidentiality protected replies
_PROTECTED = frozenset({631, 632, 633})

Wrap = Callable[[bytes], bytes]


class ReplyError(Exception):
    """The far side sent what is no FTP reply; the control connection is of no more use."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply: its code, and its lines without code and line ends."""

    code: int
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        """All lines, joined."""
        return "\n".join(self.lines)

    @property
    def kind(self) -> int:
        """The first digit: 1 preliminary, 2 done, 3 go on, 4 not now, 5 no (RFC 959 section 4.2.1)."""
        return self.code // 100


class ReplyReader:
    """Turns the bytes of a control connection into replies; bounded, whatever the far side sends.

    Once `unwrap` is set only protected replies (631 to 633) are accepted: what comes in clear after the security
    exchange may be anybody's.
    """

    def __init__(self, *, most_reply_bytes: int = MOST_REPLY_BYTES) -> None:
        self.unwrap: Wrap | None = None
        self._outer = _Lines()
        self._inner = _Lines()
        self._plain = _Gathering(most_reply_bytes)

    @property
    def clean(self) -> bool:
        """Whether nothing has come of a next reply."""
        return not (self._outer.rest or self._inner.rest or self._plain.open)

    def feed(self, data: bytes) -> list[Reply]:
        """Take bytes as they came; return the replies that are complete by now. Raises ReplyError."""
        found: list[Reply] = []
        for line in self._outer.feed(data):
            if self.unwrap is None:
                found += self._plain.add(line)
            else:
                found += self._protected(line, self.unwrap)
        return found

    def _protected(self, line: bytes, unwrap: Wrap) -> list[Reply]:
        """Unwrap one line; a reply of several lines comes either wrapped whole or wrapped line by line."""
        if not line[:3].isdigit() or int(line[:3]) not in _PROTECTED or line[3:4] not in (b" ", b"-"):
            raise ReplyError("a reply came in clear after the security exchange")
        found: list[Reply] = []
        for inner in self._inner.feed(unwrap(decode64(line[4:]))):
            found += self._plain.add(inner)
        return found


class _Lines:
    """Cuts a byte stream at line feeds; the carriage return before one is dropped."""

    def __init__(self) -> None:
        self.rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        *lines, self.rest = (self.rest + data).split(b"\n") if b"\n" in data else (self.rest + data,)
        if len(self.rest) > MOST_LINE_BYTES or any(len(line) > MOST_LINE_BYTES for line in lines):
            raise ReplyError("a line of a reply is too long")
        return [line.removesuffix(b"\r") for line in lines]


class _Gathering:
    """Puts lines together to replies: `123-` opens one of several lines, `123 ` with the same code ends it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._code = 0
        self._lines: list[str] = []
        self._size = 0

    @property
    def open(self) -> bool:
        """Whether a reply of several lines has begun."""
        return bool(self._code)

    def add(self, line: bytes) -> list[Reply]:
        text = line.decode("utf-8", "surrogateescape").rstrip("\0")
        if not self._code:
            return self._first(text)
        self._size += len(text) + _LINE_BYTES
        if self._size > self._most:
            raise ReplyError("a reply is too long")
        if text[:4] == f"{self._code} " or text == str(self._code):
            return [self._done(text[4:])]
        # Some servers repeat the code on every line (RFC 959 allows it), others indent by a space
        self._lines.append(text[4:] if text[:4] == f"{self._code}-" else text)
        return []

    def _first(self, text: str) -> list[Reply]:
        digits = text[:3]
        if not (len(digits) == 3 and digits.isascii() and digits.isdigit() and "1" <= digits[0] <= "6"):
            raise ReplyError("not a reply")
        if text[3:4] == "-":
            self._code, self._lines, self._size = int(digits), [text[4:]], len(text)
            return []
        if text[3:4] not in ("", " "):
            raise ReplyError("not a reply")
        return [Reply(int(digits), (text[4:],))]

    def _done(self, last: str) -> Reply:
        reply = Reply(self._code, (*self._lines, last))
        self._code, self._lines, self._size = 0, [], 0
        return reply


def format_reply(code: int, *lines: str) -> bytes:
    """Spell a reply: one line, or the `123-` form; middle lines are indented, so that none looks like the last."""
    texts = lines or ("",)
    if any("\r" in text or "\n" in text for text in texts):
        raise ReplyError("a line of a reply holds a line end")
    if len(texts) == 1:
        return _line(f"{code} {texts[0]}")
    first, *middle, last = texts
    return b"".join((_line(f"{code}-{first}"), *(_line(f" {text}") for text in middle), _line(f"{code} {last}")))


def protected_command(wrap: Wrap, line: bytes) -> bytes:
    """Put a command (without its line end) into the security layer: `ENC` (RFC 2228 section 3)."""
    return b"ENC " + base64.b64encode(wrap(line + b"\r\n")) + b"\r\n"


def protected_reply(wrap: Wrap, reply: bytes) -> bytes:
    """Put a spelled reply into the security layer: 632 (RFC 2228 section 5.4.2)."""
    return b"632 " + base64.b64encode(wrap(reply)) + b"\r\n"


def adat_token(reply: Reply) -> bytes:
    """Return the token of a 235, 334 or 335 reply, b"" when it has none. Raises ReplyError for a broken one."""
    _, marker, token = reply.lines[-1].partition("ADAT=")
    return decode64(token.strip().encode("utf-8", "surrogateescape")) if marker else b""


def decode64(text: bytes) -> bytes:
    """Decode base64 strictly; raises ReplyError."""
    try:
        return base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ReplyError("not base64") from error


def _line(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape") + b"\r\n"
