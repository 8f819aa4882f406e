"""Small objects read ahead from one door: in order, verified, bounded, and nothing waits for what nobody wants."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from storage_provider.channel import Got, Want
from storage_provider.errors import Corrupt, Faulty, NotFound, StorageError, Unreachable
from storage_provider.transfer.engine import Doors, Engine, Source
from storage_provider.transfer.reading import Reading
from tests.conformance.memory_channel import MemoryChannel, MemoryProvider, opener

DATA = [random.Random(number).randbytes(100_000 + number) for number in range(12)]


def sources_at(far: MemoryProvider, data: Sequence[bytes] = DATA) -> list[Source]:
    specs = [far.add(one) for one in data]
    return [Source((Doors(far.name, (far.door,)),), s.key, s.size, s.sha256, s.chunks) for s in specs]


@contextmanager
def reading(far: MemoryProvider, sources: Sequence[Source], *, window: int = 10_000_000) -> Iterator[Reading]:
    made = Engine(opener(far)).read_ahead(sources, acting_for="ae:X@a", window=window)
    assert made is not None
    yield made
    made.close()
    made._thread.join(5)
    assert not made._thread.is_alive()


def taken(made: Reading, count: int) -> list[bytes | StorageError]:
    out: list[bytes | StorageError] = []
    for _ in range(count):
        answer = made.take(5)
        assert answer is not None, "nothing came"
        out.append(answer if isinstance(answer, StorageError) else b"".join(answer))
    return out


def test_objects_come_whole_and_in_order() -> None:
    far = MemoryProvider("a")
    with reading(far, sources_at(far)) as made:
        assert made.se == "a"
        assert taken(made, len(DATA)) == DATA
        assert made.take(0.01) is None


def test_what_is_wrong_with_one_does_not_end_the_rest() -> None:
    far = MemoryProvider("a")
    sources = sources_at(far, DATA[:4])
    at = far.objects[sources[1].key][1]
    far.objects[sources[0].key] = (DATA[0][:-1] + bytes([DATA[0][-1] ^ 1]), at)
    far.objects[sources[1].key] = (DATA[1] + b"more", at)
    del far.objects[sources[2].key]
    with reading(far, sources) as made:
        assert [type(one) for one in taken(made, 4)] == [Corrupt, Faulty, NotFound, bytes]


def test_a_shorter_object_is_corrupt_though_it_came_without_an_error() -> None:
    far = MemoryProvider("a")
    (source,) = sources_at(far, DATA[:1])
    far.objects[source.key] = (DATA[0][:5000], far.objects[source.key][1])
    with reading(far, [source]) as made:
        assert isinstance(taken(made, 1)[0], Corrupt)


def test_a_lost_connection_is_the_last_answer() -> None:
    far = MemoryProvider("a")
    sources = sources_at(far, DATA[:3])
    far.faults.cut_after = 50_000
    with reading(far, sources) as made:
        assert isinstance(taken(made, 1)[0], Unreachable)
        assert made.take(0.05) is None


def test_a_door_that_does_not_open_is_unreachable_whatever_the_channel_raises() -> None:
    far = MemoryProvider("a")
    sources = sources_at(far)

    def broken(url: str) -> MemoryChannel:
        raise ZeroDivisionError

    made = Engine(broken).read_ahead(sources, acting_for=None, window=1)
    assert made is not None
    assert isinstance(made.take(5), Unreachable)


def test_no_more_than_the_window_and_one_is_held() -> None:
    far = MemoryProvider("a")
    sources = sources_at(far)
    with reading(far, sources, window=250_000) as made:
        made_full = lambda: made._waiting  # noqa: E731
        _until(made_full)
        assert far.gets == 3, "two fit the window, the third was on its way"
        assert made.silent == 0.0, "who is kept waiting is not silent"
        assert taken(made, len(DATA)) == DATA


def test_closing_ends_a_reader_that_waits_for_room() -> None:
    far = MemoryProvider("a")
    with reading(far, sources_at(far), window=1) as made:
        _until(lambda: made._waiting)


def test_closing_leaves_the_batch_in_mid_object() -> None:
    left, go = threading.Event(), threading.Event()

    class Slow(MemoryChannel):
        @contextmanager
        def get_many(self, wants: Sequence[Want]) -> Iterator[Iterator[Got]]:
            def blocks() -> Iterator[bytes]:
                yield DATA[0][:10]
                assert go.wait(5)
                yield DATA[0][10:20]

            try:
                yield iter([Got(want, blocks()) for want in wants])
            finally:
                left.set()

    far = MemoryProvider("a")
    sources = sources_at(far, DATA[:2])
    made = Engine(lambda url: Slow(far)).read_ahead(sources, acting_for=None, window=10)
    assert made is not None
    made.close()
    go.set()
    assert left.wait(5)
    assert made.take(0.05) is None


def test_a_door_given_up_rests_and_the_next_one_is_asked() -> None:
    far = [MemoryProvider("a", timeout=0.2), MemoryProvider("b")]
    spec = [p.add(DATA[0]) for p in far][0]
    doors = tuple(Doors(p.name, (p.door,)) for p in far)
    source = Source(doors, spec.key, spec.size, spec.sha256)
    far[0].faults.silent = True
    engine = Engine(opener(*far))
    first = engine.read_ahead([source], acting_for=None, window=10)
    assert first is not None and first.se == "a"
    first.give_up()
    second = engine.read_ahead([source], acting_for=None, window=10)
    assert second is not None and second.se == "b"
    assert taken(second, 1) == [DATA[0]]
    second.give_up()
    assert engine.read_ahead([source], acting_for=None, window=10) is None


@pytest.mark.parametrize("window", [1, 150_000, 10_000_000])
def test_every_object_is_answered_once(window: int) -> None:
    far = MemoryProvider("a")
    with reading(far, sources_at(far), window=window) as made:
        assert taken(made, len(DATA)) == DATA
    assert far.gets == len(DATA)


def _until(condition: object, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.002)
