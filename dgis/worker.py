"""The worker of a node: registers what receivers spooled, copies it to storage elements, frees the spool.

One worker per spool (a lock sees to it). It shares only the directory with the receivers, so either side may be
killed and started again at any instant: inbox/ and registered/ say all there is to do.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from catalog.wire import MAX_BATCH, RegisterBatch, RegisterResult, ReplicaChange, StorageElement
from dgis.board import Board, BoardCommitments, ErrorList
from dgis.commit_store import CommitmentStore
from dgis.committer import CommitCatalog, CommitRules, Committer, Reporter
from dgis.copier import JOBS_KEPT, Copier, CopyPlan
from dgis.disk import Lock
from dgis.elements import Elements
from dgis.housekeeping import Housekeeper
from dgis.ingest import WAKE_PIPE
from dgis.metrics import Metrics
from dgis.pace import Arrivals, Pressure, allowed
from dgis.record import SpoolRecord
from dgis.registrar import Registrar
from dgis.reports import Reports
from dgis.spool import Spool
from storage_provider.channel import Put, Space, Stored
from storage_provider.errors import StorageError
from storage_provider.transfer.route import DoorHealth, Doors

TURN_SECONDS = 0.2
# After a release the next look comes sooner: it shows whether the stream has ended, and copying can begin
_SOON_SECONDS = 0.05
_RESCAN_SECONDS = 30.0
_STOP_SECONDS = 4.0


class WorkerCatalog(Protocol):
    """What the worker asks of the catalog client."""

    def register(self, batch: RegisterBatch, *, acting_for: str | None = None) -> Sequence[RegisterResult]:
        """See CatalogClient."""

    def update_replicas(self, changes: Sequence[ReplicaChange]) -> None:
        """See CatalogClient."""

    def storage_elements(self) -> Sequence[StorageElement]:
        """See CatalogClient."""


class WorkerEngine(Protocol):
    """What the worker asks of the transfer engine."""

    def store_many(self, puts: Iterable[Put], doors: Doors) -> Iterator[tuple[Put, Stored | StorageError]]:
        """See Engine."""

    def space(self, doors: Doors) -> Space | None:
        """See Engine."""

    def health(self, doors: Doors) -> Sequence[DoorHealth]:
        """See Engine."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """`spool_limit` in bytes: when half of it is used, copying no longer yields to receiving.

    Nor does it when not `yields`: where Success waits for the copies, receiving waits for copying.
    """

    plan: CopyPlan
    spool_limit: int | None = None
    yields: bool = True


@dataclass(frozen=True, slots=True)
class Commitments:
    """What the worker needs to care for storage commitment."""

    store: CommitmentStore
    catalog: CommitCatalog
    reporter: Reporter
    rules: CommitRules


class Worker:
    """Runs in a process of its own; `run` returns when `stop` is set."""

    def __init__(
        self,
        spool: Spool,
        catalog: WorkerCatalog,
        engine: WorkerEngine,
        settings: WorkerSettings,
        metrics: Metrics,
        *,
        commitment: Commitments | None = None,
        policy: Callable[[], None] | None = None,
    ) -> None:
        """Make the parts; nothing starts before `run`.

        Without `commitment` nobody cares for storage commitment; `policy` renews the node's copy of the VO's policy.
        """
        self._spool, self._catalog, self._engine = spool, catalog, engine
        self._settings, self._metrics = settings, metrics
        self._errors = ErrorList()
        self.elements = Elements(catalog)
        self._reports = Reports(spool, catalog, errors=self._errors, finished=self._finished)
        self._copier = Copier(
            spool,
            engine,
            self.elements,
            settings.plan,
            metrics=metrics,
            errors=self._errors,
            report=self._reports.put,
        )
        self._registrar = Registrar(
            spool,
            catalog,
            node=settings.plan.node,
            site=settings.plan.site,
            metrics=metrics,
            errors=self._errors,
            on_registered=self._registered,
        )
        self._house = Housekeeper(
            spool, self.elements, engine, metrics=metrics, errors=self._errors, fill=self._fill, policy=policy
        )
        self._committer = self._make_committer(commitment) if commitment is not None else None
        self._counters = {"registered": 0, "freed": 0}
        self._rescanned_at = time.monotonic()
        self._arrived = self._arrived_bytes = 0

    def _make_committer(self, commitment: Commitments) -> Committer:
        return Committer(
            self._spool,
            commitment.store,
            commitment.catalog,
            commitment.reporter,
            commitment.rules,
            metrics=self._metrics,
            errors=self._errors,
        )

    def run(self, stop: threading.Event) -> None:
        """Work until `stop`. Raises SpoolLocked when this spool has a worker already, SpoolError if it is unusable."""
        lock = Lock(self._spool.root / "state" / "worker.lock")
        try:
            self._spool.remove_stale()
            self._spool.prepare()
            with self._wake_pipe() as pipe:
                self._work(stop, pipe)
        finally:
            lock.release()

    def _work(self, stop: threading.Event, pipe: int) -> None:
        self._registrar.adopt(self._left_over())
        registering = _started("register", self._register_until, stop, pipe)
        house = _started("housekeeping", self._house.run, stop)
        if self._committer is not None:
            _started("commitment", self._committer.run, stop)
        placing, reporting = self._copier.start(), self._reports.start()
        while registering.is_alive() and not stop.is_set():
            registering.join(0.5)
        stop.set()
        deadline = time.monotonic() + _STOP_SECONDS
        copying = self._copier.stop()
        _join([registering, placing, *copying], deadline)
        self._reports.stop()
        _join([reporting, house], deadline)

    def _register_until(self, stop: threading.Event, pipe: int) -> None:
        last, woken = time.monotonic(), False
        while not stop.is_set():
            began = time.monotonic()
            self._arrived = self._arrived_bytes = 0
            arrived = self._turn()
            self._pace(began - last)
            self._copier.tick()
            last = began
            if arrived < MAX_BATCH:
                pause = _SOON_SECONDS if woken else TURN_SECONDS
                woken = _wait(pipe, stop, began + pause - time.monotonic())

    def _turn(self) -> int:
        try:
            self._rescan_if_due()
        except OSError as error:
            self._errors.add("spool", f"registered/ cannot be read: {error.strerror}")
        return self._registrar.turn()

    def _rescan_if_due(self) -> None:
        """Look through registered/ again for what did not fit into memory or must be registered anew."""
        due = time.monotonic() - self._rescanned_at >= _RESCAN_SECONDS
        if due and self._copier.overflowed and self._copier.active <= JOBS_KEPT // 2:
            self._copier.overflowed = False
            self._rescanned_at = time.monotonic()
            self._registrar.adopt(self._left_over())

    def _pace(self, seconds: float) -> None:
        """Copying yields to receiving, bounded by the spool's size and age."""
        arrivals = Arrivals(seconds, self._arrived, self._arrived_bytes)
        pressure = Pressure(self._copier.oldest_seconds, self._house.backlog.bytes)
        parallel, limit = self._settings.plan.parallel, self._settings.spool_limit
        self._copier.pace(allowed(arrivals, pressure, parallel=parallel, spool_limit=limit))

    def _registered(self, record: SpoolRecord, verified_at: tuple[str, ...]) -> None:
        self._counters["registered"] += 1
        if self._settings.yields:
            self._arrived += 1
            self._arrived_bytes += record.size
        self._copier.add(record, verified_at)

    def _finished(self, sha256: str, again: bool) -> None:
        self._counters["freed"] += 0 if again else 1
        self._copier.finished(sha256, again=again)

    def _fill(self, board: Board) -> Board:
        troubles = [error for error in (self._registrar.last_error, self._reports.last_error) if error]
        return board.model_copy(
            update={
                "catalog_reachable": not troubles,
                "catalog_error": troubles[0] if troubles else None,
                "backlog": board.backlog.model_copy(update={"waiting_for_storage": self._copier.waiting}),
                "counters": dict(self._counters),
                "commitments": self._committer.shown if self._committer is not None else BoardCommitments(),
            }
        )

    def _left_over(self) -> Iterator[Path]:
        return (path for path in self._spool.registered() if not self._copier.knows(path.name))

    @contextlib.contextmanager
    def _wake_pipe(self) -> Iterator[int]:
        path = self._spool.root / "state" / WAKE_PIPE
        with contextlib.suppress(FileExistsError):
            os.mkfifo(path, 0o600)
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)


def _wait(pipe: int, stop: threading.Event, seconds: float) -> bool:
    """Sleep until somebody writes to the wake-up pipe, at most `seconds`; says whether somebody did."""
    deadline = time.monotonic() + max(0.0, seconds)
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    while not stop.is_set() and (left := deadline - time.monotonic()) > 0:
        if poll.poll(min(left, 0.1) * 1000):
            with contextlib.suppress(BlockingIOError):
                os.read(pipe, 65536)
            return True
    return False


def _started(name: str, work: Callable[..., None], *arguments: object) -> threading.Thread:
    """Start a daemon: whatever it waits for, the process can end, and all its work can be done again."""
    thread = threading.Thread(target=work, args=arguments, name=name, daemon=True)
    thread.start()
    return thread


def _join(threads: Sequence[threading.Thread], deadline: float) -> None:
    for thread in threads:
        thread.join(max(0.1, deadline - time.monotonic()))
