"""Write the identifiers of responses: catalog rows and failed UID lists to encoded data sets. Pure.

They are written by hand: much faster than building pydicom objects, and an odd value from an old scanner can neither
raise nor warn here.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from pydicom.datadict import dictionary_VR, tag_for_keyword

from catalog.wire import Row
from dgis.dimse.charset import LATIN1, UTF8, Charset
from dgis.dimse.identifier import CHARACTER_SET, AskedKey, FindRequest, unique_key
from dgis.dimse.negotiation import DEFLATED_LE, EXPLICIT_BE, IMPLICIT_LE
from dgis.dimse.values import LEVEL

RETRIEVE_AE, AVAILABILITY, FAILED_UIDS = 0x00080054, 0x00080056, 0x00080058
_LONG_VRS = frozenset(("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"))
_CHARSET_VRS = frozenset(("LO", "LT", "PN", "SH", "ST", "UC", "UT"))
_INTEGERS = {"US": "H", "SS": "h", "UL": "L", "SL": "l", "UV": "Q", "SV": "q"}
_MAX_SHORT = 0xFFFE

Value = str | int | list[str] | None


@dataclass(slots=True)
class _Writing:
    """One row being written: its character set, and how many characters that did not have."""

    charset: Charset
    replaced: int = 0


class RowWriter:
    """Turns the rows of one C-FIND into identifiers in the context's transfer syntax.

    `replaced` counts the characters that a forced character set could not hold.
    """

    def __init__(self, request: FindRequest, syntax: str, *, retrieve_ae: str) -> None:
        """Prepare what is the same for every row."""
        self._syntax = syntax
        self._order = ">" if syntax == EXPLICIT_BE else "<"
        self._charset, self._forced = request.charset, request.forced
        self.replaced = 0
        unique = unique_key(request.query.level)
        unique_tag = _tag(unique)
        asked = {key.tag: key for key in request.asked}
        asked.setdefault(unique_tag, AskedKey(unique_tag, dictionary_VR(unique_tag), unique))
        asked[AVAILABILITY] = AskedKey(AVAILABILITY, "CS", "InstanceAvailability")
        self._keys = list(asked.values())
        self._texts = [key.keyword for key in _flat(self._keys) if key.vr in _CHARSET_VRS]
        self._plan: list[tuple[int, AskedKey | bytes | None]] = sorted(
            [
                (CHARACTER_SET, None),
                (LEVEL, self._element(LEVEL, "CS", request.query.level.encode())),
                (RETRIEVE_AE, self._element(RETRIEVE_AE, "AE", retrieve_ae.encode("ascii", "replace"))),
                *((key.tag, key) for key in self._keys),
            ],
            key=lambda planned: planned[0],
        )

    def encode(self, row: Row) -> bytes:
        """Return one identifier: every asked key, zero length when it has no value (PS3.4 C.4.1.1.3.2).

        It always names its Specific Character Set: requestors that guess, guess wrong.
        """
        writing = _Writing(self._fitting(row))
        out = bytearray()
        for _, planned in self._plan:
            if isinstance(planned, bytes):
                out += planned
            elif planned is None:
                out += self._element(CHARACTER_SET, "CS", (writing.charset.value or LATIN1).encode())
            else:
                out += self._written(planned, row, writing)
        self.replaced += writing.replaced
        return _deflated(bytes(out)) if self._syntax == DEFLATED_LE else bytes(out)

    def _fitting(self, row: Row) -> Charset:
        """Return the requestor's set if it can hold all values, else UTF-8."""
        if self._forced:
            return self._charset
        for keyword in self._texts:
            text = _text(row.get(keyword))
            if not text.isascii() and self._charset.encode(text, name=True) is None:
                return Charset((UTF8,))
        return self._charset

    def _written(self, key: AskedKey, row: Row, writing: _Writing) -> bytes:
        if key.vr == "SQ":
            return self._element(key.tag, "SQ", self._item(key, row, writing))
        return self._element(key.tag, key.vr, self._value(key, _text(row.get(key.keyword)), writing))

    def _item(self, key: AskedKey, row: Row, writing: _Writing) -> bytes:
        """Return the one item of a sequence; none when nothing in it is known."""
        if all(row.get(one.keyword) is None for one in key.items):
            return b""
        inside = b"".join(self._written(one, row, writing) for one in key.items)
        return struct.pack(self._order + "HHL", 0xFFFE, 0xE000, len(inside)) + inside

    def _value(self, key: AskedKey, text: str, writing: _Writing) -> bytes:
        if key.vr in _INTEGERS:
            return _integer(text, key.vr, self._order)
        if text.isascii() or key.vr not in _CHARSET_VRS:
            return text.encode("ascii", "replace")
        raw = writing.charset.encode(text, name=key.vr == "PN")
        if raw is None:
            raw, lost = writing.charset.replace(text, name=key.vr == "PN")
            writing.replaced += lost
        return raw

    def _element(self, tag: int, vr: str, value: bytes) -> bytes:
        return _element(tag, vr, value, syntax=self._syntax)


def _flat(keys: list[AskedKey]) -> list[AskedKey]:
    return [one for key in keys for one in (key, *key.items)]


def failed_uids(uids: list[str], syntax: str) -> bytes:
    """Return the identifier with the Failed SOP Instance UID List of a final C-MOVE or C-GET response.

    The list is cut where a 16-bit length ends (about 1000 UIDs); the counts in the response stay exact.
    """
    value = "\\".join(uids)
    while len(value) > _MAX_SHORT:
        value = value[: value[:_MAX_SHORT].rindex("\\")]
    return data_set({FAILED_UIDS: ("UI", value.encode())}, syntax)


def data_set(parts: Mapping[int, tuple[str, bytes]], syntax: str) -> bytes:
    """Encode a flat data set in ascending tag order."""
    raw = b"".join(_element(tag, *parts[tag], syntax=syntax) for tag in sorted(parts))
    return _deflated(raw) if syntax == DEFLATED_LE else raw


def _deflated(raw: bytes) -> bytes:
    engine = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    raw = engine.compress(raw) + engine.flush()
    return raw + b"\x00" * (len(raw) % 2)


def _element(tag: int, vr: str, value: bytes, *, syntax: str) -> bytes:
    if len(value) % 2:
        value += b"\x00" if vr == "UI" else b" "
    group, number = tag >> 16, tag & 0xFFFF
    if syntax == IMPLICIT_LE:
        return struct.pack("<HHL", group, number, len(value)) + value
    order = ">" if syntax == EXPLICIT_BE else "<"
    if vr in _LONG_VRS:
        return struct.pack(order + "HH2s2xL", group, number, vr.encode(), len(value)) + value
    if len(value) > _MAX_SHORT:
        value = value[:_MAX_SHORT]
    return struct.pack(order + "HH2sH", group, number, vr.encode(), len(value)) + value


def _text(value: Value) -> str:
    if value is None:
        return ""
    return "\\".join(value) if isinstance(value, list) else str(value)


def _integer(text: str, vr: str, order: str) -> bytes:
    try:
        return struct.pack(order + _INTEGERS[vr], int(text)) if text else b""
    except (ValueError, struct.error):
        return b""


def _tag(keyword: str) -> int:
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise ValueError(f"{keyword} is no DICOM keyword")
    return int(tag)
