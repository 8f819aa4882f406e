"""Which door of a storage element to use: the first that works, back to the preferred one when it is back.

A door that did not answer rests for a while (doubling up to a minute) and is then tried again by real work. A refusal
or corrupt data is no reason to leave a door.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

FIRST_REST = 2.0
LONGEST_REST = 60.0
HOPE_WITHIN = 15.0


@dataclass(frozen=True, slots=True)
class Doors:
    """A storage element's name and its door URLs in order of preference."""

    se: str
    urls: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DoorHealth:
    """What the last calls to a storage element showed; `reachable` is True as long as nothing says otherwise."""

    reachable: bool
    last_error: str | None = None
    last_ok: datetime | None = None
    door: str | None = None


@dataclass(frozen=True, slots=True)
class _Door:
    failures: int = 0
    rests_until: float = 0.0
    failed_at: float = 0.0
    last_error: str | None = None
    last_ok: datetime | None = None


class Route:
    """Remembers what failed and why; thread-safe; never waits."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._doors: dict[tuple[str, str], _Door] = {}

    def order(self, doors: Doors) -> tuple[str, ...]:
        """Return the doors to try: those not resting in preference order, then the others, soonest back first."""
        now = self._clock()
        with self._lock:
            states = [(url, self._doors.get((doors.se, url), _Door())) for url in doors.urls]
        awake = [url for url, state in states if state.rests_until <= now]
        resting = sorted((state.rests_until, url) for url, state in states if state.rests_until > now)
        return (*awake, *(url for _, url in resting))

    def rests(self, doors: Doors) -> bool:
        """Tell whether every door of the element is resting (ask others first)."""
        now = self._clock()
        with self._lock:
            return all(self._doors.get((doors.se, url), _Door()).rests_until > now for url in doors.urls)

    def back_in(self, doors: Doors) -> float:
        """Return the seconds until it makes sense to ask an element again for which there is no other; 0: now.

        At most HOPE_WITHIN after its last failure, however long its doors rest while others can be asked.
        """
        now = self._clock()
        with self._lock:
            states = [self._doors.get((doors.se, url), _Door()) for url in doors.urls]
        waits = (min(state.rests_until, state.failed_at + HOPE_WITHIN) - now for state in states)
        return max(0.0, min(waits, default=0.0))

    def worked(self, se: str, url: str) -> None:
        """Note that a door answered."""
        with self._lock:
            self._doors[se, url] = _Door(last_ok=datetime.now(UTC))

    def failed(self, se: str, url: str, error: str) -> None:
        """Note that a door did not answer; it rests for a while."""
        with self._lock:
            door = self._doors.get((se, url), _Door())
            rest = min(FIRST_REST * 2.0**door.failures, LONGEST_REST)
            self._doors[se, url] = replace(
                door,
                failures=min(door.failures + 1, 16),
                rests_until=self._clock() + rest,
                failed_at=self._clock(),
                last_error=error,
            )

    def health(self) -> dict[str, DoorHealth]:
        """Return for every element that was ever asked what its best door showed last."""
        with self._lock:
            doors = dict(self._doors)
        found: dict[str, DoorHealth] = {}
        for (se, url), door in doors.items():
            health = DoorHealth(door.failures == 0, door.last_error, door.last_ok, url)
            known = found.get(se)
            if known is None or (health.reachable and not known.reachable):
                found[se] = health
        return found
