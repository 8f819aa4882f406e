"""Read the registered header: cut it out of a data set at the receiver, turn it into columns at the catalog (pure).

`extract` and `columns` survive anything a sender can produce; only bytes that are no data set at all raise.
"""
from __future__ import annotations

import heapq
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import BinaryIO

from catalog.elements import DEFLATED, EXPLICIT_LE, Encoding, Walker, Window, inflate, plain
from catalog.errors import HeaderError
from catalog.keys import HEADER_KEYS, LEVELS, Key, Level
from catalog.text import INDEXED_LENGTH, clean, decode, name_key, terms_of

HEADER_CAP = 65536  # bytes of encoded elements that are registered
HEAD = HEADER_CAP + 12  # so many bytes of a data set are enough for `extract_plain`
_LONG_TEXT = 10240  # characters; LT's own limit (PS3.5 6.2)
_CHARSET, _SOP_CLASS, _INSTANCE, _STUDY, _SERIES = 0x00080005, 0x00080016, 0x00080018, 0x0020000D, 0x0020000E
_UNIQUE = frozenset((_SOP_CLASS, _INSTANCE, _STUDY, _SERIES))
_OLD_DATE = re.compile(r"(\d{4})\.(\d{2})\.(\d{2})")
_OLD_TIME = re.compile(r"\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?")
_REMEMBERED = 64  # bytes of a value that is worth remembering
_BINARY = {b"US": 2, b"UL": 4}

Value = str | int | None


@dataclass(frozen=True, slots=True)
class ExtractedHeader:
    """The elements before the pixel data, as encoded, at most 64 KiB of them.

    `syntax` is the encoding of `raw` (a deflated data set is held inflated, as explicit little endian).
    `pixel_offset_in_dataset` is None without pixel data, and for deflated data sets. UIDs are None where absent.
    `cut` is True when the data set ends within an element that says how long it is.
    """

    raw: bytes
    syntax: str
    complete: bool
    pixel_offset_in_dataset: int | None
    sop_class_uid: str | None
    instance_uid: str | None
    study_uid: str | None
    series_uid: str | None
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Columns:
    """The typed columns of one instance, by level; every column of `catalog.keys` is there, None where unknown."""

    patient: Mapping[str, Value]
    study: Mapping[str, Value]
    series: Mapping[str, Value]
    instance: Mapping[str, Value]


class _Keeper:
    """Hold encoded elements up to a total size; when it overflows the largest ones go, whatever came first."""

    def __init__(self, cap: int) -> None:
        self._cap, self._total, self.dropped = cap, 0, False
        self._kept: list[tuple[int, int, bytes]] = []  # heap: (-size, offset, bytes)

    def add(self, offset: int, encoded: bytes) -> None:
        heapq.heappush(self._kept, (-len(encoded), offset, encoded))
        self._total += len(encoded)
        while self._total > self._cap:
            self._total += heapq.heappop(self._kept)[0]
            self.dropped = True

    def joined(self) -> bytes:
        return b"".join(encoded for _, _, encoded in sorted(self._kept, key=lambda kept: kept[1]))


