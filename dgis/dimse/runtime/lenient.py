"""An A-ASSOCIATE-RQ as real senders write it, turned into one that upstream's decoder reads. Pure.

PS3.8 9.3.1: unrecognised items are skipped, and of the protocol version only bit 0 is looked at. Beyond the letter:
titles and version names padded with NUL or with characters outside the repertoire, UIDs with padding, items that
carry impossible values. What cannot be answered raises PduRefused; the peer gets an A-ABORT.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from dgis.dimse.runtime.sockets import PduRefused

_FIXED: Final = 68
_APPLICATION_CONTEXT, _PRESENTATION_CONTEXT, _USER_INFORMATION = 0x10, 0x20, 0x50
_ABSTRACT_SYNTAX, _TRANSFER_SYNTAX = 0x30, 0x40
_UID_LENGTH: Final = 64


def tidy_request(body: bytes) -> bytes:
    """Return the body of an A-ASSOCIATE-RQ without what upstream stumbles over. Raises PduRefused."""
    if len(body) < _FIXED:
        raise PduRefused("an A-ASSOCIATE-RQ that is too short")
    version = b"\x00\x01" if body[1] & 0x01 else body[:2]
    fixed = version + body[2:4] + _title(body[4:20]) + _title(body[20:36]) + body[36:_FIXED]
    return fixed + b"".join(_kept(body[_FIXED:], _TOP))


def _items(data: bytes) -> Iterator[tuple[int, bytes]]:
    while data:
        if len(data) < 4:
            raise PduRefused("an item without length")
        end = 4 + int.from_bytes(data[2:4], "big")
        if end > len(data):
            raise PduRefused("an item longer than what holds it")
        yield data[0], data[4:end]
        data = data[end:]


def _kept(data: bytes, known: Mapping[int, Callable[[bytes], bytes | None]]) -> Iterator[bytes]:
    """Each item of a known kind as its function makes it; None drops it."""
    for kind, value in _items(data):
        tidied = known[kind](value) if kind in known else None
        if tidied is not None:
            yield bytes((kind, 0)) + len(tidied).to_bytes(2, "big") + tidied


def _title(raw: bytes) -> bytes:
    """Spaces instead of NUL, "?" instead of what is no default character (PS3.5 6.2) and for no title at all."""
    text = bytes(byte if 0x20 <= byte < 0x7F else 0x3F for byte in raw.replace(b"\0", b" "))
    return text if text.strip() else b"?".ljust(16)


def _same(value: bytes) -> bytes:
    return value


def _uid(value: bytes) -> bytes:
    """A UID without padding; an impossible one becomes empty, which no service has."""
    stripped = value.rstrip(b"\0 ")
    return stripped if len(stripped) <= _UID_LENGTH and stripped.isascii() else b""


def _context(value: bytes) -> bytes:
    if len(value) < 4 or value[0] % 2 == 0:
        raise PduRefused("a presentation context without an odd id")
    return value[:4] + b"".join(_kept(value[4:], _IN_CONTEXT))


def _user_information(value: bytes) -> bytes:
    return b"".join(_kept(value, _IN_USER_INFORMATION))


def _max_length(value: bytes) -> bytes | None:
    return value if len(value) == 4 else None


def _window(value: bytes) -> bytes | None:
    return value if len(value) == 4 else None


def _version_name(value: bytes) -> bytes | None:
    text = bytes(byte for byte in value if 0x20 <= byte < 0x7F)[:16].strip()
    return text or None


def _role(value: bytes) -> bytes | None:
    """Drop roles that mean nothing (PS3.7 D.3.3.4: 0 or 1; neither SCU nor SCP): the default roles stay."""
    length = int.from_bytes(value[:2], "big")
    sound = len(value) == length + 4 and max(value[-2:]) == 1 and length <= _UID_LENGTH
    return value if sound else None


def _with_uid(value: bytes) -> bytes | None:
    """An item that begins with the length of a UID and the UID."""
    length = int.from_bytes(value[:2], "big")
    return value if 0 < length <= min(_UID_LENGTH, len(value) - 2) else None


def _identity(value: bytes) -> bytes | None:
    """Drop user identities of unknown kinds and with lengths that do not add up (PS3.7 D.3.3.7)."""
    if len(value) < 6 or not 1 <= value[0] <= 5:
        return None
    primary = int.from_bytes(value[2:4], "big")
    secondary = int.from_bytes(value[4 + primary : 6 + primary], "big")
    return value if len(value) == 6 + primary + secondary else None


_TOP: Final = {
    _APPLICATION_CONTEXT: _uid,
    _PRESENTATION_CONTEXT: _context,
    _USER_INFORMATION: _user_information,
}
_IN_CONTEXT: Final = {_ABSTRACT_SYNTAX: _uid, _TRANSFER_SYNTAX: _uid}
_IN_USER_INFORMATION: Final = {
    0x51: _max_length,
    0x52: _uid,
    0x53: _window,
    0x54: _role,
    0x55: _version_name,
    0x56: _with_uid,
    0x57: _with_uid,
    0x58: _identity,
}
