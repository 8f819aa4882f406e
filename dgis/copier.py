"""The second half of the worker: every registered object gets its verified copies on storage elements.

Objects wait here by digest only; their bytes stay in registered/ until the catalog knows enough verified copies.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from catalog.wire import ReplicaChange, StorageElement
from certs.log import get_log
from dgis.backoff import delay
from dgis.board import ErrorList
from dgis.elements import Elements
from dgis.metrics import Metrics
from dgis.placement import candidates
from dgis.record import SpoolRecord
from dgis.spool import Spool
from storage_provider.channel import ObjectSpec, Stored
from storage_provider.checksum import sha256_of
from storage_provider.errors import Busy, Corrupt, LocalFault, Refused, StorageError
from storage_provider.keys import object_key
from storage_provider.transfer.route import Doors

log = get_log()

JOBS_KEPT = 20_000
_PARKED_SECONDS = 30.0
# Who takes an element out of service sees no new copy go there for longer than this
_LIST_SECONDS = 2.0
_RETRY_FIRST, _RETRY_LONGEST = 1.0, 300.0


class Storing(Protocol):
    """The part of the transfer engine that writes copies."""

    def store(self, spec: ObjectSpec, path: Path, doors: Doors, *, acting_for: str | None = None) -> Stored:
        """Store and verify an object at one storage element. Idempotent. Raises StorageError."""


@dataclass(slots=True)
class Job:
    """One object on its way to `copies` verified replicas; `holding` = the elements known to have one."""

    spec: ObjectSpec
    acting_for: str | None
    holding: set[str]
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """What the catalog must hear of an object; once it did and `done`, the spool file may go."""

    changes: tuple[ReplicaChange, ...]
    sha256: str
    done: bool


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """The rules of copying: how many verified replicas, at which site first, how many transfers at once."""

    node: str
    site: str
    copies: int
    parallel: int = 4


@dataclass(slots=True)
class _Queues:
    ready: deque[Job] = field(default_factory=deque)
    parked: list[Job] = field(default_factory=list)
    delayed: list[tuple[float, int, Job]] = field(default_factory=list)


class Copier:
    """A bounded set of copy threads. `add` and `pace` may be called from any thread."""

    def __init__(
        self,
        spool: Spool,
        engine: Storing,
        elements: Elements,
        plan: CopyPlan,
        *,
        metrics: Metrics,
        errors: ErrorList,
        report: Callable[[Report], None],
    ) -> None:
        """`report` takes what the catalog must hear; it may block to slow copying down."""
        self._spool, self._engine, self._elements, self._plan = spool, engine, elements, plan
        self._metrics, self._errors, self._report = metrics, errors, report
        self._changed = threading.Condition()
        self._queues = _Queues()
        self._active: set[str] = set()
        self._running = 0
        self._allowed = plan.parallel
        self._stopping = False
        self._sequence = itertools.count()
        self._load: dict[str, float] = {}
        self._seen_generation = -1
        self._unparked_at = time.monotonic()
        self.overflowed = False

    def start(self) -> list[threading.Thread]:
        """Start the copy threads (daemons: a transfer cut by the end of the process is simply done again)."""
        threads = [
            threading.Thread(target=self._run, name=f"copy-{n}", daemon=True) for n in range(self._plan.parallel)
        ]
        for thread in threads:
            thread.start()
        return threads

    def stop(self) -> None:
        """Let the threads end after what they are doing."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def pace(self, allowed: int) -> None:
        """Allow so many transfers at once (at least one): copying yields to receiving."""
        with self._changed:
            if allowed != self._allowed:
                self._allowed = max(1, min(allowed, self._plan.parallel))
                self._changed.notify_all()

    def add(self, record: SpoolRecord, verified_at: tuple[str, ...]) -> None:
        """Take a registered object; one that is already under way is not taken twice.

        Beyond a bound nothing is kept and `overflowed` is set: the object lies in registered/ and is found there later.
        """
        spec = ObjectSpec(object_key(record.sha256), record.size, record.sha256, record.chunks)
        with self._changed:
            if record.sha256 in self._active:
                return
            if len(self._active) >= JOBS_KEPT:
                self.overflowed = True
                return
            self._active.add(record.sha256)
            self._queues.ready.append(Job(spec, record.acting_for, set(verified_at)))
            self._changed.notify()

    def finished(self, sha256: str, *, again: bool = False) -> None:
        """Forget an object after its report; `again` when it must be found anew in registered/."""
        with self._changed:
            self._active.discard(sha256)
            self.overflowed = self.overflowed or again

    def knows(self, sha256: str) -> bool:
        """Say whether an object is under way."""
        with self._changed:
            return sha256 in self._active

    @property
    def waiting(self) -> int:
        """How many objects lack copies because no storage element takes them now."""
        with self._changed:
            return len(self._queues.parked) + len(self._queues.delayed)

    @property
    def active(self) -> int:
        """How many objects are under way in all."""
        with self._changed:
            return len(self._active)

    def tick(self) -> None:
        """Let parked objects try again when a storage element may have come back; call about once a second."""
        generation, now = self._elements.generation, time.monotonic()
        with self._changed:
            if generation != self._seen_generation or now - self._unparked_at >= _PARKED_SECONDS:
                self._seen_generation, self._unparked_at = generation, now
                self._queues.ready.extend(self._queues.parked)
                self._queues.parked.clear()
            while self._queues.delayed and self._queues.delayed[0][0] <= now:
                self._queues.ready.append(heapq.heappop(self._queues.delayed)[2])
            self._changed.notify_all()

    def _run(self) -> None:
        while (job := self._take()) is not None:
            try:
                self._advance(job)
            except Exception as error:  # noqa: BLE001 - the edge of a copy thread: one object never stops the others
                log.error("copy failed", object=job.spec.sha256, error=type(error).__name__)
                self._errors.add("copy", f"{type(error).__name__}: {error}")
                self._delay(job)
            finally:
                with self._changed:
                    self._running -= 1
                    self._changed.notify()

    def _take(self) -> Job | None:
        with self._changed:
            while not self._stopping:
                if self._queues.ready and self._running < self._allowed:
                    self._running += 1
                    return self._queues.ready.popleft()
                self._changed.wait(1.0)
            return None

    def _advance(self, job: Job) -> None:
        """Bring one object as far as the storage elements allow now, and say so."""
        changes: list[ReplicaChange] = []
        tried: set[str] = set()
        gone = False
        while len(job.holding) < self._plan.copies and not gone:
            target = self._pick(job, tried)
            if target is None:
                break
            tried.add(target.name)
            try:
                stored = self._copy(job, target)
            except LocalFault as error:
                gone = self._local_fault(job, error)
                break
            if stored is not None:
                job.holding.add(target.name)
                changes.append(_verified(job.spec, target.name, stored.verified_at))
        done = len(job.holding) >= self._plan.copies
        if done:
            changes.append(_freed(job.spec, self._plan.node))
        elif gone:
            changes.append(_lost(job.spec, self._plan.node))
        if changes:
            self._report(Report(tuple(changes), job.spec.sha256, done or gone))
        if not done and not gone:
            self._wait_for_storage(job, failed=bool(tried) and not changes)

    def _pick(self, job: Job, tried: set[str]) -> StorageElement | None:
        self._elements.freshen(_LIST_SECONDS)
        known = {element.name: element.site for element in self._elements.known()}
        sites = {known[name] for name in job.holding if name in known}
        with self._changed:
            load = dict(self._load)
        excluded = job.holding | tried
        usable = self._elements.usable()
        ranked = candidates(usable, holding=excluded, home=self._plan.site, load=load, sites=sites)
        if not ranked:
            return None
        with self._changed:
            # Counted before the transfer, so that parallel ones spread.
            self._load[ranked[0].name] = self._load.get(ranked[0].name, 0.0) + job.spec.size
        return ranked[0]

    def _copy(self, job: Job, target: StorageElement) -> Stored | None:
        path = self._spool.find(job.spec.sha256)
        if path is None:
            raise LocalFault("the spool file is gone", key=job.spec.key)
        doors = Doors(se=target.name, urls=target.doors)
        try:
            stored = self._engine.store(job.spec, path, doors, acting_for=job.acting_for)
        except LocalFault:
            raise
        except StorageError as error:
            self._failed(job, target, path, error)
            return None
        self._elements.worked(target.name)
        self._metrics.copies.labels(se=target.name).inc()
        return stored

    def _failed(self, job: Job, target: StorageElement, path: Path, error: StorageError) -> None:
        self._metrics.copy_failures.labels(se=target.name).inc()
        self._errors.add(f"copy to {target.name}", f"{type(error).__name__}: {error.detail}")
        log.warning("copy failed", se=target.name, object=job.spec.sha256, error=type(error).__name__)
        if isinstance(error, Corrupt) and not _intact(path, job.spec):
            raise LocalFault("the spool file changed on disk", key=job.spec.key) from error
        if not isinstance(error, Busy | Refused):
            self._elements.failed(target.name, error)

    def _local_fault(self, job: Job, error: LocalFault) -> bool:
        """Deal with a spool file that is gone or damaged; True when there is nothing left to copy."""
        path = self._spool.find(job.spec.sha256)
        if path is None:
            log.error("spool file gone before its copies were made", object=job.spec.sha256)
            self._errors.add("spool", f"a spool file is gone before its copies were made: {job.spec.key}")
            return True
        if not _intact(path, job.spec):
            self._spool.set_aside(path)
            self._errors.add("spool", f"a spool file changed on disk and was moved to damaged/: {job.spec.key}")
            log.error("spool file damaged", object=job.spec.sha256)
            return True
        self._errors.add("spool", f"cannot read a spool file: {error.detail}")
        return False

    def _wait_for_storage(self, job: Job, *, failed: bool) -> None:
        if failed:
            self._delay(job)
            return
        with self._changed:
            self._queues.parked.append(job)

    def _delay(self, job: Job) -> None:
        job.attempts += 1
        due = time.monotonic() + delay(job.attempts, first=_RETRY_FIRST, longest=_RETRY_LONGEST)
        with self._changed:
            heapq.heappush(self._queues.delayed, (due, next(self._sequence), job))


def _intact(path: Path, spec: ObjectSpec) -> bool:
    try:
        return sha256_of(path, length=spec.size) == spec.sha256
    except LocalFault:
        return False


def _verified(spec: ObjectSpec, element: str, at: datetime) -> ReplicaChange:
    return ReplicaChange(
        object_key=spec.key,
        location=element,
        kind="object",
        state="verified",
        size=spec.size,
        sha256=spec.sha256,
        verified_at=at,
    )


def _freed(spec: ObjectSpec, node: str) -> ReplicaChange:
    return ReplicaChange(object_key=spec.key, location=node, kind="spool", state="removed")


def _lost(spec: ObjectSpec, node: str) -> ReplicaChange:
    return ReplicaChange(object_key=spec.key, location=node, kind="spool", state="lost")