def extract(stream: BinaryIO, transfer_syntax: str, *, length: int | None = None) -> ExtractedHeader:
    """Cut the registered header out of the data set that starts where the seekable `stream` stands.

    `length` bounds the data set when other bytes follow it. Moves the stream's position. Reads only headers and
    small values, so its cost does not grow with the pixel data.

    Raises:
        HeaderError: not one element could be read.
    """
    deflated = transfer_syntax in DEFLATED
    whole = True
    if deflated:
        stream, whole = inflate(stream)
        length = None
    window = Window(stream, length=length)
    walker = Walker(window, Encoding.of(EXPLICIT_LE if deflated else transfer_syntax))
    keeper = _Keeper(HEADER_CAP)
    unique: dict[int, str] = {}
    seen = False
    for element in walker:
        seen = True
        size = element.end - element.start
        if size > HEADER_CAP:
            keeper.dropped = True
            continue
        encoded = window.read(element.start, size)
        keeper.add(element.start, encoded)
        if element.tag in _UNIQUE and element.tag not in unique:
            unique[element.tag] = uid_text(encoded[element.value - element.start :])
    if not seen and walker.pixel_offset is None:
        raise HeaderError("no DICOM element could be read at the start of the data set")
    return ExtractedHeader(
        raw=keeper.joined(),
        syntax=walker.encoding.syntax,
        complete=walker.complete and not keeper.dropped and (whole or walker.pixel_offset is not None),
        pixel_offset_in_dataset=None if deflated else walker.pixel_offset,
        sop_class_uid=unique.get(_SOP_CLASS) or None,
        instance_uid=unique.get(_INSTANCE) or None,
        study_uid=unique.get(_STUDY) or None,
        series_uid=unique.get(_SERIES) or None,
        cut=walker.cut,
    )


def extract_plain(head: bytes, transfer_syntax: str, *, length: int) -> ExtractedHeader | None:
    """Cut the header out of the first bytes of a data set of `length` bytes, as nearly every one allows.

    `head` has `HEAD` bytes, or all of them when they are fewer. None: only `extract` can tell.
    """
    if transfer_syntax in DEFLATED:
        return None
    encoding = Encoding.of(transfer_syntax)
    found = plain(head, encoding, size=length, wanted=_UNIQUE)
    if found is None or found.end > HEADER_CAP:
        return None
    unique = {tag: uid_text(value) or None for tag, (_, value) in found.values.items()}
    return ExtractedHeader(
        raw=head[: found.end],
        syntax=encoding.syntax,
        complete=True,
        pixel_offset_in_dataset=found.end if found.pixels else None,
        sop_class_uid=unique.get(_SOP_CLASS),
        instance_uid=unique.get(_INSTANCE),
        study_uid=unique.get(_STUDY),
        series_uid=unique.get(_SERIES),
        cut=found.cut,
    )


def uid_text(value: bytes) -> str:
    """Give a UID as it was sent, without the padding (PS3.5 9.1); an odd one stays odd."""
    return value.rstrip(b"\0 ").lstrip(b" ").decode("latin-1")


def columns(raw: bytes, syntax: str) -> Columns:
    """Build the typed columns from a registered header. Never raises on odd values: what cannot be read is None.

    Text is Unicode, by the header's own Specific Character Set. Text that is indexed is cut at 512 characters.
    """
    encoding = Encoding.of(syntax)
    values = _values(raw, encoding)
    charset = values.pop((_CHARSET,), None)
    terms = terms_of(charset[1] if charset else b"")
    levels = {level: blank.copy() for level, blank in _BLANK.items()}
    for path, (vr, value) in values.items():
        key = _BY_PATH.get(path)
        if key is None:
            continue
        read = _typed_before if len(value) <= _REMEMBERED else _typed
        found = read(path, vr, value, terms, encoding.little)
        target = levels[key.level]
        target[key.column] = found
        if key.kind == "name" and found is not None:
            target[key.column + "_key"] = name_key(str(found))[:INDEXED_LENGTH]
    return Columns(levels["PATIENT"], levels["STUDY"], levels["SERIES"], levels["IMAGE"])


def _blank(level: Level) -> dict[str, Value]:
    """Give every column of a level, unknown."""
    names = [(key.column, key.column + "_key") if key.kind == "name" else (key.column,)
             for key in HEADER_KEYS if key.level == level]
    return {column: None for columns in names for column in columns}


_BY_PATH = {key.path: key for key in HEADER_KEYS}
_BLANK = {level: _blank(level) for level in LEVELS}
_WANTED = frozenset(key.path[0] for key in HEADER_KEYS) | {_CHARSET}
_SEQUENCES = frozenset(key.path[0] for key in HEADER_KEYS if len(key.path) > 1)
_INSIDE = frozenset(key.path[1] for key in HEADER_KEYS if len(key.path) > 1)
_Found = dict[tuple[int, ...], tuple[bytes, bytes]]  # path -> (VR, value)


