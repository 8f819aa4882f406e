"""Write the identifiers of responses: catalog rows and failed UID lists to encoded data sets. Pure.

Flat data sets only, so they are written by hand: much faster than building pydicom objects, and an odd value from an
old scanner can neither raise nor warn here.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Mapping

from pydicom.datadict import dictionary_VR, tag_for_keyword

from catalog.wire import Row
from dgis.dimse.charset import UTF8, Charset
from dgis.dimse.identifier import CHARACTER_SET, LEVEL, AskedKey, FindRequest, unique_key
from dgis.dimse.negotiation import DEFLATED_LE, EXPLICIT_BE, IMPLICIT_LE

RETRIEVE_AE, AVAILABILITY, FAILED_UIDS = 0x00080054, 0x00080056, 0x00080058
_LONG_VRS = frozenset(("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"))
_CHARSET_VRS = frozenset(("LO", "LT", "PN", "SH", "ST", "UC", "UT"))
_INTEGERS = {"US": "H", "SS": "h", "UL": "L", "SL": "l", "UV": "Q", "SV": "q"}
_MAX_SHORT = 0xFFFE

Value = str | int | list[str] | None


class RowWriter:
    """Turns the rows of one C-FIND into identifiers in the context's transfer syntax."""

    def __init__(self, request: FindRequest, syntax: str, *, retrieve_ae: str) -> None:
        """Prepare what is the same for every row."""
        self._syntax = syntax
        self._charset = request.charset
        unique = unique_key(request.query.level)
        unique_tag = _tag(unique)
        asked = {key.tag: key for key in request.asked}
        asked.setdefault(unique_tag, AskedKey(unique_tag, dictionary_VR(unique_tag), unique))
        asked[AVAILABILITY] = AskedKey(AVAILABILITY, "CS", "InstanceAvailability")
        self._keys = [asked[tag] for tag in sorted(asked)]
        self._fixed: dict[int, tuple[str, bytes]] = {
            LEVEL: ("CS", request.query.level.encode()),
            RETRIEVE_AE: ("AE", retrieve_ae.encode("ascii", "replace")),
        }

    def encode(self, row: Row) -> bytes:
        """Return one identifier: every asked key, zero length when it has no value (PS3.4 C.4.1.1.3.2)."""
        values = {key.tag: (key.vr, _text(row.get(key.keyword), key.vr)) for key in self._keys}
        charset = self._fitting(text for vr, text in values.values() if vr in _CHARSET_VRS)
        parts = {tag: (vr, _raw(text, vr, charset, self._syntax)) for tag, (vr, text) in values.items()}
        parts |= self._fixed
        if charset.terms:
            parts[CHARACTER_SET] = ("CS", charset.value.encode())
        return data_set(parts, self._syntax)

    def _fitting(self, texts: Iterable[str]) -> Charset:
        """Return the requestor's set if it can hold all values, else UTF-8; the default set needs no naming."""
        for text in texts:
            if not text.isascii() and self._charset.encode(text, name=True) is None:
                return Charset((UTF8,))
        return self._charset


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
    if syntax == DEFLATED_LE:
        engine = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        raw = engine.compress(raw) + engine.flush()
        raw += b"\x00" * (len(raw) % 2)
    return raw


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


def _text(value: Value, vr: str) -> str:
    if value is None or vr == "SQ":
        return ""
    return "\\".join(value) if isinstance(value, list) else str(value)


def _raw(text: str, vr: str, charset: Charset, syntax: str) -> bytes:
    if vr in _INTEGERS:
        return _integer(text, vr, syntax)
    if vr in _CHARSET_VRS:
        raw = charset.encode(text, name=vr == "PN")
        return raw if raw is not None else text.encode("ascii", "replace")
    return text.encode("ascii", "replace")


def _integer(text: str, vr: str, syntax: str) -> bytes:
    order = ">" if syntax == EXPLICIT_BE else "<"
    try:
        return struct.pack(order + _INTEGERS[vr], int(text)) if text else b""
    except (ValueError, struct.error):
        return b""


def _tag(keyword: str) -> int:
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise ValueError(f"{keyword} is no DICOM keyword")
    return int(tag)
