"""Many stores at once over doubles: each answered once, by the next door where one is silent; read ahead a little."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from storage_provider.channel import Put, Stored
from storage_provider.errors import Corrupt, Denied, DoorURL, LocalFault, StorageError, Unreachable, Unsupported
from storage_provider.transfer.engine import Doors, Engine
from storage_provider.transfer.route import DoorChange, Route
from tests.conformance.memory_channel import Faults, MemoryChannel, MemoryProvider, opener, spec_of

COUNT = 40


class Element:
    """One storage element behind a preferred door and another; files to put there."""

    def __init__(self, tmp_path: Path) -> None:
        self.tmp = tmp_path
        self.preferred, self.other = MemoryProvider("preferred"), MemoryProvider("other")
        self.doors = Doors("se", (self.preferred.door, self.other.door))
        self.changes: list[DoorChange] = []
        self.engine = Engine(opener(self.preferred, self.other), route=Route(on_change=self.changes.append))
        self.read = 0

    def puts(self, count: int = COUNT) -> list[Put]:
        return [self.put(random.Random(n).randbytes(2000 + n)) for n in range(count)]

    def put(self, data: bytes) -> Put:
        spec = spec_of(data)
        path = self.tmp / spec.sha256
        path.write_bytes(data + b"trailing record")
        return Put(spec, path)

    def counted(self, puts: Iterable[Put]) -> Iterator[Put]:
        for put in puts:
            self.read += 1
            yield put

    def store(self, puts: Iterable[Put], *doors: str) -> dict[str, Stored | StorageError]:
        to = Doors("se", doors) if doors else self.doors
        outcomes = list(self.engine.store_many(self.counted(puts), to))
        found = {put.spec.key: result for put, result in outcomes}
        assert len(found) == len(outcomes), "no put is answered twice"
        return found


@pytest.fixture
def element(tmp_path: Path) -> Element:
    return Element(tmp_path)


def test_every_put_is_stored_and_answered_once(element: Element) -> None:
    puts = element.puts()
    outcomes = element.store(puts)
    assert {key for key, result in outcomes.items() if isinstance(result, Stored)} == {p.spec.key for p in puts}
    assert {data[0] for data in element.preferred.objects.values()} == {
        put.path.read_bytes()[: put.spec.size] for put in puts
    }
    assert not element.other.objects
    assert element.store([]) == {}


def test_a_door_that_does_not_answer_leaves_its_puts_to_the_next(element: Element) -> None:
    element.preferred.faults = Faults(unreachable=True)
    outcomes = element.store(element.puts())
    assert len(outcomes) == COUNT and all(isinstance(result, Stored) for result in outcomes.values())
    assert len(element.other.objects) == COUNT
    assert [(change.was, change.now) for change in element.changes] == [element.doors.urls]
    assert [door.reachable for door in element.engine.health(element.doors)] == [False, True]


def test_a_door_that_dies_within_a_batch_is_left_and_nothing_is_lost(element: Element) -> None:
    puts = element.puts()

    def dying() -> Iterator[Put]:
        for number, put in enumerate(puts):
            if number == COUNT // 2:
                element.preferred.faults = Faults(unreachable=True)
            yield put

    outcomes = element.store(dying())
    assert all(isinstance(result, Stored) for result in outcomes.values()) and len(outcomes) == COUNT
    assert len(element.preferred.objects | element.other.objects) == COUNT
    assert element.preferred.objects and element.other.objects


def test_what_a_door_refuses_is_final_and_the_others_go_on(element: Element) -> None:
    element.preferred.faults = Faults(denied=True)
    outcomes = element.store(element.puts(3))
    assert [type(result) for result in outcomes.values()] == [Denied] * 3
    assert not element.other.objects


def test_a_bad_file_is_its_own_fault_and_no_door_hears_of_it(element: Element) -> None:
    puts = element.puts(6)
    puts[1].path.unlink()
    puts[4].path.write_bytes(b"short")
    outcomes = element.store(puts)
    bad = {puts[1].spec.key, puts[4].spec.key}
    assert {key for key, result in outcomes.items() if isinstance(result, LocalFault)} == bad
    assert len(element.preferred.objects) == 4 and not element.other.objects
    only_bad = element.store([puts[1]])
    assert [type(result) for result in only_bad.values()] == [LocalFault]


def test_an_element_that_answers_nowhere_fails_all_soon(element: Element) -> None:
    for far in (element.preferred, element.other):
        far.faults = Faults(unreachable=True)
    calls = 0
    real = MemoryChannel.put

    def counting(self: MemoryChannel, *arguments: object, **options: object) -> Stored:
        nonlocal calls
        calls += 1
        return real(self, *arguments, **options)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemoryChannel, "put", counting)
        outcomes = element.store(element.puts(200))
    assert len(outcomes) == 200 and all(isinstance(result, Unreachable) for result in outcomes.values())
    assert calls < 60, "those that nobody had asked for yet are not tried one by one"


def test_one_cut_at_the_only_door_does_not_end_the_others(element: Element) -> None:
    puts = element.puts()
    big = element.put(random.Random(99).randbytes(50_000))
    element.preferred.faults = Faults(cut_after=10_000)
    outcomes = element.store([*puts[:20], big, *puts[20:]], element.preferred.door)
    assert isinstance(outcomes.pop(big.spec.key), Unreachable)
    assert len(outcomes) == COUNT and all(isinstance(result, Stored) for result in outcomes.values())


def test_an_element_without_doors_is_unreachable(element: Element) -> None:
    element.doors = Doors("se", ())
    assert [type(result) for result in element.store(element.puts(3)).values()] == [Unreachable] * 3


def test_a_door_that_no_channel_speaks_is_passed_over(element: Element) -> None:
    known = opener(element.other)

    def open_channel(url: str) -> MemoryChannel:
        if url == element.preferred.door:
            raise DoorURL("no channel for that", door=url)
        return known(url)

    element.engine = Engine(open_channel)
    assert all(isinstance(result, Stored) for result in element.store(element.puts(5)).values())
    assert len(element.other.objects) == 5


@pytest.mark.parametrize("error", [Unsupported("no"), Unreachable("cut")], ids=["cannot", "raises"])
def test_a_channel_that_cannot_or_breaks_leaves_all_to_the_next(element: Element, error: StorageError) -> None:
    known = opener(element.preferred, element.other)

    class Odd(MemoryChannel):
        def put_many(self, puts: Iterable[Put]) -> Iterator[tuple[Put, Stored | StorageError]]:
            for put in puts:
                if isinstance(error, Unreachable):
                    raise error
                yield put, error

    element.engine = Engine(lambda url: Odd(element.preferred) if url == element.preferred.door else known(url))
    assert all(isinstance(result, Stored) for result in element.store(element.puts(9)).values())
    assert len(element.other.objects) == 9


def test_something_else_at_the_far_side_is_corrupt(element: Element) -> None:
    class Wrong(MemoryChannel):
        def put_many(self, puts: Iterable[Put]) -> Iterator[tuple[Put, Stored | StorageError]]:
            for put, result in super().put_many(puts):
                assert isinstance(result, Stored)
                yield put, replace(result, size=result.size + 1)

    element.engine = Engine(lambda url: Wrong(element.preferred))
    assert [type(result) for result in element.store(element.puts(2)).values()] == [Corrupt] * 2


def test_closing_stops_the_rest_and_reading_ahead_is_bounded(element: Element) -> None:
    outcomes = element.engine.store_many(element.counted(element.puts(200)), element.doors)
    next(outcomes)
    assert element.read < 40
    outcomes.close()  # type: ignore[attr-defined]
    assert len(element.preferred.objects) < 40


def test_the_preferred_door_is_probed_and_used_again(element: Element) -> None:
    element.preferred.faults = Faults(unreachable=True)
    element.store(element.puts(4))
    element.preferred.faults = Faults()
    deadline = time.monotonic() + 5
    puts = iter(element.puts(500))
    while not element.preferred.objects:
        assert time.monotonic() < deadline
        element.store([next(puts)])
        time.sleep(0.05)
    assert [(change.now, change.back) for change in element.changes] == [
        (element.other.door, False),
        (element.preferred.door, True),
    ]
