"""MODE E blocks: whatever the sizes they arrive in, the pieces are those that were sent."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_provider.gridftp.blocks import HEADER_BYTES, BlockError, BlockParser, block_header, end_of_data


def parse(parser: BlockParser, data: bytes, cuts: list[int]) -> tuple[bytearray, int]:
    """Feed `data` in portions; return the file as written and how many bytes were used."""
    file, used, at = bytearray(), 0, 0
    for size in [*cuts, len(data)]:
        portion = memoryview(data)[at : at + size]
        at += size
        pieces, taken = parser.feed(portion)
        for offset, piece in pieces:
            file.extend(bytes(max(0, offset + len(piece) - len(file))))
            file[offset : offset + len(piece)] = piece
        used += taken
        if parser.ended:
            break
    return file, used


@given(
    st.binary(max_size=500),
    st.lists(st.integers(1, 120), max_size=8),
    st.lists(st.integers(1, 64), max_size=40),
    st.booleans(),
    st.binary(max_size=30),
)
def test_a_file_arrives_whole_however_it_is_cut(
    file: bytes, blocks: list[int], cuts: list[int], close: bool, next_transfer: bytes
) -> None:
    wire, at = b"", 0
    for size in [*blocks, len(file)]:
        piece = file[at : at + size]
        wire += block_header(len(piece), at) + piece
        at += len(piece)
    wire += end_of_data(streams=3, close=close)
    parser = BlockParser()
    assert not parser.begun
    found, used = parse(parser, wire + next_transfer, cuts)
    assert (found, used) == (file, len(wire))
    assert (parser.ended, parser.streams, parser.closing, parser.wanted) == (True, 3, close, 0)
    assert parser.feed(memoryview(next_transfer)) == ([], 0)


@given(st.binary(max_size=200), st.lists(st.integers(1, 30), max_size=30))
def test_any_bytes_are_pieces_or_an_error(junk: bytes, cuts: list[int]) -> None:
    parser = BlockParser()
    at = 0
    try:
        for size in [*cuts, len(junk)]:
            wanted = parser.wanted
            pieces, used = parser.feed(memoryview(junk)[at : at + size])
            assert used <= size and sum(len(piece) for _, piece in pieces) <= used
            assert parser.ended or wanted > 0
            at += size
    except BlockError:
        return


def test_wanted_never_reaches_into_the_next_transfer() -> None:
    wire = block_header(5, 0) + b"hello" + end_of_data()
    parser = BlockParser()
    at = 0
    while not parser.ended:
        step = parser.wanted
        assert 0 < step <= len(wire) - at
        parser.feed(memoryview(wire)[at : at + step])
        at += step
    assert at == len(wire)


def test_data_may_come_with_the_end() -> None:
    parser = BlockParser()
    pieces, used = parser.feed(memoryview(struct.pack(">BQQ", 8, 3, 7) + b"endmore"))
    assert [(offset, bytes(piece)) for offset, piece in pieces] == [(7, b"end")]
    assert used == HEADER_BYTES + 3 and parser.ended and parser.streams is None


@pytest.mark.parametrize(
    "header",
    [(16, 0, 0), (32, 0, 0), (1, 0, 0), (0, 1 << 51, 0), (0, 1, 1 << 60), (64, 0, 0), (64, 0, 5000), (72, 1, 1)],
)
def test_what_is_not_understood_is_refused(header: tuple[int, int, int]) -> None:
    with pytest.raises(BlockError):
        BlockParser().feed(memoryview(struct.pack(">BQQ", *header)))
