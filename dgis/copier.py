"""The second half of the worker: every registered object gets its verified copies on storage elements.

Objects wait here by digest only; their bytes stay in registered/ until the catalog knows enough verified copies. The
copies of an object are made at once, each in the lane of its element, and each is told to the catalog when it is there.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import cast

from catalog.wire import ReplicaChange, StorageElement
from certs.log import get_log
from dgis.backoff import delay
from dgis.board import ErrorList
from dgis.copylanes import Lanes, Storing, Task
from dgis.elements import Elements
from dgis.metrics import Metrics
from dgis.placement import candidates
from dgis.record import SpoolRecord
from dgis.spool import Spool
from storage_provider.channel import ObjectSpec, Put, Stored
from storage_provider.checksum import sha256_of
from storage_provider.errors import Busy, Corrupt, LocalFault, Refused, StorageError
from storage_provider.keys import object_key
from storage_provider.transfer.route import Doors

log = get_log()

JOBS_KEPT = 20_000
_PARKED_SECONDS = 30.0
# Who takes an element out of service sees no new copy go there for longer than this
_LIST_SECONDS = 2.0
_LOOK_SECONDS = 0.5
_RETRY_FIRST, _RETRY_LONGEST = 1.0, 300.0


@dataclass(slots=True, eq=False)
class Job:
    """One object on its way to `copies` verified replicas; `holding` = the elements known to have one.

    A round ends when no element is left to try: `tried` and `pending` (copies under way), `copied` whether one was
    made, and `blocked` when the file itself cannot be read now. `queued`: it waits to be placed. `over`: there is
    nothing more to be done for it.
    """

    spec: ObjectSpec
    acting_for: str | None
    holding: set[str]
    since: float
    attempts: int = 0
    tried: set[str] = field(default_factory=set)
    pending: set[str] = field(default_factory=set)
    copied: bool = False
    blocked: bool = False
    queued: bool = False
    over: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """What the catalog must hear of an object; once it did and `done`, the spool file may go."""

    changes: tuple[ReplicaChange, ...]
    sha256: str
    done: bool


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """The rules of copying: how many verified replicas, at which site first, how many batches of transfers at once."""

    node: str
    site: str
    copies: int
    parallel: int = 4


@dataclass(slots=True)
class _Queues:
    ready: deque[Job] = field(default_factory=deque)
    parked: list[Job] = field(default_factory=list)
    delayed: list[tuple[float, int, Job]] = field(default_factory=list)

    def put(self, job: Job) -> None:
        """Have a job placed, once."""
        if not job.queued and not job.over:
            job.queued = True
            self.ready.append(job)

    def take(self) -> list[Job]:
        """Return all jobs to be placed."""
        jobs = list(self.ready)
        self.ready.clear()
        for job in jobs:
            job.queued = False
        return jobs


class Copier:
    """Places copies (one thread) and follows what the lanes make of them. All methods may be called from any thread."""

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
        self._spool, self._elements, self._plan = spool, elements, plan
        self._metrics, self._errors, self._report = metrics, errors, report
        self._lanes = Lanes(engine, self, parallel=plan.parallel)
        self._changed = threading.Condition()
        self._queues = _Queues()
        self._jobs: dict[str, Job] = {}
        self._stopping = False
        self._sequence = itertools.count()
        self._load: dict[str, float] = {}
        self._seen_generation = -1
        self._unparked_at = time.monotonic()
        self.overflowed = False

    def start(self) -> threading.Thread:
        """Start placing; lanes start as there is something to copy."""
        thread = threading.Thread(target=self._run, name="place", daemon=True)
        thread.start()
        return thread

    def stop(self) -> list[threading.Thread]:
        """Let the threads end after what they are doing; returns those that copy now."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._lanes.stop()
        return self._lanes.threads()

    def pace(self, allowed: int) -> None:
        """Allow so many batches of transfers at once, 0: none: copying yields to receiving."""
        self._lanes.pace(allowed)

    def add(self, record: SpoolRecord, verified_at: tuple[str, ...]) -> None:
        """Take a registered object, placed at the next `tick`; one that is already under way is not taken twice.

        Beyond a bound nothing is kept and `overflowed` is set: the object lies in registered/ and is found there later.
        """
        spec = ObjectSpec(object_key(record.sha256), record.size, record.sha256, record.chunks)
        with self._changed:
            if record.sha256 in self._jobs:
                return
            if len(self._jobs) >= JOBS_KEPT:
                self.overflowed = True
                return
            job = Job(spec, record.acting_for, set(verified_at), time.monotonic())
            self._jobs[record.sha256] = job
            self._queues.put(job)

    def finished(self, sha256: str, *, again: bool = False) -> None:
        """Forget an object after its report; `again` when it must be found anew in registered/."""
        with self._changed:
            job = self._jobs.pop(sha256, None)
            if job is not None:
                job.over = True
            self.overflowed = self.overflowed or again

    def knows(self, sha256: str) -> bool:
        """Say whether an object is under way."""
        with self._changed:
            return sha256 in self._jobs

    @property
    def waiting(self) -> int:
        """How many objects lack copies because no storage element takes them now."""
        with self._changed:
            return len(self._queues.parked) + len(self._queues.delayed)

    @property
    def active(self) -> int:
        """How many objects are under way in all."""
        with self._changed:
            return len(self._jobs)

    @property
    def oldest_seconds(self) -> float:
        """How long the oldest object has waited of those that only wait for their turn."""
        since = self._lanes.oldest()
        return 0.0 if since is None else time.monotonic() - since

    def tick(self) -> None:
        """Place what was added, and let parked objects try again when a storage element may have come back."""
        generation, now = self._elements.generation, time.monotonic()
        with self._changed:
            if generation != self._seen_generation or now - self._unparked_at >= _PARKED_SECONDS:
                self._seen_generation, self._unparked_at = generation, now
                for job in self._queues.parked:
                    self._queues.put(job)
                self._queues.parked.clear()
            while self._queues.delayed and self._queues.delayed[0][0] <= now:
                self._queues.put(heapq.heappop(self._queues.delayed)[2])
            if self._queues.ready:
                self._changed.notify_all()
        self._lanes.tick()

    # --- placing -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while (jobs := self._take()) is not None:
            try:
                if jobs or self.active:
                    self._elements.freshen(_LIST_SECONDS - _LOOK_SECONDS)
                self._place(jobs)
            except Exception as error:  # noqa: BLE001 - the edge of this thread: the objects are tried again later
                log.error("placing copies failed", error=type(error).__name__)
                self._errors.add("copy", f"{type(error).__name__}: {error}")
                for job in jobs:
                    job.pending.clear()
                    self._delay(job)

    def _take(self) -> list[Job] | None:
        """Wait a moment for jobs to place; None at the end."""
        with self._changed:
            if not self._queues.ready and not self._stopping:
                self._changed.wait(_LOOK_SECONDS)
            return None if self._stopping else self._queues.take()

    def _place(self, jobs: Sequence[Job]) -> None:
        """Choose elements for all copies that are missing; end the rounds that have none left to try."""
        if not jobs:
            return
        silent, usable = self._lanes.silent(), self._elements.usable()
        sites = {element.name: element.site for element in self._elements.known()}
        tasks: list[Task] = []
        ended: list[Job] = []
        with self._changed:
            # An element that is silent is the last of those that are as good a place
            load = self._load | dict.fromkeys(silent, float("inf"))
            for job in jobs:
                if job.over:
                    continue
                while not job.blocked and len(job.holding) + len(job.pending) < self._plan.copies:
                    target = self._choose(job, usable, sites, load)
                    if target is None:
                        break
                    tasks.append(self._task(job, target))
                if not job.pending:
                    ended.append(job)
        self._lanes.add(tasks)
        for job in ended:
            self._end_round(job)

    def _choose(
        self, job: Job, usable: Sequence[StorageElement], sites: dict[str, str], load: dict[str, float]
    ) -> StorageElement | None:
        """Return the best element for one more copy; its load counts from now on, so that parallel ones spread."""
        has = job.holding | job.pending
        at = {sites[name] for name in has if name in sites}
        ranked = candidates(usable, holding=has | job.tried, home=self._plan.site, load=load, sites=at)
        if not ranked:
            return None
        name, size = ranked[0].name, job.spec.size
        self._load[name] = self._load.get(name, 0.0) + size
        load[name] = load.get(name, 0.0) + size
        return ranked[0]

    def _task(self, job: Job, target: StorageElement) -> Task:
        job.tried.add(target.name)
        job.pending.add(target.name)
        path = self._spool.registered_path(job.spec.sha256)
        return Task(Put(job.spec, path, 0, job.acting_for), target.name, job, job.since)

    def _end_round(self, job: Job) -> None:
        """See what became of a round: done, or waiting for storage elements."""
        with self._changed:
            done, failed = len(job.holding) >= self._plan.copies, bool(job.tried) and not job.copied
            job.tried.clear()
            job.copied = job.blocked = False
            job.over = job.over or done
            if not done and not failed and not job.over:
                self._queues.parked.append(job)
        if done:
            self._report(Report((_freed(job.spec, self._plan.node),), job.spec.sha256, True))
        elif failed:
            self._delay(job)

    def _delay(self, job: Job) -> None:
        job.attempts += 1
        due = time.monotonic() + delay(job.attempts, first=_RETRY_FIRST, longest=_RETRY_LONGEST)
        with self._changed:
            heapq.heappush(self._queues.delayed, (due, next(self._sequence), job))

    # --- what the lanes ask and tell ---------------------------------------------------------------------------

    def doors(self, element: str) -> Doors | None:
        """Return the doors of an element that takes copies now (see `copylanes.Owner`)."""
        return self._elements.open_doors(element)

    def stored(self, task: Task, result: Stored | StorageError) -> None:
        """Note one outcome; never raises."""
        job = cast(Job, task.job)
        try:
            if isinstance(result, Stored):
                self._made(job, task, result)
                return
            if isinstance(result, LocalFault) or not self._failed(task, result):
                self._at_fault(job, task.put.path, result)
        except Exception as error:  # noqa: BLE001 - the edge of a lane: one object never stops the others
            self.broken(task, error)
            return
        self._go_on(job, task)

    def broken(self, task: Task, error: Exception) -> None:
        """Note a task that ended in an error that says nothing of its element."""
        log.error("copy failed", object=task.put.spec.sha256, error=type(error).__name__)
        self._errors.add("copy", f"{type(error).__name__}: {error}")
        self._go_on(cast(Job, task.job), task)

    def back(self, tasks: Sequence[Task]) -> None:
        """Place the copies anew that an element does not take now."""
        with self._changed:
            for task in tasks:
                job = cast(Job, task.job)
                job.pending.discard(task.element)
                job.tried.discard(task.element)
                self._load[task.element] = self._load.get(task.element, 0.0) - job.spec.size
                self._queues.put(job)
            self._changed.notify_all()

    def _made(self, job: Job, task: Task, stored: Stored) -> None:
        self._elements.worked(task.element)
        self._metrics.copies.labels(se=task.element).inc()
        changes = [_verified(job.spec, task.element, stored.verified_at)]
        with self._changed:
            job.pending.discard(task.element)
            job.holding.add(task.element)
            job.copied = True
            done = not job.over and len(job.holding) >= self._plan.copies
            job.over = job.over or done
            if not job.over and not job.pending:
                self._queues.put(job)
                self._changed.notify_all()
        if done:
            changes.append(_freed(job.spec, self._plan.node))
        self._report(Report(tuple(changes), job.spec.sha256, done))

    def _go_on(self, job: Job, task: Task) -> None:
        with self._changed:
            job.pending.discard(task.element)
            self._queues.put(job)
            self._changed.notify_all()

    def _failed(self, task: Task, error: StorageError) -> bool:
        """Note what a failure says of the element; False when it says something of the spool file."""
        spec = task.put.spec
        self._metrics.copy_failures.labels(se=task.element).inc()
        self._errors.add(f"copy to {task.element}", f"{type(error).__name__}: {error.detail}")
        log.warning("copy failed", se=task.element, object=spec.sha256, error=type(error).__name__)
        if isinstance(error, Corrupt) and not _intact(task.put.path, spec):
            return False
        if not isinstance(error, Busy | Refused):
            self._elements.failed(task.element, error)
        return True

    def _at_fault(self, job: Job, path: Path, error: StorageError) -> None:
        """Deal with a spool file that is gone or damaged: there is nothing left to copy; or it cannot be read now."""
        with self._changed:
            if job.over:
                return
            job.blocked = True
        if not path.exists():
            log.error("spool file gone before its copies were made", object=job.spec.sha256)
            self._errors.add("spool", f"a spool file is gone before its copies were made: {job.spec.key}")
        elif not _intact(path, job.spec):
            self._spool.set_aside(path)
            self._errors.add("spool", f"a spool file changed on disk and was moved to damaged/: {job.spec.key}")
            log.error("spool file damaged", object=job.spec.sha256)
        else:
            self._errors.add("spool", f"cannot read a spool file: {error.detail}")
            return
        with self._changed:
            job.over = True
        self._report(Report((_lost(job.spec, self._plan.node),), job.spec.sha256, True))


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
