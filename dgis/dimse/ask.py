"""What we ask as an SCU: requests and identifiers of C-FIND, C-MOVE and C-GET, and reading what is answered. Pure.

Keys are written as operators write them: `PatientName=DOE*`, `0010,0020=4711`, `StudyInstanceUID` (return it),
`RequestAttributesSequence.ScheduledProcedureStepID=7` (an item of a sequence).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from types import MappingProxyType
from typing import Any, Final, Literal

from pydicom.config import IGNORE
from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence

from dgis.dimse import command as dimse
from dgis.dimse import negotiation
from dgis.dimse.charset import UTF8, Charset
from dgis.dimse.command import Field
from dgis.dimse.negotiation import EXPLICIT_BE, IMPLICIT_LE

Model = Literal["patient", "study"]
Service = Literal["find", "move", "get"]
MODELS: Final = MappingProxyType(
    {
        ("patient", "find"): negotiation.PATIENT_ROOT_FIND,
        ("patient", "move"): negotiation.PATIENT_ROOT_MOVE,
        ("patient", "get"): negotiation.PATIENT_ROOT_GET,
        ("study", "find"): negotiation.STUDY_ROOT_FIND,
        ("study", "move"): negotiation.STUDY_ROOT_MOVE,
        ("study", "get"): negotiation.STUDY_ROOT_GET,
    }
)
CHARACTER_SET, LEVEL = 0x00080005, 0x00080052
Value = str | int | list[Any] | None
_TAG = re.compile(r"\(?([0-9A-Fa-f]{4}),?([0-9A-Fa-f]{4})\)?\Z")
_TEXT_VRS = frozenset(("LO", "LT", "PN", "SH", "ST", "UC", "UT"))
_NUMBER_VRS = frozenset(("US", "SS", "UL", "SL", "UV", "SV", "FL", "FD"))
_BAD_BYTES = (
    EOFError, ValueError, LookupError, TypeError, AttributeError, RecursionError, NotImplementedError,
    struct.error, BytesLengthException, InvalidDicomError,
)  # fmt: skip


class KeyMistake(ValueError):
    """A key that cannot be asked for; the text says what to write instead."""


class UnreadableAnswer(ValueError):
    """An identifier that is no data set in its transfer syntax."""


@dataclass(frozen=True, slots=True)
class Key:
    """One matching or return key: the tags that lead to it, and the value as written."""

    path: tuple[int, ...]
    value: str = ""

    @classmethod
    def parse(cls, text: str) -> Key:
        """Read `Keyword=value` and its other forms. Raises KeyMistake."""
        name, _, value = text.partition("=")
        return cls(tuple(_tag(part.strip()) for part in name.split(".")), value)


def _tag(name: str) -> int:
    found = _TAG.match(name)
    tag = int(found[1] + found[2], 16) if found else tag_for_keyword(name)
    if tag is None:
        raise KeyMistake(f"{name!r} is no DICOM keyword; write PatientID=4711 or 0010,0020=4711")
    if int(tag) < 0x00080000:
        raise KeyMistake(f"{name} does not belong into an identifier")
    return int(tag)


def identifier(level: str, keys: Iterable[Key]) -> Dataset:
    """Build an identifier; a key that comes twice counts as last written. Raises KeyMistake.

    Values outside ASCII make the character set ISO_IR 192 unless a key names another.
    """
    root = Dataset()
    _put(root, Key((LEVEL,), level))
    written = list(keys)
    for key in written:
        _put(root, key)
    if CHARACTER_SET not in root and not all(key.value.isascii() for key in written):
        _put(root, Key((CHARACTER_SET,), UTF8))
    _check_encodable(root, written)
    return root


def _put(root: Dataset, key: Key) -> None:
    item = root
    for tag in key.path[:-1]:
        if tag not in item or item[tag].VR != "SQ":
            item[tag] = DataElement(tag, "SQ", Sequence([Dataset()]))
        item = item[tag].value[0]
    tag = key.path[-1]
    vr = dictionary_VR(tag).split(" ")[0] if dictionary_has_tag(tag) else "LO"
    if vr == "SQ":
        item[tag] = DataElement(tag, "SQ", Sequence([]))
        return
    try:
        item[tag] = DataElement(tag, vr, _value(vr, key.value), validation_mode=IGNORE)
    except _BAD_BYTES:
        raise KeyMistake(f"{keyword(tag)} has VR {vr}; the value cannot be written as that") from None


def _value(vr: str, text: str) -> object:
    if not text or vr not in _NUMBER_VRS:
        return text or None
    return [float(part) if vr.startswith("F") else int(part) for part in text.split("\\")]


def _check_encodable(root: Dataset, keys: Iterable[Key]) -> None:
    value = root[CHARACTER_SET].value if CHARACTER_SET in root else ""
    charset = Charset.of("\\".join([value] if isinstance(value, str) else list(value or ())).encode("ascii", "replace"))
    for key in keys:
        if not key.value.isascii() and charset.encode(key.value, name=False) is None:
            raise KeyMistake(f"the value of {keyword(key.path[-1])} cannot be written in {charset.value or 'ASCII'}")


def encode(data_set: Dataset, syntax: str) -> bytes:
    """Write an identifier in one of the uncompressed transfer syntaxes."""
    stream = DicomBytesIO()
    stream.is_implicit_VR, stream.is_little_endian = syntax == IMPLICIT_LE, syntax != EXPLICIT_BE
    write_dataset(stream, data_set)
    return stream.getvalue()


def request(field: Field, message_id: int, sop_class: str, *, destination: str = "") -> bytes:
    """Encode a C-FIND-RQ, C-MOVE-RQ or C-GET-RQ that an identifier follows; priority medium (PS3.7 9.3)."""
    values = {
        0x0002: dimse.uid(sop_class),
        0x0100: dimse.short(field),
        0x0110: dimse.short(message_id),
        0x0700: dimse.short(0),
        0x0800: dimse.short(0x0001),
    }
    if destination:
        values[0x0600] = dimse.text(destination)
    return dimse.encode(values)


def cancel(message_id: int) -> bytes:
    """Encode a C-CANCEL-RQ (PS3.7 9.3.2.3)."""
    return dimse.encode(
        {
            0x0100: dimse.short(Field.C_CANCEL),
            0x0120: dimse.short(message_id),
            0x0800: dimse.short(dimse.NO_DATA_SET),
        }
    )


def decode(raw: bytes, syntax: str) -> dict[str, Value]:
    """Read an identifier that was answered: keyword (or eight hex digits) -> decoded value, in tag order.

    Raises UnreadableAnswer. An element that cannot be read alone becomes its text with replacements.
    """
    try:
        found = read_dataset(BytesIO(raw), syntax == IMPLICIT_LE, syntax != EXPLICIT_BE)
    except _BAD_BYTES as error:
        raise UnreadableAnswer("the peer's identifier cannot be read") from error
    return dict(_values(found))


def _values(found: Dataset) -> Iterator[tuple[str, Value]]:
    for tag in sorted(found.keys()):
        try:
            yield keyword(int(tag)), _plain(found[tag])
        except _BAD_BYTES:
            raw = getattr(found.get_item(tag), "value", b"")
            yield keyword(int(tag)), raw.decode("ascii", "replace").strip("\x00 ") if isinstance(raw, bytes) else None


def _plain(element: DataElement) -> Value:
    value = element.value
    if element.VR == "SQ":
        return [dict(_values(item)) for item in value or ()]
    if value is None or value == "":
        return None
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if element.VM > 1:
        return [_one(part) for part in value]
    return _one(value)


def _one(value: object) -> str | int:
    return value if type(value) is int else str(value).strip("\x00 ")


def keyword(tag: int) -> str:
    """Return the keyword of a tag, eight hex digits for one that has none."""
    return keyword_for_tag(tag) or f"{tag:08X}"
