"""Write a data set anew in another native encoding, value by value. Memory holds one megabyte.

Values keep their bytes but for the byte order. Sequences and items get undefined length, group lengths are left out
(PS3.5 7.2), so nothing has to be known before it is written.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import BinaryIO, Protocol

from dgis.transcode.errors import TranscodeError
from dgis.transcode.image import ALLOCATED, LENGTHS, OFFSETS, PIXEL_DATA, REPRESENTATION, Image
from dgis.transcode.walk import (
    ITEM,
    ITEM_END,
    LONG_VRS,
    SEQUENCE_END,
    UNDEFINED,
    Element,
    Encoding,
    Fragments,
    Mark,
    Walk,
    vr_of,
)

_CHUNK = 1 << 20  # a multiple of every width
_WIDTH = dict.fromkeys(("US", "SS", "OW", "AT"), 2) | dict.fromkeys(("UL", "SL", "FL", "OF", "OL"), 4)
_WIDTH |= dict.fromkeys(("FD", "OD", "SV", "UV", "OV"), 8)


class Output(Protocol):
    """Where the new data set goes."""

    def write(self, data: bytes) -> object:
        """Take the next bytes."""


class Pixels(Protocol):
    """The decoded pixel data that stands in for an encapsulated one."""

    length: int
    vr: str

    def write(self, output: Output, *, big: bool) -> None:
        """Write `length` bytes."""


Replacement = tuple[str, bytes] | None  # VR and the value in little endian; None leaves the element out


class Rewriter:
    """Rewrites one data set."""

    def __init__(
        self,
        stream: BinaryIO,
        output: Output,
        target: Encoding,
        image: Image,
        *,
        pixels: Pixels | None = None,
        replace: Mapping[int, Replacement] | None = None,
    ) -> None:
        """`image` is of the first pass; `pixels` stand in for its fragments; `replace` is for elements at the root."""
        self._stream, self.output, self._target, self._image = stream, output, target, image
        self._pixels = pixels
        self._replace: dict[int, Replacement] = {OFFSETS: None, LENGTHS: None} if pixels else {}
        self._replace |= replace or {}
        self._new = sorted(tag for tag, value in self._replace.items() if value is not None)
        self._within_dropped = False

    def run(self, size: int, source: Encoding) -> None:
        """Rewrite the data set of `size` bytes at the stream's position. Raises TranscodeError."""
        for event in Walk(self._stream, size, source):
            if isinstance(event, Mark) and event.root:
                self._root_mark(event)
            elif self._within_dropped:
                continue
            elif isinstance(event, Mark):
                self._mark(event.tag)
            elif isinstance(event, Element):
                self._element(event)
            else:
                self._fragments(event)
        self._insert_before(UNDEFINED)

    def _root_mark(self, event: Mark) -> None:
        if event.tag != SEQUENCE_END:
            self._insert_before(event.tag)
            self._within_dropped = event.tag in self._image.dropped
        if not self._within_dropped:
            self._mark(event.tag)
        elif event.tag == SEQUENCE_END:
            self._within_dropped = False

    def _mark(self, tag: int) -> None:
        if tag in (ITEM, ITEM_END, SEQUENCE_END):
            length = UNDEFINED if tag == ITEM else 0
            self.output.write(struct.pack(self._target.order + "HHL", tag >> 16, tag & 0xFFFF, length))
        else:
            self._head(tag, "SQ", UNDEFINED)

    def _head(self, tag: int, vr: str, length: int) -> None:
        order, group, number = self._target.order, tag >> 16, tag & 0xFFFF
        if self._target.implicit:
            self.output.write(struct.pack(order + "HHL", group, number, length))
        elif vr in LONG_VRS:
            self.output.write(struct.pack(order + "HH2s2xL", group, number, vr.encode(), length))
        else:
            self.output.write(struct.pack(order + "HH2sH", group, number, vr.encode(), length))

    def _element(self, element: Element) -> None:
        if element.tag & 0xFFFF == 0:
            return
        if element.root:
            self._insert_before(element.tag)
            if element.tag in self._replace:
                return
        vr, width = self._typed(element)
        if not self._target.implicit and vr not in LONG_VRS and element.length > 0xFFFF:
            vr, width = "UN", self._un_width(element, width)  # PS3.5 6.2.2 note 4
        self._head(element.tag, vr, element.length)
        self._copy(element.offset, element.length, width)

    def _un_width(self, element: Element, width: int) -> int:
        """A UN value is little endian whatever the syntax."""
        return _WIDTH.get(element.vr, 1) if element.encoding.big else 1

    def _typed(self, element: Element) -> tuple[str, int]:
        """Return (VR to write, bytes of a word whose order is to be turned or 1)."""
        vr = element.vr
        if element.tag == PIXEL_DATA:
            return self._pixel_type(element)
        if "or" in vr:  # ambiguous, from an implicit VR data set, where OW holds (PS3.5 A.1)
            vr = self._resolved(element)
        if vr == "UN" and not self._target.implicit:
            return self._known(element)
        width = _WIDTH.get(vr, 1) if element.encoding.big != self._target.big else 1
        return vr, width

    def _known(self, element: Element) -> tuple[str, int]:
        """Name the VR where it is known: readers forget that UN is little endian everywhere (PS3.5 6.2.2)."""
        vr = vr_of(element.tag)
        if vr == "SQ" or "or" in vr:
            return "UN", 1
        return vr, _WIDTH.get(vr, 1) if self._target.big else 1

    def _resolved(self, element: Element) -> str:
        if element.vr == "US or SS":
            return "SS" if self._image.number(REPRESENTATION) else "US"
        if element.vr == "US or OW":
            return "US" if element.length == 2 else "OW"
        if element.vr == "US or SS or OW":
            signed = "SS" if self._image.number(REPRESENTATION) else "US"
            return "OW" if element.length > 2 else signed
        return "OW"

    def _pixel_type(self, element: Element) -> tuple[str, int]:
        """Up to 8 bits are written as OB: one order of bytes in every syntax (PS3.5 A.2)."""
        allocated = self._image.number(ALLOCATED) or 0
        big = element.encoding.big and element.vr != "UN"
        if allocated <= 8:
            return "OB", 2 if element.vr == "OW" and big else 1
        # Cells of 32 bits are turned as cells, which is what readers expect of them; some writers say OB for words.
        return "OW", allocated // 8 if big != self._target.big and allocated % 8 == 0 else 1

    def _fragments(self, event: Fragments) -> None:
        if self._pixels is None or not event.root:
            raise TranscodeError("encapsulated pixel data in a native transfer syntax")
        self._insert_before(event.tag)
        self._head(event.tag, self._pixels.vr, self._pixels.length)
        self._pixels.write(self.output, big=self._target.big)

    def _insert_before(self, tag: int) -> None:
        """Write the replacements whose place is here, in ascending order."""
        while self._new and self._new[0] <= tag:
            new = self._new.pop(0)
            replacement = self._replace[new]
            if replacement is None:
                continue
            vr, value = replacement
            self._head(new, vr, len(value))
            self.output.write(turned(value, _WIDTH.get(vr, 1) if self._target.big else 1))

    def _copy(self, offset: int, length: int, width: int) -> None:
        self._stream.seek(offset)
        while length:
            piece = self._stream.read(min(length, _CHUNK))
            if not piece:
                raise TranscodeError("the file ends within a value")
            length -= len(piece)
            self.output.write(turned(piece, width))


def turned(data: bytes, width: int) -> bytes:
    """Return `data` with the bytes of each word of `width` in the other order; an incomplete last word stays."""
    whole = len(data) - len(data) % width
    if width == 1 or not whole:
        return data
    result = bytearray(data)
    for byte in range(width):
        result[byte:whole:width] = data[width - 1 - byte : whole : width]
    return bytes(result)
