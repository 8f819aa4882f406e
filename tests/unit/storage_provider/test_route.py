"""The route leaves a door that does not answer, and comes back to it."""

from __future__ import annotations

from storage_provider.transfer.route import FIRST_REST, LONGEST_REST, Doors, Route

SE = Doors("se1", ("a://1", "b://1"))


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_falls_through_and_comes_back() -> None:
    clock = Clock()
    route = Route(clock=clock)
    assert route.order(SE) == ("a://1", "b://1")
    route.failed("se1", "a://1", "refused")
    assert route.order(SE) == ("b://1", "a://1")
    assert not route.rests(SE)
    clock.now += FIRST_REST + 0.1
    assert route.order(SE)[0] == "a://1"


def test_rests_double_up_to_a_minute() -> None:
    clock = Clock()
    route = Route(clock=clock)
    only = Doors("se1", ("a://1",))
    for _ in range(40):
        route.failed("se1", "a://1", "refused")
    clock.now += LONGEST_REST - 0.1
    assert route.rests(only)
    clock.now += 0.2
    assert not route.rests(only)


def test_health_tells_the_best_door() -> None:
    route = Route()
    assert route.health() == {}
    route.failed("se1", "a://1", "connection refused")
    assert route.health()["se1"].reachable is False
    assert route.health()["se1"].last_error == "connection refused"
    route.worked("se1", "b://1")
    health = route.health()["se1"]
    assert health.reachable and health.door == "b://1" and health.last_ok is not None
