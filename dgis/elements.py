"""The storage elements as this process sees them: which exist, through which doors, and which answer now.

The list is the catalog's, kept when the catalog does not answer. An element that fails is left alone until a probe
shows it well again, with a back-off; real work never waits for a sick one.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from catalog.errors import CatalogError
from catalog.wire import StorageElement
from storage_provider.channel import Space
from storage_provider.errors import NoSpace, StorageError, Unreachable
from storage_provider.transfer.route import Doors

_FIRST_REST, _LONGEST_REST = 0.5, 5.0
_FULL_REST = 30.0
_NEAR_SECONDS = 30.0
_FRESHEN_WAIT = 1.0


class ElementSource(Protocol):
    """The part of the catalog client that lists storage elements."""

    def storage_elements(self) -> Iterable[StorageElement]:
        """Return all storage elements; raises CatalogError."""


@dataclass(frozen=True, slots=True)
class ElementState:
    """One storage element as the status board shows it."""

    element: StorageElement
    reachable: bool
    usable: bool
    last_error: str | None
    last_ok: datetime | None
    space: Space | None
    failures: int


@dataclass(slots=True)
class _Health:
    failures: int = 0
    rests_until: float = 0.0
    unreachable: bool = False
    last_error: str | None = None
    last_ok: datetime | None = None
    space: Space | None = None
    probed_at: float = float("-inf")


class Elements:
    """Thread-safe; only what is named for refreshing asks the network."""

    def __init__(self, catalog: ElementSource, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`catalog` is asked by `refresh` only."""
        self._catalog = catalog
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[str, StorageElement] = {}
        self._health: dict[str, _Health] = {}
        self._generation = 0
        self._refreshed_at = float("-inf")
        self._refreshing = threading.Lock()

    def refresh(self) -> None:
        """Ask the catalog for the list. Raises CatalogError; the list known before stays."""
        found = {element.name: element for element in self._catalog.storage_elements()}
        with self._lock:
            if found != self._known:
                self._generation += 1
            self._known = found
            self._refreshed_at = self._clock()

    def refresh_if_older(self, seconds: float) -> None:
        """Refresh when the last refresh is older than this. Raises CatalogError only when nothing is known yet."""
        with self._lock:
            if self._clock() - self._refreshed_at < seconds:
                return
            self._refreshed_at = self._clock()
            known = bool(self._known)
        try:
            self.refresh()
        except CatalogError:
            if not known:
                raise

    def freshen(self, seconds: float) -> None:
        """Refresh when the last refresh is older than this; never raises.

        Waits a moment at most, then goes on with what is known: a catalog that hangs holds up nobody.
        """
        with self._lock:
            if self._clock() - self._refreshed_at < seconds:
                return
        if self._refreshing.acquire(blocking=False):
            answered = threading.Event()
            threading.Thread(target=self._freshen, args=(seconds, answered), name="freshen", daemon=True).start()
            answered.wait(_FRESHEN_WAIT)

    def _freshen(self, seconds: float, answered: threading.Event) -> None:
        try:
            with contextlib.suppress(CatalogError):
                self.refresh_if_older(seconds)
        finally:
            self._refreshing.release()
            answered.set()

    @property
    def generation(self) -> int:
        """Grows whenever an element may have become usable: work that found none should look again."""
        with self._lock:
            return self._generation

    def known(self) -> tuple[StorageElement, ...]:
        """Return all elements, by name."""
        with self._lock:
            return tuple(self._known[name] for name in sorted(self._known))

    def doors(self, name: str) -> Doors | None:
        """Return the doors of an element; None when it is unknown or has none."""
        with self._lock:
            element = self._known.get(name)
        return Doors(se=name, urls=element.doors) if element is not None and element.doors else None

    def open_doors(self, name: str) -> Doors | None:
        """Return the doors of an element that takes new copies now, else None."""
        with self._lock:
            element = self._known.get(name)
            return Doors(se=name, urls=element.doors) if element and self._takes_copies(name, element) else None

    def usable(self) -> tuple[StorageElement, ...]:
        """Return the elements that take new copies now."""
        with self._lock:
            return tuple(e for name, e in sorted(self._known.items()) if self._takes_copies(name, e))

    def unreachable(self) -> tuple[str, ...]:
        """Return the names of the elements that did not answer last."""
        with self._lock:
            return tuple(sorted(name for name in self._known if self._of(name).unreachable))

    def worked(self, name: str, *, space: Space | None = None, probed: bool = False) -> None:
        """Note that an element answered, real work or a probe; an element that cannot tell its space has none."""
        with self._lock:
            health = self._of(name)
            if health.failures:
                self._generation += 1
            health.failures, health.rests_until, health.unreachable = 0, 0.0, False
            health.last_error, health.last_ok = None, datetime.now(UTC)
            if probed:
                health.space, health.probed_at = space, self._clock()

    def failed(self, name: str, error: StorageError) -> None:
        """Note a failure that says something about the element itself; it rests for a while."""
        with self._lock:
            health = self._of(name)
            health.failures = min(health.failures + 1, 30)
            rest = min(_FIRST_REST * 2.0 ** (health.failures - 1), _LONGEST_REST)
            rest = _FULL_REST if isinstance(error, NoSpace) or error.permanent else rest
            health.rests_until = self._clock() + rest * random.uniform(0.8, 1.2)
            health.unreachable = isinstance(error, Unreachable)
            health.last_error, health.probed_at = f"{type(error).__name__}: {error.detail}"[:300], self._clock()

    def due_probes(self, *, idle: float) -> tuple[Doors, ...]:
        """Return the elements to probe: rested ones that failed, and those not probed for `idle` seconds."""
        now = self._clock()
        with self._lock:
            due = [e for name, e in sorted(self._known.items()) if self._is_due(self._of(name), now, idle)]
        return tuple(Doors(se=e.name, urls=e.doors) for e in due if e.doors)

    def snapshot(self) -> tuple[ElementState, ...]:
        """Return what the board shows."""
        with self._lock:
            return tuple(self._state(name, element) for name, element in sorted(self._known.items()))

    def _state(self, name: str, element: StorageElement) -> ElementState:
        health = self._of(name)
        usable = self._takes_copies(name, element)
        return ElementState(
            element, not health.unreachable, usable, health.last_error, health.last_ok, health.space, health.failures
        )

    def _of(self, name: str) -> _Health:
        return self._health.setdefault(name, _Health())

    def _takes_copies(self, name: str, element: StorageElement) -> bool:
        # A failed one is used again only after a probe showed it well: jobs must not be its guinea pigs.
        return element.state == "active" and bool(element.doors) and not self._of(name).failures

    @staticmethod
    def _is_due(health: _Health, now: float, idle: float) -> bool:
        return now >= health.rests_until if health.failures else now - health.probed_at >= idle


class Near:
    """Names the places at one site: its storage elements and this node's own spool. Thread-safe."""

    def __init__(self, elements: Elements, *, site: str, node: str) -> None:
        """Ask `elements`, which asks the catalog now and then."""
        self._elements, self._site, self._node = elements, site, node

    def __call__(self) -> tuple[str, ...]:
        """Return the names; none when no storage element is at another site, so that nobody has to compare."""
        with contextlib.suppress(CatalogError):
            self._elements.refresh_if_older(_NEAR_SECONDS)
        known = self._elements.known()
        if all(element.site == self._site for element in known):
            return ()
        return (self._node, *(element.name for element in known if element.site == self._site))
