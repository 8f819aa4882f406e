"""The elements of an identifier and what each asks to match (PS3.4 C.2.2.2): bytes in, Match out. Pure.

Values are decoded here and not by pydicom's converters, which warn with the value itself in the text and reject what
real viewers send. What cannot be read becomes an IdentifierError; nothing of it names a value.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass
from io import BytesIO

from pydicom.datadict import dictionary_has_tag, dictionary_VR

from catalog.elements import Encoding, Walker, Window
from catalog.wire import Match
from dgis.dimse.charset import Charset
from dgis.dimse.negotiation import DEFLATED_LE
from dgis.dimse.status import IDENTIFIER_MISMATCH, UNABLE_TO_PROCESS

LEVEL = 0x00080052
_WILD_VRS = frozenset(("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"))  # PS3.4 C.2.2.2.4
_RANGE_VRS = frozenset(("DA", "TM", "DT"))
_ONE_VALUE_VRS = frozenset(("LT", "ST", "UT", "UR"))
_BINARY_VRS = {"US": "H", "SS": "h", "UL": "L", "SL": "l"}
# What real archives hold: hex digests, names, 70 characters. Only what cannot be meant as one is refused.
_UID = re.compile(r"[^*?\\\x00-\x1f]{1,256}\Z")
_OFFSET = re.compile(r"(\d{4,14}(?:\.\d+)?)([+-](?:0\d|1[0-4])[0-5]\d)(?=-|\Z)")
_MAX_KEYS, _MAX_VALUE, _MAX_INFLATED = 300, 1024, 4 * 1024 * 1024
_ITEM, _UNDEFINED = (0xFFFE, 0xE000), 0xFFFFFFFF


class IdentifierError(ValueError):
    """An identifier that cannot be served: the status to answer, a comment without values, the offending elements."""

    def __init__(self, comment: str, *, status: int = IDENTIFIER_MISMATCH, offending: tuple[int, ...] = ()) -> None:
        super().__init__(comment)
        self.comment = comment
        self.status = status
        self.offending = offending


@dataclass(frozen=True, slots=True)
class Element:
    """One element as received; the value of a sequence is its encoded items."""

    tag: int
    vr: str
    value: bytes
    encoding: Encoding = Encoding()

    def items(self) -> tuple[Element, ...]:
        """Read the first item of a sequence: a key has one item or none (PS3.4 C.2.2.2.6)."""
        if len(self.value) < 8:
            return ()
        group, number, size = struct.unpack_from("<HHL" if self.encoding.little else ">HHL", self.value)
        if (group, number) != _ITEM:
            return ()
        item = self.value[8:] if size == _UNDEFINED else self.value[8 : 8 + size]
        return tuple(_walk(item, self.encoding)[0])


def elements(raw: bytes | None, syntax: str) -> tuple[Element, ...]:
    """Read the top-level elements; raise IdentifierError when the bytes are no data set in this syntax."""
    if not raw:
        raise IdentifierError("no identifier", offending=(LEVEL,))
    try:
        found, complete = _walk(_inflate(raw) if syntax == DEFLATED_LE else raw, Encoding.of(syntax))
    except (zlib.error, ValueError, struct.error) as error:
        raise IdentifierError("the identifier cannot be parsed", status=UNABLE_TO_PROCESS) from error
    if not complete:
        raise IdentifierError("the identifier cannot be parsed", status=UNABLE_TO_PROCESS)
    if len(found) > _MAX_KEYS:
        raise IdentifierError("too many keys", status=UNABLE_TO_PROCESS)
    return tuple(found)


def _inflate(raw: bytes) -> bytes:
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    data = engine.decompress(raw, _MAX_INFLATED)
    if engine.unconsumed_tail:
        raise ValueError("inflates beyond reason")
    return data


def _walk(raw: bytes, encoding: Encoding) -> tuple[list[Element], bool]:
    walker = Walker(Window(BytesIO(raw)), encoding)
    found: list[Element] = []
    for one in walker:
        known = dictionary_VR(one.tag).split(" ")[0] if dictionary_has_tag(one.tag) else "UN"
        vr = one.vr.decode("ascii", "replace")
        # Bytes of an element sent as UN are implicit VR little endian (PS3.5 6.2.2 note 2).
        inner = walker.encoding if vr != "UN" else Encoding(explicit=False)
        found.append(Element(one.tag, known if vr in ("", "UN") else vr, raw[one.value : one.end], inner))
    return found, walker.complete


# --- matching --------------------------------------------------------------------------------------------------------


def match_of(element: Element, keyword: str, charset: Charset) -> Match | None:
    """Return what an element asks to match; None for universal matching (PS3.4 C.2.2.2.3)."""
    if element.vr in _BINARY_VRS:
        return _of_values(keyword, _numbers(element))
    if element.vr == "UI":
        return _of_values(keyword, uids(element))
    text = decoded(element, charset)
    if not text or not text.strip("*"):
        return None
    if len(text) > _MAX_VALUE:
        raise IdentifierError("a value is too long", offending=(element.tag,))
    if element.vr in _RANGE_VRS:
        return _moments(text, element.vr, keyword)
    values = [text] if element.vr in _ONE_VALUE_VRS else [part.strip() for part in text.split("\\") if part.strip()]
    if element.vr in _WILD_VRS and ("*" in text or "?" in text):
        return None if any(not value.strip("*") for value in values) else _of_values(keyword, values, "wild")
    return _of_values(keyword, values)


def _of_values(keyword: str, values: list[str] | tuple[str, ...], op: str = "") -> Match | None:
    """Any of several values matches: Modality and UID lists are meant so, and nothing else could be."""
    wanted = op or ("in" if len(values) > 1 else "eq")
    return Match.model_validate({"keyword": keyword, "op": wanted, "values": tuple(values)}) if values else None


def _numbers(element: Element) -> list[str]:
    code = ("<" if element.encoding.little else ">") + _BINARY_VRS[element.vr]
    whole = len(element.value) - len(element.value) % struct.calcsize(code)
    return [str(number) for (number,) in struct.iter_unpack(code, element.value[:whole])]


def _moments(text: str, vr: str, keyword: str) -> Match | None:
    """Read dates and times: single values, or a range that is open at either end (PS3.4 C.2.2.2.5)."""
    if vr == "DT":
        text = _OFFSET.sub(r"\1", text)  # moments are compared as written, an offset from UTC is not reckoned with
    if "-" in text:
        low, _, high = (_modern(part.strip(), vr) for part in text.partition("-"))
        return Match(keyword=keyword, op="range", values=(low, high)) if low or high else None
    return _of_values(keyword, [_modern(part.strip(), vr) for part in text.split("\\") if part.strip()])


def _modern(text: str, vr: str) -> str:
    """Take the separators of ACR-NEMA out (PS3.5 6.2: 1998.01.28 and 10:15:30 are still sent)."""
    if vr == "DA":
        return text.replace(".", "")
    return text.replace(":", "") if vr == "TM" else text


# --- values ----------------------------------------------------------------------------------------------------------


def plain(element: Element) -> str:
    """Return a value in the default repertoire."""
    return element.value.decode("ascii", "replace").strip("\x00 ")


def decoded(element: Element, charset: Charset) -> str:
    """Return a text value as Unicode, padding stripped."""
    return charset.decode(element.value, name=element.vr == "PN").strip("\x00 ")


def uids(element: Element) -> tuple[str, ...]:
    """Return the list of UIDs; none for universal matching. Anything that cannot be a UID is refused."""
    parts = [part.strip("\x00 ") for part in element.value.decode("ascii", "replace").split("\\")]
    found = tuple(dict.fromkeys(part for part in parts if part and part != "*"))
    if any(not _UID.match(uid) for uid in found):
        raise IdentifierError("not a UID", offending=(element.tag,))
    return found

