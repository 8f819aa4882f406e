"""What a get is to bring, and the bytes of one transfer as blocks, from a data connection of either mode."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from storage_provider.channel import Want
from storage_provider.errors import Faulty, Refused
from storage_provider.gridftp.blocks import HEADER_BYTES, BlockError, BlockParser
from storage_provider.gridftp.client.hearing import Hearing
from storage_provider.gridftp.client.link import Link

BLOCK_BYTES = 512 * 1024
YIELD_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Asked:
    """What of a want is to come: exactly these bytes of an object of that size."""

    start: int
    stop: int
    whole: bool


def asked_of(want: Want, size: int, door: str) -> Asked | Refused:
    """Return what a want comes to for an object of this size; Refused when its range lies outside."""
    stop = size if want.length is None else min(want.offset + want.length, size)
    ranged = bool(want.offset) or want.length is not None
    if ranged and not 0 <= want.offset < stop:
        return Refused("the range lies outside the object", door=door, key=want.key)
    return Asked(want.offset, stop, (want.offset, stop) == (0, size))


def mode_e(link: Link, hearing: Hearing, span: Asked) -> Generator[bytes, None, None]:
    """Yield the blocks of one transfer (GFD.20 section 3.4); they must come in order, we ask for one stream."""
    parser, buffer = BlockParser(), memoryview(bytearray(BLOCK_BYTES + HEADER_BYTES))
    position: int | None = None
    while not parser.ended:
        got = link.receive(buffer[: min(len(buffer), parser.wanted)], hearing, seconds=YIELD_SECONDS)
        if not got:
            raise link.lost("the data connection ended early")
        try:
            pieces, _ = parser.feed(buffer[:got])
        except BlockError as error:
            raise link.lost(str(error)) from error
        for offset, piece in pieces:
            # The part of ERET may be numbered from its own start or from the file's
            if position is None and offset in (0, span.start):
                position = offset
            if offset != position:
                raise Faulty("the blocks come out of order")
            position += len(piece)
            yield bytes(piece)
    if parser.streams not in (None, 1):
        raise Faulty("the far side sends over more connections than one")
    link.closing = parser.closing


def mode_s(link: Link, hearing: Hearing) -> Generator[bytes, None, None]:
    """Yield what comes until the data connection ends."""
    buffer = memoryview(bytearray(BLOCK_BYTES))
    while got := link.receive(buffer, hearing, seconds=YIELD_SECONDS):
        yield bytes(buffer[:got])
