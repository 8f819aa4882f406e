"""How wide text really is in a face of this machine: the advance widths of a TrueType file."""

from __future__ import annotations

import struct
from functools import cache
from pathlib import Path

FACES = Path("/usr/share/fonts/truetype/dejavu")


@cache
def advances(bold: bool) -> dict[int, float] | None:
    """Width in sizes by code point, of DejaVu Sans; None where it is not installed."""
    path = FACES / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")
    if not path.exists():
        return None
    data = path.read_bytes()
    tables = {
        data[at : at + 4].decode(): struct.unpack_from(">I", data, at + 8)[0]
        for at in range(12, 12 + 16 * struct.unpack_from(">H", data, 4)[0], 16)
    }
    units = struct.unpack_from(">H", data, tables["head"] + 18)[0]
    count = struct.unpack_from(">H", data, tables["hhea"] + 34)[0]
    widths = [struct.unpack_from(">H", data, tables["hmtx"] + 4 * glyph)[0] / units for glyph in range(count)]
    return {char: widths[min(glyph, count - 1)] for char, glyph in _glyphs(data, tables["cmap"]).items() if glyph}


def _glyphs(data: bytes, cmap: int) -> dict[int, int]:
    """Glyph by code point of the basic plane: the format 4 table for Windows (OpenType, cmap)."""
    for number in range(struct.unpack_from(">H", data, cmap + 2)[0]):
        platform, encoding, offset = struct.unpack_from(">HHI", data, cmap + 4 + 8 * number)
        if (platform, encoding) == (3, 1):
            return _format_4(data, cmap + offset)
    raise ValueError("no table of the basic plane")


def _format_4(data: bytes, at: int) -> dict[int, int]:
    count = struct.unpack_from(">H", data, at + 6)[0] // 2
    ends, starts, deltas, offsets = (
        struct.unpack_from(f">{count}H", data, at + 14 + 2 * count * number + (2 if number else 0))
        for number in range(4)
    )
    found = {}
    for number in range(count):
        for char in range(starts[number], min(ends[number], 0xFFFE) + 1):
            glyph = char
            if offsets[number]:
                place = at + 16 + 6 * count + 2 * number + offsets[number] + 2 * (char - starts[number])
                glyph = struct.unpack_from(">H", data, place)[0]
            found[char] = (glyph + deltas[number]) & 0xFFFF if glyph else 0
    return found