def _values(raw: bytes, encoding: Encoding) -> _Found:
    """Collect the wanted values, and those in the first item of the wanted sequences."""
    values, encoding = _elements(raw, encoding, _WANTED)
    found: _Found = {}
    for tag, (vr, value) in values.items():
        if tag in _SEQUENCES:
            found.update(_first_item(tag, vr, value, encoding))
        else:
            found[tag,] = vr, value
    return found


def _elements(
    raw: bytes, encoding: Encoding, wanted: frozenset[int]
) -> tuple[Mapping[int, tuple[bytes, bytes]], Encoding]:
    """Collect VR and value of the wanted elements, the first of each; and how they really are encoded."""
    ordinary = plain(raw, encoding, size=len(raw), wanted=wanted)
    if ordinary is not None:
        return ordinary.values, encoding
    walker = Walker(Window(io.BytesIO(raw)), encoding)
    found: dict[int, tuple[bytes, bytes]] = {}
    for element in walker:
        if element.tag in wanted:
            found.setdefault(element.tag, (element.vr, raw[element.value : element.end]))
    return found, walker.encoding


def _first_item(tag: int, vr: bytes, value: bytes, encoding: Encoding) -> _Found:
    if len(value) < 8:
        return {}
    if vr == b"UN":
        encoding = Encoding(explicit=False, little=True)
    size = int.from_bytes(value[4:8], "little" if encoding.little else "big")
    item = value[8:] if size == 0xFFFFFFFF else value[8 : 8 + size]
    return {(tag, inner): found for inner, found in _elements(item, encoding, _INSIDE)[0].items()}


def _typed(path: tuple[int, ...], vr: bytes, value: bytes, terms: tuple[str, ...], little: bool) -> Value:
    """Give the column's value, or None for an empty or unreadable one."""
    key = _BY_PATH[path]
    if key.kind == "count":
        return _count(key, vr, value, little)
    if key.kind == "uid":
        return clean(uid_text(value))[:INDEXED_LENGTH] or None
    text = clean(decode(value, terms, name=key.kind == "name"))
    if key.kind == "number":
        return number_text(text.split("\\", 1)[0]) or None
    if key.column.endswith(("_date", "_time")) and not text.isdigit():
        text = _modern(text)
    limit = _LONG_TEXT if key.column.endswith(("comments", "history")) else INDEXED_LENGTH
    return text[:limit].rstrip(" ") or None


# Nearly all values of an image are those of the image before it: remembered, they cost a quarter
_typed_before = lru_cache(maxsize=8192)(_typed)


def _modern(text: str) -> str:
    """Write a date or time of ACR-NEMA (2024.01.31, 10:15:30) as DICOM does (PS3.5 6.2)."""
    date, time = _OLD_DATE.fullmatch(text), _OLD_TIME.fullmatch(text)
    return "".join(date.groups()) if date else text.replace(":", "") if time else text


def number_text(text: str) -> str:
    """Write an integer string one way ("007" and "+7" are 7); what is no integer stays as sent."""
    text = text.strip()[:INDEXED_LENGTH]
    digits = text[1:] if text[:1] in ("+", "-") else text
    return str(int(text)) if digits.isascii() and digits.isdigit() and len(digits) <= 12 else text


def _count(key: Key, vr: bytes, value: bytes, little: bool) -> int | None:
    """Read a small number, binary (US, UL) or as text (IS: the number of frames; PS3.6)."""
    width = _BINARY.get(vr)
    if width is None and vr in (b"", b"UN") and key.keyword != "NumberOfFrames":
        width = 2
    if width is not None:
        return int.from_bytes(value[:width], "little" if little else "big") if len(value) >= width else None
    text = value.split(b"\\")[0].strip(b" \0+")
    return int(text) if text.isdigit() and len(text) <= 9 else None
