"""The route leaves a door that does not answer, comes back to it, and says so once."""

from __future__ import annotations

import pytest

from storage_provider.transfer.route import (
    FIRST_REST,
    HOPE_WITHIN,
    LONGEST_REST,
    DoorChange,
    Doors,
    Route,
    by_preference,
)

SE = Doors("se1", ("a://1", "b://1", "c://1"))
ONLY = Doors("se1", ("a://1",))


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Line:
    """A route with a clock that a test moves."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.changes: list[DoorChange] = []
        self.route = Route(clock=self.clock, on_change=self.changes.append)

    def failed(self, url: str, *, doors: Doors = SE, began: float | None = None, why: str = "refused") -> None:
        self.clock.now += 0.001
        self.route.failed(doors, url, why, began=self.clock.now if began is None else began)

    def worked(self, url: str, *, doors: Doors = SE, began: float | None = None) -> None:
        self.clock.now += 0.001
        self.route.worked(doors, url, began=self.clock.now if began is None else began)


@pytest.fixture
def line() -> Line:
    return Line()


def test_falls_through_and_comes_back_by_a_probe_only(line: Line) -> None:
    assert line.route.order(SE) == SE.urls
    line.failed("a://1")
    assert line.route.order(SE) == ("b://1", "c://1", "a://1")
    assert not line.route.rests(SE) and line.route.due_probe(SE) is None
    line.clock.now += FIRST_REST + 0.1
    assert line.route.order(SE)[0] == "b://1"
    assert line.route.due_probe(SE) == "a://1"
    assert line.route.due_probe(SE) is None  # one at a time
    line.worked("a://1")
    assert line.route.order(SE) == SE.urls


def test_a_probe_that_fails_lets_the_door_rest_longer(line: Line) -> None:
    line.failed("a://1")
    for rest in (FIRST_REST, 2 * FIRST_REST, 4 * FIRST_REST):
        line.clock.now += rest - 0.1
        assert line.route.due_probe(SE) is None
        line.clock.now += 0.2
        assert line.route.due_probe(SE) == "a://1"
        line.failed("a://1")


def test_without_a_door_that_works_real_work_tries_the_one_that_rested_longest(line: Line) -> None:
    for url in ("b://1", "a://1", "c://1"):
        line.failed(url)
    assert line.route.rests(SE) and line.route.due_probe(SE) is None
    assert line.route.order(SE) == ("b://1", "a://1", "c://1")
    line.clock.now += LONGEST_REST
    assert line.route.order(SE) == SE.urls  # all rested: as preferred


def test_rests_double_up_to_a_minute(line: Line) -> None:
    for _ in range(40):
        line.failed("a://1", doors=ONLY)
    line.clock.now += LONGEST_REST - 0.1
    assert line.route.rests(ONLY)
    line.clock.now += 0.2
    assert not line.route.rests(ONLY)


def test_hope_is_never_far(line: Line) -> None:
    assert line.route.back_in(ONLY) == 0.0
    for _ in range(10):
        line.failed("a://1", doors=ONLY)
    assert HOPE_WITHIN - 0.1 < line.route.back_in(ONLY) <= HOPE_WITHIN


def test_the_last_failure_speaks_for_all_doors_of_a_frozen_host(line: Line) -> None:
    for url in SE.urls:
        began = line.clock.now
        line.clock.now += 10.0
        assert line.route.back_in(SE) == 0.0  # there is a door yet to ask
        line.route.failed(SE, url, "silent", began=began, silent=10.0)
    assert line.route.rests(SE)  # though the first door's rest is over
    assert line.route.order(SE)[0] == "a://1"
    assert line.route.back_in(SE) == HOPE_WITHIN
    line.clock.now += HOPE_WITHIN
    assert line.route.back_in(SE) == 0.0 and not line.route.rests(SE)


def test_calls_that_fail_together_count_once(line: Line) -> None:
    began = line.clock.now
    for _ in range(8):
        line.failed("a://1", doors=ONLY, began=began)
    line.clock.now += FIRST_REST
    assert not line.route.rests(ONLY)


def test_an_answer_from_before_the_failure_says_nothing(line: Line) -> None:
    began = line.clock.now
    line.failed("a://1")
    line.worked("a://1", began=began)
    assert line.route.order(SE)[0] == "b://1"
    line.clock.now += FIRST_REST
    assert line.route.due_probe(SE) == "a://1"
    line.worked("a://1", began=began)
    assert line.route.due_probe(SE) == "a://1"  # and no probe is thought to be out for ever


def test_health_tells_every_door(line: Line) -> None:
    assert [(door.reachable, door.in_use) for door in line.route.health(SE)] == [(True, False)] * 3
    line.failed("a://1", why="connection refused")
    line.worked("b://1")
    first, second, third = line.route.health(SE)
    assert (first.url, first.reachable, first.last_error) == ("a://1", False, "connection refused")
    assert second.reachable and second.in_use and second.last_ok is not None
    assert third.last_ok is None and not third.in_use
    line.failed("b://1")
    assert not any(door.in_use for door in line.route.health(SE))


def test_a_change_is_told_once_and_so_is_the_way_back(line: Line) -> None:
    line.worked("a://1")
    line.failed("a://1", why="connection refused")
    assert not line.changes  # nothing is there yet to change to
    for _ in range(5):
        line.worked("b://1")
    assert line.changes.pop() == DoorChange("se1", "a://1", "b://1", "connection refused", back=False)
    line.worked("a://1")
    line.worked("a://1")
    why = "the preferred door answers again"
    assert line.changes.pop() == DoorChange("se1", "b://1", "a://1", why, back=True)
    line.worked("x://1", doors=Doors("se1", ("x://1",)))
    assert line.changes.pop() == DoorChange("se1", "a://1", "x://1", "the element has other doors", back=True)
    assert not line.changes


def test_doors_sort_by_their_kind() -> None:
    doors = ("https://a/", "sftp://b/", "x://c/", "gsiftp://d/", "sftp://a/", "https://a/")
    assert by_preference(doors) == ("gsiftp://d/", "sftp://b/", "sftp://a/", "https://a/", "x://c/")
