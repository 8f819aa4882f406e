"""Small pure rooms of the worker: placement, back-off, element health, room in the spool."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from catalog.errors import CatalogUnavailable
from catalog.wire import StorageElement
from dgis.backoff import Backoff, delay
from dgis.board import ErrorList
from dgis.elements import Elements
from dgis.errors import SpoolFull
from dgis.placement import candidates
from dgis.quota import SpoolRoom
from storage_provider.channel import Space
from storage_provider.errors import Denied, NoSpace, Unreachable
from tests.helpers.doubles import MemoryCatalog, element

A1, A2, B1, C1 = element("a1"), element("a2"), element("b1", "b"), element("c1", "c")


class Clock:
    """Time that stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def names(holding: set[str], sites: set[str], load: dict[str, float] | None = None) -> list[str]:
    found = candidates((A1, A2, B1, C1), holding=holding, home="a", load=load or {}, sites=sites)
    return [one.name for one in found]


def test_placement_home_first_then_other_sites_then_least_loaded() -> None:
    assert names(set(), set()) == ["a1", "a2", "b1", "c1"]
    assert names(set(), set(), {"a1": 9.0}) == ["a2", "a1", "b1", "c1"]
    assert names({"a1"}, {"a"}) == ["b1", "c1", "a2"]
    assert names({"a1"}, {"a"}, {"b1": 1.0}) == ["c1", "b1", "a2"]
    assert names({"a1", "b1", "c1"}, {"a", "b", "c"}) == ["a2"]
    assert names({"a1", "a2", "b1", "c1"}, {"a", "b", "c"}) == []


def test_backoff_doubles_is_bounded_and_forgets() -> None:
    clock = Clock()
    backoff = Backoff(first=1.0, longest=5.0, clock=clock)
    assert backoff.due
    waits = []
    for _ in range(8):
        backoff.failed()
        assert not backoff.due
        waits.append(backoff._until - clock.now)
    assert waits[0] <= 1.2 and all(wait <= 6.0 for wait in waits) and waits[-1] >= 4.0
    backoff.worked()
    assert backoff.due
    assert delay(10_000, first=1.0, longest=5.0) <= 6.0


def test_an_element_rests_after_a_failure_until_a_probe_shows_it_well() -> None:
    clock = Clock()
    elements = Elements(MemoryCatalog(A1, B1, element("d1", state="draining")), clock=clock)
    elements.refresh()
    assert [e.name for e in elements.usable()] == ["a1", "b1"]
    before = elements.generation
    elements.failed("a1", Unreachable("refused"))
    assert [e.name for e in elements.usable()] == ["b1"]
    assert elements.unreachable() == ("a1",)
    clock.now += 10
    assert [e.name for e in elements.usable()] == ["b1"], "time alone does not make it well"
    assert "a1" in [d.se for d in elements.due_probes(idle=1e9)]
    elements.worked("a1", space=Space(10, 5, 5))
    assert [e.name for e in elements.usable()] == ["a1", "b1"]
    assert elements.generation > before
    assert elements.unreachable() == ()


@pytest.mark.parametrize("error", [NoSpace("quota"), Denied("no rule")])
def test_a_full_or_refusing_element_is_reachable_and_rests_longer(error: NoSpace | Denied) -> None:
    clock = Clock()
    elements = Elements(MemoryCatalog(A1), clock=clock)
    elements.refresh()
    elements.failed("a1", error)
    assert elements.unreachable() == () and elements.usable() == ()
    clock.now += 10
    assert elements.due_probes(idle=1e9) == ()
    clock.now += 30
    assert [d.se for d in elements.due_probes(idle=1e9)] == ["a1"]


def test_the_list_is_kept_when_the_catalog_does_not_answer() -> None:
    clock = Clock()
    catalog = MemoryCatalog(A1)
    elements = Elements(catalog, clock=clock)
    catalog.down = True
    with pytest.raises(CatalogUnavailable):
        elements.refresh_if_older(10)
    catalog.down = False
    clock.now += 11
    elements.refresh_if_older(10)
    catalog.down = True
    clock.now += 11
    elements.refresh_if_older(10)
    assert elements.doors("a1") is not None and elements.doors("nobody") is None


def test_one_thread_at_a_time_waits_for_a_newer_list() -> None:
    clock, asked, answer = Clock(), threading.Event(), threading.Event()

    class Hanging(MemoryCatalog):
        def storage_elements(self) -> list[StorageElement]:
            asked.set()
            assert answer.wait(10)
            return super().storage_elements()

    catalog = Hanging(A1)
    elements = Elements(catalog, clock=clock)
    waiting = threading.Thread(target=elements.freshen, args=(2.0,))
    waiting.start()
    assert asked.wait(5)
    clock.now += 3
    elements.freshen(2.0)  # goes on at once with what is known
    assert elements.known() == ()
    answer.set()
    waiting.join(5)
    assert elements.known() == (A1,)
    catalog.elements = [A2]
    elements.freshen(2.0)
    assert elements.known() == (A1,)  # new enough
    clock.now += 2
    catalog.down = True
    elements.freshen(2.0)  # says nothing
    catalog.down = False
    clock.now += 2
    elements.freshen(2.0)
    assert elements.known() == (A2,)


def test_errors_are_bounded_and_repeated_ones_are_counted() -> None:
    errors = ErrorList()
    for n in range(50):
        errors.add("copy", f"error {n}")
    errors.add("copy", "error 49")
    assert len(errors.all()) == 20
    assert (errors.all()[-1].text, errors.all()[-1].count) == ("error 49", 2)


def test_room_is_scanned_now_and_then_and_given_back(tmp_path: Path) -> None:
    clock = Clock()
    (tmp_path / "old").write_bytes(bytes(400))
    room = SpoolRoom(tmp_path, limit_bytes=1000, reserve_bytes=0, clock=clock)
    room.take(500)
    with pytest.raises(SpoolFull):
        room.take(200)
    room.give_back(500)
    room.take(200)
    (tmp_path / "other process").write_bytes(bytes(900))
    room.take(100)
    clock.now += 3
    with pytest.raises(SpoolFull):
        room.take(100)
