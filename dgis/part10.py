"""Read and write the DICOM file meta information, PS3.10 section 7.1. Pure: bytes in, bytes out.

The stored bytes of an instance are `file_meta(...)` followed by the data set exactly as it arrived. The meta
information is a function of (SOP class, instance, transfer syntax) alone: no AE title, no date, no version of ours,
so that the same data set always gives the same stored bytes and with them the same object key.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

PREAMBLE = bytes(128) + b"DICM"

# Both are part of the stored bytes for ever: changing one changes every object key made after it.
IMPLEMENTATION_CLASS_UID = "2.25.16499461853982171532747313277897333175"
IMPLEMENTATION_VERSION_NAME = "DGIS"

_LONG_VRS = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_META_GROUP = 0x0002
_MAX_META_VALUE = 1 << 20  # (0002,0102) private information may be long; a megabyte is a damaged length


class Part10Error(ValueError):
    """Not a DICOM Part 10 file, or its meta information cannot be read."""


@dataclass(frozen=True, slots=True)
class FileMeta:
    """What the meta information says; a value that is absent is the empty string."""

    data_set_offset: int
    sop_class_uid: str
    instance_uid: str
    transfer_syntax: str


def file_meta(sop_class_uid: str, instance_uid: str, transfer_syntax: str) -> bytes:
    """Return preamble, prefix and group 2 (explicit VR little endian) for one instance. Deterministic.

    Raise Part10Error when a value is not ASCII or too long for its element.
    """
    elements = b"".join(
        (
            struct.pack("<HH2s2xL", _META_GROUP, 0x0001, b"OB", 2) + b"\x00\x01",
            _uid(0x0002, sop_class_uid),
            _uid(0x0003, instance_uid),
            _uid(0x0010, transfer_syntax),
            _uid(0x0012, IMPLEMENTATION_CLASS_UID),
            _short(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME.encode("ascii")),
        )
    )
    return PREAMBLE + struct.pack("<HH2sHL", _META_GROUP, 0, b"UL", 4, len(elements)) + elements


def data_set_offset(stream: BinaryIO) -> tuple[int, str]:
    """Return (offset of the data set from the stream's position, transfer syntax UID) of a Part 10 file.

    The stream is left somewhere behind the start; seek before reading on. Raise Part10Error when it is no Part 10 file
    or names no transfer syntax.
    """
    meta = read_meta(stream)
    if not meta.transfer_syntax:
        raise Part10Error("the file meta information names no transfer syntax (0002,0010)")
    return meta.data_set_offset, meta.transfer_syntax


def read_meta(stream: BinaryIO) -> FileMeta:
    """Walk group 2 element by element. The group length is not trusted: files with a wrong or no length exist."""
    if stream.read(132)[128:] != b"DICM":
        raise Part10Error("no DICM prefix after a preamble of 128 bytes")
    values: dict[int, bytes] = {}
    offset = 132
    while True:
        head = stream.read(8)
        if len(head) < 8 or struct.unpack_from("<H", head)[0] != _META_GROUP:
            break
        offset += 8
        element = struct.unpack_from("<H", head, 2)[0]
        length, extra = _value_length(head, stream)
        values[element] = _exactly(stream, length)
        offset += extra + length
    return FileMeta(
        data_set_offset=offset,
        sop_class_uid=_text(values.get(0x0002)),
        instance_uid=_text(values.get(0x0003)),
        transfer_syntax=_text(values.get(0x0010)),
    )


def _value_length(head: bytes, stream: BinaryIO) -> tuple[int, int]:
    """Return (value length, header bytes read beyond the first eight)."""
    vr = head[4:6]
    if not vr.isalpha():  # implicit VR in group 2: wrong, but written by old tools
        length, extra = struct.unpack_from("<L", head, 4)[0], 0
    elif vr in _LONG_VRS:
        length, extra = struct.unpack("<L", _exactly(stream, 4))[0], 4
    else:
        length, extra = struct.unpack_from("<H", head, 6)[0], 0
    if length > _MAX_META_VALUE:
        raise Part10Error(f"an element of the file meta information claims {length} bytes")
    return length, extra


def _exactly(stream: BinaryIO, length: int) -> bytes:
    data = stream.read(length)
    if len(data) != length:
        raise Part10Error("the file ends within its meta information")
    return data


def _text(value: bytes | None) -> str:
    return (value or b"").rstrip(b"\x00 ").decode("ascii", "replace")


def _uid(element: int, uid: str) -> bytes:
    try:
        return _short(element, b"UI", uid.encode("ascii"), pad=b"\x00")
    except UnicodeEncodeError:
        raise Part10Error(f"the UID for (0002,{element:04X}) is not ASCII") from None


def _short(element: int, vr: bytes, value: bytes, *, pad: bytes = b" ") -> bytes:
    value += pad * (len(value) % 2)
    if len(value) > 0xFFFE:
        raise Part10Error(f"the value for (0002,{element:04X}) is too long")
    return struct.pack("<HH2sH", _META_GROUP, element, vr, len(value)) + value
