"""Small data sets made from nothing, as bytes on the wire (no file meta information)."""

from __future__ import annotations

import struct

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
IMPLICIT = "1.2.840.10008.1.2"


def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    """One explicit VR little endian element, padded to even length."""
    value += (b"\0" if vr in (b"UI", b"OB", b"OW") else b" ") * (len(value) % 2)
    if vr in (b"OB", b"OW", b"UN", b"SQ", b"UT"):
        return struct.pack("<HH2s2xL", group, number, vr, len(value)) + value
    return struct.pack("<HH2sH", group, number, vr, len(value)) + value


def data_set(
    instance: str | None = "1.2.3.4.1",
    *,
    sop_class: str = CT,
    study: str | None = "1.2.3.1",
    series: str | None = "1.2.3.2",
    number: int = 1,
    pixels: bytes = b"\x01\x02" * 512,
    extra: bytes = b"",
) -> bytes:
    """An explicit little endian CT image; None leaves a UID out; `extra` goes before the pixel data."""
    parts = [element(8, 0x16, b"UI", sop_class.encode())]
    if instance is not None:
        parts.append(element(8, 0x18, b"UI", instance.encode()))
    parts.append(element(8, 0x60, b"CS", b"CT"))
    parts.append(element(0x10, 0x10, b"PN", b"Test^Nobody"))
    parts.append(element(0x10, 0x20, b"LO", b"PAT1"))
    if study is not None:
        parts.append(element(0x20, 0x0D, b"UI", study.encode()))
    if series is not None:
        parts.append(element(0x20, 0x0E, b"UI", series.encode()))
    parts.append(element(0x20, 0x13, b"IS", str(number).encode()))
    return b"".join(parts) + extra + element(0x7FE0, 0x10, b"OW", pixels)
