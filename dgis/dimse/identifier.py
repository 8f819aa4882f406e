"""Read the identifier of a C-FIND, C-MOVE or C-GET: bytes in, Query or LocateRequest out. Pure.

Values are decoded here and not by pydicom's converters, which warn with the value itself in the text and reject what
real viewers send. What cannot be read becomes an IdentifierError; nothing of it names a value.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Literal

from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import data_element_generator
from pydicom.tag import BaseTag

from catalog.keys import Level, supported
from catalog.wire import LocateRequest, Match, PatientKey, Query
from dgis.dimse.charset import Charset
from dgis.dimse.negotiation import DEFLATED_LE, EXPLICIT_BE, IMPLICIT_LE
from dgis.dimse.status import IDENTIFIER_MISMATCH, UNABLE_TO_PROCESS

CHARACTER_SET, LEVEL = 0x00080005, 0x00080052
PATIENT_ID, PATIENT_ISSUER = 0x00100020, 0x00100021
STUDY_UID, SERIES_UID, INSTANCE_UID = 0x0020000D, 0x0020000E, 0x00080018
# Part of the protocol, not keys: they are answered by us or mean nothing here.
_CONTROL = frozenset((CHARACTER_SET, LEVEL, 0x00080053, 0x00080054, 0x00080056, 0x00080201))
_UNIQUE_KEY: dict[Level, str] = {
    "PATIENT": "PatientID",
    "STUDY": "StudyInstanceUID",
    "SERIES": "SeriesInstanceUID",
    "IMAGE": "SOPInstanceUID",
}
_LEVELS = tuple(_UNIQUE_KEY)
_WILD_VRS = frozenset(("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"))
_RANGE_VRS = frozenset(("DA", "TM", "DT"))
_ONE_VALUE_VRS = frozenset(("LT", "ST", "UT", "UR"))
_BINARY_VRS = {"US": "H", "SS": "h", "UL": "L", "SL": "l"}
# What real archives hold: hex digests, names, 70 characters. Only what cannot be meant as one is refused.
_UID = re.compile(r"[^*?\\\x00-\x1f]{1,256}\Z")
_MAX_KEYS, _MAX_VALUE, _MAX_INFLATED = 300, 1024, 4 * 1024 * 1024
_FOREIGN = (
    OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, RecursionError, NotImplementedError,
    struct.error, zlib.error, BytesLengthException, InvalidDicomError,
)  # fmt: skip


class IdentifierError(ValueError):
    """An identifier that cannot be served: the status to answer, a comment without values, the offending elements."""

    def __init__(self, comment: str, *, status: int = IDENTIFIER_MISMATCH, offending: tuple[int, ...] = ()) -> None:
        super().__init__(comment)
        self.comment = comment
        self.status = status
        self.offending = offending


@dataclass(frozen=True, slots=True)
class Element:
    """One top-level element as received; the value of a sequence is not looked at."""

    tag: int
    vr: str
    value: bytes


@dataclass(frozen=True, slots=True)
class AskedKey:
    """One attribute the requestor wants back, whether we know it or not."""

    tag: int
    vr: str
    keyword: str


@dataclass(frozen=True, slots=True)
class FindRequest:
    """A C-FIND as understood. `unsupported`: some key is neither matched nor answered (FF01 instead of FF00)."""

    query: Query
    asked: tuple[AskedKey, ...]
    charset: Charset
    unsupported: bool


def elements(raw: bytes | None, syntax: str) -> tuple[Element, ...]:
    """Read the top-level elements; raise IdentifierError when the bytes are no data set in this syntax."""
    if not raw:
        raise IdentifierError("no identifier", offending=(LEVEL,))
    try:
        if syntax == DEFLATED_LE:
            raw = _inflate(raw)
        stream = BytesIO(raw)
        found = tuple(_elements(stream, syntax))
    except _FOREIGN as error:
        raise IdentifierError("the identifier cannot be parsed", status=UNABLE_TO_PROCESS) from error
    if len(found) > _MAX_KEYS:
        raise IdentifierError("too many keys", status=UNABLE_TO_PROCESS)
    return found


def _inflate(raw: bytes) -> bytes:
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    data = engine.decompress(raw, _MAX_INFLATED)
    if engine.unconsumed_tail:
        raise ValueError("inflates beyond reason")
    return data


def _elements(stream: BytesIO, syntax: str) -> Iterator[Element]:
    implicit, little = syntax == IMPLICIT_LE, syntax != EXPLICIT_BE
    for item in data_element_generator(stream, implicit, little):
        tag = int(item.tag)
        known = dictionary_VR(tag).split(" ")[0] if dictionary_has_tag(tag) else "UN"
        vr = known if implicit or not item.VR else str(item.VR)
        value = item.value if isinstance(item.value, bytes) else b""
        yield Element(tag, vr, value)


def level_of(found: tuple[Element, ...]) -> Level:
    """Return the Query/Retrieve Level (PS3.4 C.4.1.1.3.1)."""
    text = next((_text(e) for e in found if e.tag == LEVEL), "")
    if text not in _LEVELS:
        raise IdentifierError("Query/Retrieve Level missing or unknown", offending=(LEVEL,))
    return text


# --- C-FIND ----------------------------------------------------------------------------------------------------------


def find_request(
    raw: bytes | None, syntax: str, *, limit: int | None, names: Literal["insensitive", "exact"]
) -> FindRequest:
    """Understand a C-FIND identifier. One row more than `limit` is asked for, to tell "all" from "cut off"."""
    found = elements(raw, syntax)
    level = level_of(found)
    charset = Charset.of(next((e.value for e in found if e.tag == CHARACTER_SET), None))
    known = supported(level)
    keys = [e for e in found if e.tag not in _CONTROL and e.tag & 0xFFFF]
    asked = tuple(AskedKey(e.tag, e.vr, keyword_for_tag(BaseTag(e.tag))) for e in keys)
    matches = tuple(
        match
        for element, key in zip(keys, asked, strict=True)
        if key.keyword in known and (match := _match(element, key.keyword, charset)) is not None
    )
    wanted = [key.keyword for key in asked if key.keyword in known]
    query = Query(
        level=level,
        matches=matches,
        keys=tuple(dict.fromkeys((*wanted, _UNIQUE_KEY[level], "InstanceAvailability"))),
        limit=None if limit is None else limit + 1,
        names=names,
    )
    return FindRequest(query, asked, charset, unsupported=any(key.keyword not in known for key in asked))


def _match(element: Element, keyword: str, charset: Charset) -> Match | None:
    """Return what an element asks to match; None for universal matching (PS3.4 C.2.2.2)."""
    if element.vr in _BINARY_VRS:
        return _number(element, keyword)
    if element.vr == "UI":
        uids = _uids(element)
        return Match(keyword=keyword, op="in" if len(uids) > 1 else "eq", values=uids) if uids else None
    text = _decoded(element, charset)
    if not text or not text.strip("*"):
        return None
    if len(text) > _MAX_VALUE:
        raise IdentifierError("a value is too long", offending=(element.tag,))
    zone = element.vr == "DT" and re.fullmatch(r"\d{4,14}(\.\d+)?[+-]\d{4}", text)
    if element.vr in _RANGE_VRS and "-" in text and not zone:
        return _range(text, keyword)
    values = [text] if element.vr in _ONE_VALUE_VRS else [part.strip() for part in text.split("\\") if part.strip()]
    if element.vr in _WILD_VRS and len(values) == 1 and ("*" in text or "?" in text):
        return Match(keyword=keyword, op="wild", values=(text,))
    return Match(keyword=keyword, op="in" if len(values) > 1 else "eq", values=tuple(values)) if values else None


def _number(element: Element, keyword: str) -> Match | None:
    code = _BINARY_VRS[element.vr]
    if len(element.value) != struct.calcsize(code):
        return None  # zero length is universal; more than one value cannot be matched
    return Match(keyword=keyword, op="eq", values=(str(struct.unpack("<" + code, element.value)[0]),))


def _range(text: str, keyword: str) -> Match | None:
    low, _, high = (part.strip() for part in text.partition("-"))
    return Match(keyword=keyword, op="range", values=(low, high)) if low or high else None


# --- C-MOVE, C-GET ---------------------------------------------------------------------------------------------------


def locate_request(raw: bytes | None, syntax: str) -> LocateRequest:
    """Understand a C-MOVE or C-GET identifier: unique keys only, lists of UIDs at each level (PS3.4 C.4.2.1.4).

    A Patient ID below the PATIENT level is tolerated and not looked at: viewers send it, and UIDs are unique.
    """
    found = {e.tag: e for e in elements(raw, syntax)}
    level = level_of(tuple(found.values()))
    if level == "PATIENT":
        return LocateRequest(patients=_patients(found))
    lists = {tag: _uids(found[tag]) if tag in found else () for tag in (STUDY_UID, SERIES_UID, INSTANCE_UID)}
    depth = _LEVELS.index(level)
    needed = (STUDY_UID, SERIES_UID, INSTANCE_UID)[depth - 1]
    if not lists[needed]:
        raise IdentifierError(f"the unique key of level {level} is missing", offending=(needed,))
    return LocateRequest(
        studies=lists[STUDY_UID],
        series=lists[SERIES_UID] if depth >= 2 else (),
        instances=lists[INSTANCE_UID] if depth >= 3 else (),
    )


def _patients(found: dict[int, Element]) -> tuple[PatientKey, ...]:
    charset = Charset.of(found[CHARACTER_SET].value if CHARACTER_SET in found else None)
    ids = _decoded(found[PATIENT_ID], charset).split("\\") if PATIENT_ID in found else []
    ids = [one.strip() for one in ids if one.strip()]
    if not ids or any("*" in one or "?" in one for one in ids):
        raise IdentifierError("the unique key of level PATIENT is missing", offending=(PATIENT_ID,))
    issuer = _decoded(found[PATIENT_ISSUER], charset) if PATIENT_ISSUER in found else ""
    return tuple(PatientKey(issuer=issuer or None, patient_id=one) for one in ids)


# --- values ----------------------------------------------------------------------------------------------------------


def _text(element: Element) -> str:
    return element.value.decode("ascii", "replace").strip("\x00 ")


def _decoded(element: Element, charset: Charset) -> str:
    return charset.decode(element.value, name=element.vr == "PN").strip("\x00 ")


def _uids(element: Element) -> tuple[str, ...]:
    """Return the list of UIDs; none for universal matching. Anything that cannot be a UID is refused."""
    parts = [part.strip("\x00 ") for part in element.value.decode("ascii", "replace").split("\\")]
    uids = tuple(dict.fromkeys(part for part in parts if part and part != "*"))
    if any(not _UID.match(uid) for uid in uids):
        raise IdentifierError("not a UID", offending=(element.tag,))
    return uids


def unique_key(level: Level) -> str:
    """Return the keyword of the level's unique key."""
    return _UNIQUE_KEY[level]
