"""Writing behind the network: everything arrives in the order it came, errors come out, no thread stays."""

from __future__ import annotations

import random
import threading
import time

import pytest

from storage_provider.errors import NoSpace
from storage_provider.gridftp.server.behind import WriteBehind
from storage_provider.gridftp.server.stream import Scratch

DATA = random.Random(4).randbytes(12_000_000)


def feed(behind: WriteBehind, data: bytes) -> None:
    """Bring data as a stream does: into the buffer it lends, and then as pieces of it."""
    at = 0
    while at < len(data):
        buffer = behind.buffer
        count = min(len(buffer), len(data) - at)
        buffer[:count] = data[at : at + count]
        half = count // 2
        behind.take([(at, buffer[:half]), (at + half, buffer[half:count])])
        at += count


def writers() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name == "gsiftp-write"]


@pytest.mark.parametrize("size", [0, 1000, 3_000_000, len(DATA)])
def test_all_is_written_when_it_is_left(size: int) -> None:
    file, offsets = bytearray(size), []

    def write(offset: int, piece: memoryview) -> None:
        time.sleep(0.002)
        file[offset : offset + len(piece)] = piece
        offsets.append(offset)

    with WriteBehind(write, Scratch()) as behind:
        feed(behind, DATA[:size])
        assert bool(writers()) == (size > 3_000_000)
    assert file == DATA[:size] and offsets == sorted(offsets)
    assert writers() == []


def test_an_error_of_the_writer_comes_out(size: int = len(DATA)) -> None:
    def write(offset: int, piece: memoryview) -> None:
        if offset > size // 2:
            raise NoSpace("the disk is full")

    with pytest.raises(NoSpace), WriteBehind(write, Scratch()) as behind:
        feed(behind, DATA)
    last = [size]

    def late(offset: int, piece: memoryview) -> None:
        if offset + len(piece) == last[0]:
            raise NoSpace("the disk is full")

    with pytest.raises(NoSpace), WriteBehind(late, Scratch()) as behind:
        feed(behind, DATA)
    assert writers() == []


def test_an_error_of_the_network_waits_for_the_writer_and_stays() -> None:
    busy = threading.Event()

    def write(offset: int, piece: memoryview) -> None:
        if offset > 7_300_000:
            busy.set()
            time.sleep(0.1)
            raise NoSpace("the disk is full")

    with pytest.raises(ConnectionError), WriteBehind(write, Scratch()) as behind:
        feed(behind, DATA[:7_500_000])
        raise ConnectionError
    assert busy.is_set() and writers() == []
