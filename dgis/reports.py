"""Tells the catalog, in batches, where verified copies are; frees spool files only after it acknowledged them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from catalog.errors import CatalogError, CatalogRefused
from catalog.wire import ReplicaChange
from certs.log import get_log
from dgis.backoff import Backoff
from dgis.board import ErrorList
from dgis.copier import Report
from dgis.spool import Spool

log = get_log()

_BATCH = 500
_BOUND = 2000
# A batch gathers for a moment, on while more come: a call and its transaction cost as much as many changes in one
_GATHER_SECONDS, _MORE_SECONDS, _GATHER_LONGEST = 0.1, 0.05, 0.3


class ReplicaCatalog(Protocol):
    """The part of the catalog client that takes replica states."""

    def update_replicas(self, changes: Sequence[ReplicaChange]) -> None:
        """Change replica states, all or none; idempotent. Raises CatalogError."""


class Reports:
    """A bounded queue of reports and the thread that sends them; `put` blocks while it is full."""

    def __init__(
        self,
        spool: Spool,
        catalog: ReplicaCatalog,
        *,
        errors: ErrorList,
        finished: Callable[[str, bool], None],
    ) -> None:
        """`finished(sha256, again)` is called for objects that are done, or that the catalog does not know."""
        self._spool, self._catalog, self._errors, self._finished = spool, catalog, errors, finished
        self._changed = threading.Condition()
        self._waiting: list[Report] = []
        self._stopping = False
        self._backoff = Backoff()
        self.last_error: str | None = None

    def put(self, report: Report) -> None:
        """Take a report; blocks while too many wait, until `stop`."""
        with self._changed:
            while len(self._waiting) >= _BOUND and not self._stopping:
                self._changed.wait(1.0)
            self._waiting.append(report)
            if len(self._waiting) == 1:
                self._changed.notify_all()

    def start(self) -> threading.Thread:
        """Start the sending thread."""
        thread = threading.Thread(target=self._run, name="reports", daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        """Let the thread end after one more try; what is not sent is found again after the restart."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def _run(self) -> None:
        stopping = False
        while not stopping:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopping, 1.0)
                stopping = self._stopping
            if not stopping:
                self._gather()
                if not self._backoff.due:
                    time.sleep(_GATHER_SECONDS)
                    continue
            self._send_waiting()

    def _gather(self) -> None:
        """Let a batch gather until no more come or it has waited long; what comes last must not wait for nothing."""
        seen, pause, until = 0, _GATHER_SECONDS, time.monotonic() + _GATHER_LONGEST
        while seen < len(self._waiting) < _BATCH and time.monotonic() < until and not self._stopping:
            seen = len(self._waiting)
            time.sleep(pause)
            pause = _MORE_SECONDS

    def _send_waiting(self) -> None:
        with self._changed:
            batch = self._waiting[:_BATCH]
        if not batch:
            return
        try:
            self._send(batch)
        except Exception as error:  # noqa: BLE001 - the edge of this thread: the reports are kept and tried again
            self._backoff.failed()
            self.last_error = f"{type(error).__name__}: {error}"[:300]
            self._errors.add("replicas", self.last_error)
            return
        self._backoff.worked()
        self.last_error = None
        with self._changed:
            del self._waiting[: len(batch)]
            self._changed.notify_all()

    def _send(self, batch: Sequence[Report]) -> None:
        """Send a batch; if it is refused as a whole, halve it until the culprits stand alone. Raises CatalogError."""
        try:
            self._catalog.update_replicas([change for report in batch for change in report.changes])
        except CatalogRefused as error:
            if len(batch) == 1:
                self._refused(batch[0], error)
                return
            middle = len(batch) // 2
            self._send(batch[:middle])
            self._send(batch[middle:])
            return
        for report in batch:
            if report.done:
                self._spool.free(report.sha256)
                self._finished(report.sha256, False)

    def _refused(self, report: Report, error: CatalogError) -> None:
        # The catalog does not know the object (any more). The spool still has it: it is registered anew.
        self._errors.add("replicas", f"the catalog refused a replica, the object is registered anew: {error}")
        log.warning("replica refused", object=report.sha256)
        self._finished(report.sha256, True)
