"""Writing behind: order, errors, and nothing left running."""

from __future__ import annotations

import random
import threading

import pytest

from storage_provider.errors import NoSpace
from storage_provider.gridftp.server.behind import Behind


def test_all_is_written_in_order_though_the_buffer_is_used_again() -> None:
    rng, written, scratch = random.Random(3), [], bytearray(1000)
    expected: list[tuple[int, bytes]] = []
    with Behind(lambda offset, data: written.append((offset, bytes(data))), 1000) as behind:
        for offset in range(200):
            data = rng.randbytes(rng.randrange(1, 1000))
            scratch[: len(data)] = data
            behind.write(offset, memoryview(scratch)[: len(data)])
            expected.append((offset, data))
        behind.flush()
        assert written == expected


@pytest.mark.parametrize("at", [0, 1, 5, 9])
def test_the_first_error_comes_out_and_the_thread_ends(at: int) -> None:
    def write(offset: int, _data: memoryview) -> None:
        if offset >= at:
            raise NoSpace(f"full at {offset}")

    before = threading.active_count()
    with pytest.raises(NoSpace, match=f"full at {at}"), Behind(write, 10) as behind:
        for offset in range(10):
            behind.write(offset, memoryview(b"x"))
        behind.flush()
    assert threading.active_count() == before


def test_leaving_early_waits_for_what_was_handed_over() -> None:
    going, written = threading.Event(), []

    def write(offset: int, _data: memoryview) -> None:
        going.wait(5)
        written.append(offset)

    with pytest.raises(KeyboardInterrupt), Behind(write, 10) as behind:
        behind.write(0, memoryview(b"x"))
        behind.write(1, memoryview(b"x"))
        going.set()
        raise KeyboardInterrupt
    assert written == [0, 1]
