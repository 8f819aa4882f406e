"""How copying yields to receiving: wholly to a fast stream, for a bounded time and size, never where it is in need."""

from __future__ import annotations

import pytest

from dgis.pace import HOLD_BYTES, HOLD_SECONDS, Arrivals, Pressure, allowed

MIB = 1024 * 1024
FAST = Arrivals(0.2, 140, 70 * MIB)
FRESH = Pressure(0.1, 100 * MIB)


def share(arrivals: Arrivals, pressure: Pressure = FRESH, *, spool_limit: int | None = None) -> int:
    return allowed(arrivals, pressure, parallel=4, spool_limit=spool_limit)


@pytest.mark.parametrize(
    ("arrivals", "streaming"),
    [
        (FAST, True),
        (Arrivals(0.2, 1, 50 * MIB), True),  # few large ones
        (Arrivals(0.2, 15, 7 * MIB), False),  # a sender that stalls, or an ordinary modality
        (Arrivals(0.2, 0, 0), False),
        (Arrivals(0.001, 2, MIB), False),  # a moment after a release says little of a rate
        (Arrivals(0.001, 30, MIB), True),
    ],
)
def test_copying_steps_back_for_a_fast_stream_only(arrivals: Arrivals, streaming: bool) -> None:
    assert share(arrivals) == (0 if streaming else 4)


def test_an_endless_stream_does_not_hold_up_copies_for_longer_than_the_bound() -> None:
    assert share(FAST, Pressure(HOLD_SECONDS - 0.1, MIB)) == 0
    assert share(FAST, Pressure(HOLD_SECONDS, MIB)) == 1
    assert share(FAST, Pressure(1.0, HOLD_BYTES)) == 1
    assert share(FAST, Pressure(16.0, MIB)) == 4


def test_a_spool_that_is_half_full_is_emptied_as_fast_as_it_goes() -> None:
    assert share(FAST, Pressure(0.1, 60 * MIB), spool_limit=100 * MIB) == 4
    assert share(FAST, Pressure(0.1, 40 * MIB), spool_limit=100 * MIB) == 0
