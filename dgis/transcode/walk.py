"""Walk an encoded data set element by element, PS3.5 section 7 and annex A. Iterative: depth costs no stack.

Values are not read here; the consumer reads what it wants of them from the stream. Memory holds one element header.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import BinaryIO

from pydicom.datadict import dictionary_VR

from dgis.transcode.errors import TranscodeError
from dgis.transcode.plan import EXPLICIT_BE, IMPLICIT_LE

UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
LONG_VRS = frozenset(("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"))
_SHORT_VRS = frozenset(
    ("AE", "AS", "AT", "CS", "DA", "DS", "DT", "FD", "FL", "IS", "LO", "LT", "PN", "SH", "SL", "SS", "ST", "TM", "UI",
     "UL", "US")
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Encoding:
    """How elements are encoded."""

    implicit: bool
    big: bool

    @property
    def order(self) -> str:
        """For struct."""
        return ">" if self.big else "<"


IMPLICIT = Encoding(implicit=True, big=False)


def encoding_of(syntax: str) -> Encoding:
    """Return the encoding of a (not deflated) transfer syntax; encapsulated ones are explicit VR little endian."""
    return Encoding(implicit=syntax == IMPLICIT_LE, big=syntax == EXPLICIT_BE)


@dataclass(slots=True)
class Element:
    """A leaf: `length` bytes of value at `offset`. `root` when it stands outside every sequence."""

    tag: int
    vr: str
    length: int
    offset: int
    encoding: Encoding
    root: bool


@dataclass(slots=True)
class Mark:
    """The beginning (`tag` of the sequence, or ITEM) or the end (SEQUENCE_END, ITEM_END) of a sequence or an item."""

    tag: int
    root: bool


@dataclass(slots=True)
class Fragments:
    """Encapsulated pixel data of undefined length; its basic offset table item begins at `offset`."""

    tag: int
    offset: int
    root: bool


@dataclass(slots=True)
class _Open:
    sequence: bool
    end: int | None
    encoding: Encoding


class Walk:
    """Iterate over the events of one data set of `size` bytes that starts where the stream stands."""

    def __init__(self, stream: BinaryIO, size: int, encoding: Encoding) -> None:
        """Begin at the stream's position."""
        self._stream, self._at = stream, stream.tell()
        self._end = self._at + size
        self._open = [_Open(False, self._end, encoding)]

    def __iter__(self) -> Iterator[Element | Mark | Fragments]:
        """Yield the events. Raises TranscodeError where the data set cannot be understood."""
        while True:
            top = self._open[-1]
            if top.end is not None and self._at >= top.end:
                if self._at > top.end:
                    raise TranscodeError("a value is longer than what contains it")
                if len(self._open) == 1:
                    return
                yield self._close()
            elif top.sequence:
                yield self._item()
            elif len(self._open) == 1 and self._padding():
                return
            else:
                yield from self._element(top)

    def _read(self, count: int) -> bytes:
        self._stream.seek(self._at)
        raw = self._stream.read(count) if self._at + count <= self._end else b""
        if len(raw) < count:
            raise TranscodeError("the data set ends within an element")
        self._at += count
        return raw

    def _padding(self) -> bool:
        """Whether only a few zero bytes are left."""
        left = self._end - self._at
        if left >= 8:
            return False
        return not any(self._read(left))

    def _close(self) -> Mark:
        closed = self._open.pop()
        return Mark(SEQUENCE_END if closed.sequence else ITEM_END, len(self._open) == 1)

    def _item(self) -> Mark:
        top = self._open[-1]
        group, number, length = struct.unpack(top.encoding.order + "HHL", self._read(8))
        tag = group << 16 | number
        if tag == SEQUENCE_END and top.end is None:
            return self._close()
        if tag != ITEM:
            raise TranscodeError("a sequence holds something else than items")
        self._open.append(_Open(False, None if length == UNDEFINED else self._at + length, top.encoding))
        return Mark(ITEM, False)

    def _element(self, top: _Open) -> Iterator[Element | Mark | Fragments]:
        tag, vr, length = self._head(top.encoding)
        root = len(self._open) == 1
        if tag == ITEM_END and top.end is None:
            yield self._close()
        elif tag >> 16 == 0xFFFE:
            raise TranscodeError("a delimiter where an element is due")
        elif length == UNDEFINED and vr in ("OB", "OW", "OB or OW"):
            yield Fragments(tag, self._at, root)
            self._skip_fragments()
        elif vr == "SQ" or length == UNDEFINED:
            yield Mark(tag, root)
            # UN of undefined length is a sequence in implicit VR little endian (PS3.5 6.2.2 note 2).
            inner = IMPLICIT if vr == "UN" and not top.encoding.implicit else top.encoding
            self._open.append(_Open(True, None if length == UNDEFINED else self._at + length, inner))
        else:
            if self._at + length > self._end:
                raise TranscodeError("the data set ends within a value")
            yield Element(tag, vr, length, self._at, top.encoding, root)
            self._at += length

    def _head(self, encoding: Encoding) -> tuple[int, str, int]:
        raw = self._read(8)
        group, number = struct.unpack_from(encoding.order + "HH", raw)
        tag = group << 16 | number
        if group == 0xFFFE:
            return tag, "", struct.unpack_from(encoding.order + "L", raw, 4)[0]
        vr = raw[4:6].decode("latin-1")
        # Some writers fall back to implicit VR within an explicit data set: a length is hardly two capital letters.
        if encoding.implicit or not (vr in _SHORT_VRS or vr in LONG_VRS):
            if not encoding.implicit and vr.isalpha() and vr.isupper():
                raise TranscodeError("an element has an unknown VR")
            return tag, vr_of(tag), struct.unpack_from(encoding.order + "L", raw, 4)[0]
        if vr in LONG_VRS:
            return tag, vr, struct.unpack(encoding.order + "L", self._read(4))[0]
        return tag, vr, struct.unpack_from(encoding.order + "H", raw, 6)[0]

    def _skip_fragments(self) -> None:
        order = self._open[-1].encoding.order
        while True:
            group, number, length = struct.unpack(order + "HHL", self._read(8))
            if group << 16 | number == SEQUENCE_END:
                return
            if group << 16 | number != ITEM or self._at + length > self._end:
                raise TranscodeError("the fragments of the pixel data are damaged")
            self._at += length


@lru_cache(maxsize=8192)
def vr_of(tag: int) -> str:
    """Return the dictionary's VR of a tag that came without one; ambiguous ones as the dictionary has them."""
    if tag >> 16 & 1:
        return "LO" if 0x10 <= tag & 0xFFFF <= 0xFF else "UN"  # private creator, PS3.5 7.8.1
    try:
        return dictionary_VR(tag)
    except KeyError:
        return "UL" if tag & 0xFFFF == 0 else "UN"
