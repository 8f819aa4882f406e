"""Which door of a storage element to use: the first that works, back to the preferred one when it is back.

A door that did not answer rests for a while (doubling up to a minute). While another door of its element works, real
work leaves it alone: once its rest is over a probe asks it (`due_probe`), and only an answer brings it back. When no
door works they are tried again by real work, the one that has rested longest first. A refusal or corrupt data is no
reason to leave a door.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from urllib.parse import urlsplit

SCHEMES = ("gsiftp", "sftp", "https")
"""The kinds of door, best first: GridFTP moves many objects over few connections, SFTP passes most firewalls."""

FIRST_REST = 2.0
LONGEST_REST = 60.0
HOPE_WITHIN = 15.0


@dataclass(frozen=True, slots=True)
class Doors:
    """A storage element's name and its door URLs in order of preference."""

    se: str
    urls: tuple[str, ...]


def by_preference(doors: Iterable[str]) -> tuple[str, ...]:
    """Sort doors by SCHEMES, those of one kind as they are given; each once."""

    def rank(url: str) -> int:
        scheme = urlsplit(url).scheme
        return SCHEMES.index(scheme) if scheme in SCHEMES else len(SCHEMES)

    return tuple(sorted(dict.fromkeys(doors), key=rank))


@dataclass(frozen=True, slots=True)
class DoorHealth:
    """What the last calls to a door showed; `reachable` is True as long as nothing says otherwise.

    `in_use`: real work of its element goes by this door now.
    """

    url: str
    reachable: bool
    in_use: bool
    last_error: str | None = None
    last_ok: datetime | None = None


@dataclass(frozen=True, slots=True)
class DoorChange:
    """Work of an element goes by another door from now on; `back`: a preferred one, since that answers again."""

    se: str
    was: str
    now: str
    why: str
    back: bool


def _unheard(change: DoorChange) -> None:
    """Be the default of `on_change`."""


@dataclass(frozen=True, slots=True)
class _Door:
    failures: int = 0
    rests_until: float = 0.0
    failed_at: float = float("-inf")
    probing: bool = False
    last_error: str | None = None
    last_ok: datetime | None = None


class Route:
    """Remembers what failed and why; thread-safe; never waits. `on_change` hears once of each change of door."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[DoorChange], None] = _unheard,
    ) -> None:
        self.clock = clock
        self._on_change = on_change
        self._lock = threading.Lock()
        self._doors: dict[tuple[str, str], _Door] = {}
        self._in_use: dict[str, str] = {}

    def order(self, doors: Doors) -> tuple[str, ...]:
        """Return the doors to try: those that work in order of preference, then the others, longest rested first."""
        with self._lock:
            return self._order(doors)

    def rests(self, doors: Doors) -> bool:
        """Tell whether no door of the element works, and the last that failed is resting (ask others first)."""
        return self._back(doors, hope=LONGEST_REST) > 0

    def back_in(self, doors: Doors) -> float:
        """Return the seconds until it makes sense to ask an element again for which there is no other; 0: now.

        At most HOPE_WITHIN after its last failure, however long its doors rest while others can be asked. When no door
        works, the last failure speaks for all: what froze a host freezes each of its doors.
        """
        return self._back(doors, hope=HOPE_WITHIN)

    def due_probe(self, doors: Doors) -> str | None:
        """Return a door that is preferred to the one in use, failed, and has rested; it then counts as being probed.

        The caller asks it something cheap and tells `worked` or `failed`. None: there is nothing to probe now.
        """
        now = self.clock()
        with self._lock:
            order = self._order(doors)
            if not order or self._door(doors.se, order[0]).failures:
                return None
            for url in doors.urls[: doors.urls.index(order[0])]:
                door = self._door(doors.se, url)
                if door.rests_until <= now and not door.probing:
                    self._doors[doors.se, url] = replace(door, probing=True)
                    return url
        return None

    def worked(self, doors: Doors, url: str, *, began: float) -> None:
        """Note that a door answered a call that began then; one that began before the door failed says nothing new."""
        with self._lock:
            door = self._door(doors.se, url)
            if door.failures and began < door.failed_at:
                self._doors[doors.se, url] = replace(door, probing=False)
                return
            self._doors[doors.se, url] = _Door(last_ok=datetime.now(UTC))
            if self._order(doors)[0] == url:
                self._use(doors, url)

    def failed(self, doors: Doors, url: str, error: str, *, began: float, silent: float = 0.0) -> None:
        """Note that a door did not answer a call that began then; it rests for a while.

        Calls that were under way together fail together: they count once. `silent`: seconds without a byte at the end.
        """
        with self._lock:
            door, now = self._door(doors.se, url), self.clock()
            if door.failures and began < door.failed_at:
                self._doors[doors.se, url] = replace(door, last_error=error, probing=False)
                return
            rest = min(FIRST_REST * 2.0**door.failures, LONGEST_REST)
            if silent > FIRST_REST:  # the next object must not wait in silence again
                rest = max(rest, HOPE_WITHIN)
            self._doors[doors.se, url] = _Door(
                min(door.failures + 1, 16), now + rest, now, last_error=error, last_ok=door.last_ok
            )

    def health(self, doors: Doors) -> tuple[DoorHealth, ...]:
        """Return what every door of an element showed last, in order of preference."""
        with self._lock:
            states = [(url, self._door(doors.se, url)) for url in doors.urls]
            in_use = self._in_use.get(doors.se)
        return tuple(
            DoorHealth(url, not state.failures, url == in_use and not state.failures, state.last_error, state.last_ok)
            for url, state in states
        )

    def _back(self, doors: Doors, *, hope: float) -> float:
        now = self.clock()
        with self._lock:
            states = [self._door(doors.se, url) for url in doors.urls]
        if not all(state.failures for state in states):
            return 0.0
        last = max(states, key=lambda state: state.failed_at, default=_Door())
        return max(0.0, min(last.rests_until, last.failed_at + hope) - now)

    def _door(self, se: str, url: str) -> _Door:
        return self._doors.get((se, url), _Door())

    def _order(self, doors: Doors) -> tuple[str, ...]:
        now = self.clock()
        states = [(url, self._door(doors.se, url)) for url in doors.urls]
        working = [url for url, state in states if not state.failures]
        others = sorted((max(s.rests_until, now), place, url) for place, (url, s) in enumerate(states) if s.failures)
        return (*working, *(url for _, _, url in others))

    def _use(self, doors: Doors, url: str) -> None:
        """Tell, once, that work goes by another door from now on, and why."""
        was = self._in_use.get(doors.se, doors.urls[0])
        self._in_use[doors.se] = url
        if url == was:
            return
        failed = self._door(doors.se, was)
        if was not in doors.urls:
            why, back = "the element has other doors", True
        elif failed.failures:
            why, back = failed.last_error or "no answer", False
        else:
            why, back = "the preferred door answers again", True
        self._on_change(DoorChange(doors.se, was, url, why, back))
