"""What the first pass over a data set finds: the image pixel module and where the pixel data lies."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import BinaryIO

from dgis.transcode.errors import TranscodeError
from dgis.transcode.walk import SEQUENCE_END, Element, Encoding, Fragments, Mark, Walk

PIXEL_DATA = 0x7FE00010
OFFSETS, LENGTHS = 0x7FE00001, 0x7FE00002  # Extended Offset Table
PHOTOMETRIC, PLANAR, FRAMES = 0x00280004, 0x00280006, 0x00280008
SAMPLES, ROWS, COLUMNS = 0x00280002, 0x00280010, 0x00280011
ALLOCATED, STORED, REPRESENTATION = 0x00280100, 0x00280101, 0x00280103
LOSSY = 0x00282110
_WANTED = frozenset(
    (PHOTOMETRIC, PLANAR, FRAMES, SAMPLES, ROWS, COLUMNS, ALLOCATED, STORED, REPRESENTATION, LOSSY, OFFSETS, LENGTHS)
)
_MAX_VALUE = 16 << 20  # an extended offset table of a million frames


@dataclass(slots=True)
class Image:
    """The values of the first pass; numbers that are absent are None."""

    values: dict[int, bytes] = field(default_factory=dict)
    order: str = "<"
    fragments: int | None = None  # where the encapsulated pixel data's basic offset table begins
    dropped: set[int] = field(default_factory=set)  # sequences at the root that hold encapsulated pixel data

    def number(self, tag: int) -> int | None:
        """Return a US value."""
        raw = self.values.get(tag, b"")
        return struct.unpack_from(self.order + "H", raw)[0] if len(raw) >= 2 else None

    def text(self, tag: int) -> str:
        """Return a text value, empty when absent."""
        return self.values.get(tag, b"").decode("latin-1").strip("\x00 ")

    def needed(self, tag: int) -> int:
        """Return a US value without which pixel data cannot be understood."""
        value = self.number(tag)
        if value is None:
            raise TranscodeError(f"the pixel data cannot be understood without ({tag >> 16:04X},{tag & 0xFFFF:04X})")
        return value

    @property
    def frames(self) -> int:
        """Number of frames, 1 when the data set does not say."""
        try:
            return max(int(self.text(FRAMES) or 1), 1)
        except ValueError:
            raise TranscodeError("the number of frames is no number") from None

    @property
    def frame_bytes(self) -> int:
        """Bytes of one decoded frame."""
        allocated = self.needed(ALLOCATED)
        if allocated not in (8, 16, 32):
            raise TranscodeError(f"compressed pixel data with {allocated} bits allocated")
        return self.needed(ROWS) * self.needed(COLUMNS) * self.needed(SAMPLES) * (allocated // 8)


def survey(stream: BinaryIO, size: int, encoding: Encoding) -> Image:
    """Make the first pass. Raises TranscodeError when the data set cannot be understood."""
    image = Image(order=encoding.order)
    within = 0
    for event in Walk(stream, size, encoding):
        if isinstance(event, Mark):
            if event.root:
                within = 0 if event.tag == SEQUENCE_END else event.tag
        elif isinstance(event, Element):
            if event.root and event.tag in _WANTED and event.length <= _MAX_VALUE:
                stream.seek(event.offset)
                image.values[event.tag] = stream.read(event.length)
        elif isinstance(event, Fragments):
            _note(event, image, within)
    return image


def _note(event: Fragments, image: Image, within: int) -> None:
    if event.root and event.tag == PIXEL_DATA:
        image.fragments = event.offset
    elif event.root:
        raise TranscodeError("encapsulated data in another element than Pixel Data")
    else:
        image.dropped.add(within)  # a compressed icon: PS3.3 F.7 lets it be left out
