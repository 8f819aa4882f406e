"""The worker's second by second care: which storage elements answer, what waits, and the board that shows it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import Protocol

from catalog.errors import CatalogError
from certs.log import get_log
from dgis.backoff import Backoff
from dgis.board import Board, BoardBacklog, BoardDoor, BoardElement, BoardWriter, ErrorList
from dgis.elements import Elements, ElementState
from dgis.metrics import Metrics
from dgis.spool import Backlog, Spool
from storage_provider.channel import Space
from storage_provider.errors import StorageError
from storage_provider.transfer.route import DoorHealth, Doors

log = get_log()

_TICK_SECONDS = 1.0
_REFRESH_SECONDS, _REFRESH_EMPTY_SECONDS = 10.0, 1.0
_PROBE_IDLE_SECONDS = 5.0
_POLICY_SECONDS = 3.0
_EMPTY = Backlog(0, 0, 0.0, 0)


class Probing(Protocol):
    """The part of the transfer engine that shows whether a storage element answers."""

    def space(self, doors: Doors) -> Space | None:
        """Return the space of an element, None when it cannot tell. Raises StorageError."""

    def health(self, doors: Doors) -> Sequence[DoorHealth]:
        """Return what each door of an element showed last."""


class Housekeeper:
    """One thread that never waits for the network itself: probes and list refreshes have threads of their own.

    Those are daemons, one at a time for each element, so that one that hangs keeps nobody from ending.
    """

    def __init__(
        self,
        spool: Spool,
        elements: Elements,
        engine: Probing,
        *,
        metrics: Metrics,
        errors: ErrorList,
        fill: Callable[[Board], Board],
        policy: Callable[[], None] | None = None,
    ) -> None:
        """`fill` adds to the board what the other parts of the worker know; `policy` renews the copy of the VO's."""
        self._policy, self._policy_at = policy, float("-inf")
        self._spool, self._elements, self._engine = spool, elements, engine
        self._metrics, self._errors, self._fill = metrics, errors, fill
        self._writer = BoardWriter(spool.root)
        self._errands: set[str] = set()
        self._refresh_backoff = Backoff(first=1.0)
        self._refreshed_at = float("-inf")
        self._next_scan = float("-inf")
        self.backlog = _EMPTY

    def run(self, stop: threading.Event) -> None:
        """Tick once a second until `stop`, then write the board a last time."""
        while not stop.wait(_TICK_SECONDS if self._refreshed_at > 0 else 0.05):
            self.tick()
        self.tick()

    def tick(self) -> None:
        """Do what is due; never raises."""
        try:
            self._refresh_if_due()
            self._policy_if_due()
            for doors in self._elements.due_probes(idle=_PROBE_IDLE_SECONDS):
                self._errand(f"probe {doors.se}", partial(self._probe, doors))
            self._count()
            self._write()
        except Exception as error:  # noqa: BLE001 - the edge of this thread
            log.error("housekeeping failed", error=type(error).__name__, reason=str(error)[:200])
            self._errors.add("housekeeping", f"{type(error).__name__}: {error}")

    def _refresh_if_due(self) -> None:
        wait = _REFRESH_SECONDS if self._elements.known() else _REFRESH_EMPTY_SECONDS
        if self._refresh_backoff.due and time.monotonic() - self._refreshed_at >= wait:
            self._refreshed_at = time.monotonic()
            self._errand("refresh", self._refresh)

    def _policy_if_due(self) -> None:
        if self._policy is not None and time.monotonic() - self._policy_at >= _POLICY_SECONDS:
            self._policy_at = time.monotonic()
            self._errand("policy", partial(self._renew_policy, self._policy))

    def _errand(self, name: str, work: Callable[[], None]) -> None:
        """Start a piece of network work, unless the same one is still out."""
        if name in self._errands:
            return
        self._errands.add(name)

        def run() -> None:
            try:
                work()
            finally:
                self._errands.discard(name)

        threading.Thread(target=run, name=name, daemon=True).start()

    def _refresh(self) -> None:
        try:
            self._elements.refresh()
            self._refresh_backoff.worked()
        except CatalogError as error:
            self._refresh_backoff.failed()
            self._errors.add("storage elements", f"{type(error).__name__}: {error}")

    def _renew_policy(self, renew: Callable[[], None]) -> None:
        try:
            renew()
        except (CatalogError, OSError) as error:
            self._errors.add("policy", f"{type(error).__name__}: {error}")

    def _probe(self, doors: Doors) -> None:
        try:
            self._elements.worked(doors.se, space=self._engine.space(doors), probed=True)
        except StorageError as error:
            self._elements.failed(doors.se, error)
            self._errors.add(f"probe of {doors.se}", f"{type(error).__name__}: {error.detail}")

    def _count(self) -> None:
        began = time.monotonic()
        if began < self._next_scan:
            return
        self.backlog = self._spool.backlog()
        # A huge backlog is counted less often: never more than two per cent of the time.
        self._next_scan = began + 50 * (time.monotonic() - began)
        self._metrics.backlog_objects.set(self.backlog.count)
        self._metrics.backlog_bytes.set(self.backlog.bytes)
        self._metrics.backlog_oldest.set(self.backlog.oldest_seconds)

    def _write(self) -> None:
        rejected, damaged = self._spool.rejected_count(), len(self._spool.damaged())
        self._metrics.rejected_objects.set(rejected)
        self._metrics.damaged_objects.set(damaged)
        states = self._elements.snapshot()
        board = self._writer.blank().model_copy(
            update={
                "at": datetime.now(UTC),
                "backlog": BoardBacklog(
                    count=self.backlog.count,
                    bytes=self.backlog.bytes,
                    oldest_seconds=round(self.backlog.oldest_seconds, 1),
                    unregistered=self.backlog.unregistered,
                ),
                "rejected": rejected,
                "damaged": damaged,
                "elements": tuple(map(self._shown, states)),
                "unreachable": self._elements.unreachable(),
                "errors": self._errors.all(),
            }
        )
        self._writer.write(self._fill(board))

    def _shown(self, state: ElementState) -> BoardElement:
        doors = self._engine.health(Doors(state.element.name, state.element.doors))
        return BoardElement(
            name=state.element.name,
            site=state.element.site,
            state=state.element.state,
            reachable=state.reachable,
            usable=state.usable,
            last_error=state.last_error,
            last_ok=state.last_ok,
            total_bytes=state.space.total if state.space else None,
            free_bytes=state.space.free if state.space else None,
            doors=tuple(BoardDoor(**asdict(door)) for door in doors),
        )
