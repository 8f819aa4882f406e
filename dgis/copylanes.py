"""The lanes to storage elements: each takes its queue in slices as batches of the transfer engine, on its own.

A lane that is slow or silent holds up nobody else: every element has its own queues and threads, and what has not been
heard of for a while does not count against the bound of what runs at once.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from certs.log import get_log
from storage_provider.channel import Put, Stored
from storage_provider.errors import StorageError
from storage_provider.transfer.route import Doors

log = get_log()

# A slice: what one batch takes of a queue before others have their turn: as much as goes within about a second, so that
# an element taken out of service is soon left alone. Larger objects go one by one, beside the small.
SLICE_OBJECTS = 128
SLICE_BYTES, _SLICE_LEAST, _SLICE_MOST = 16 * 1024 * 1024, 2 * 1024 * 1024, 64 * 1024 * 1024
_SLICE_QUICK, _SLICE_SLOW = 0.5, 1.5
LARGE_BYTES = 8 * 1024 * 1024
# A batch without an answer for so long does not count against the bound
SILENT_SECONDS = 2.0


class Storing(Protocol):
    """The part of the transfer engine that writes copies."""

    def store_many(self, puts: Iterable[Put], doors: Doors) -> Iterator[tuple[Put, Stored | StorageError]]:
        """Store and verify objects at one storage element; yields each once, with what is stored or why not."""


class Owner(Protocol):
    """Who gives tasks to lanes and hears what became of them; called from the lanes' threads."""

    def doors(self, element: str) -> Doors | None:
        """Return the doors of an element that takes copies now, else None. Asked under the lanes' lock: never waits."""

    def stored(self, task: Task, result: Stored | StorageError) -> None:
        """Hear the outcome of a task. Never raises."""

    def broken(self, task: Task, error: Exception) -> None:
        """Hear that a task ended in an error that no door would answer. Never raises."""

    def back(self, tasks: Sequence[Task]) -> None:
        """Take tasks back that nobody has begun: their element takes no copies now, or is silent. Never raises."""


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """One copy to make: of what, at which element, for whose sake; `since` = when its object was registered."""

    put: Put
    element: str
    job: object
    since: float


@dataclass(slots=True, eq=False)
class _Batch:
    """A batch under way; `out` = what the engine has taken and not answered, by id of the put."""

    large: bool
    thread: threading.Thread | None = None
    heard_at: float = field(default_factory=time.monotonic)
    out: dict[int, Task] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Lane:
    element: str
    small: deque[Task] = field(default_factory=deque)
    large: deque[Task] = field(default_factory=deque)
    batches: list[_Batch] = field(default_factory=list)
    served_at: float = 0.0
    given_back: bool = False
    slice_bytes: int = SLICE_BYTES

    def queue(self, *, large: bool) -> deque[Task]:
        return self.large if large else self.small

    def startable(self, large_at_once: int) -> bool | None:
        """Say which kind of batch may start (True: a large one), None when neither."""
        if self.small and not any(not batch.large for batch in self.batches):
            return False
        if self.large and sum(batch.large for batch in self.batches) < large_at_once:
            return True
        return None

    def learn(self, seconds: float) -> None:
        """Fit the slice to how long one took."""
        if seconds < _SLICE_QUICK:
            self.slice_bytes = min(2 * self.slice_bytes, _SLICE_MOST)
        elif seconds > _SLICE_SLOW:
            self.slice_bytes = max(self.slice_bytes // 2, _SLICE_LEAST)


class Lanes:
    """At most `parallel` batches at once, silent ones not counted; for an element one of small objects. Thread-safe."""

    def __init__(self, engine: Storing, owner: Owner, *, parallel: int) -> None:
        """Start nothing yet."""
        self._engine, self._owner, self._parallel = engine, owner, parallel
        self._lock = threading.Lock()
        self._lanes: dict[str, _Lane] = {}
        self._allowed = parallel
        self._stopping = False
        # Large objects leave the other half of what may run to small ones
        self._large_at_once = max(1, parallel // 4)

    def add(self, tasks: Iterable[Task]) -> None:
        """Queue tasks and start what may start."""
        with self._lock:
            for task in tasks:
                lane = self._lanes.get(task.element)
                if lane is None:
                    lane = self._lanes[task.element] = _Lane(task.element)
                lane.queue(large=task.put.spec.size > LARGE_BYTES).append(task)
        self._dispatch()

    def pace(self, allowed: int) -> None:
        """Let so many batches run at once; 0: none begins, and those under way take no more."""
        with self._lock:
            changed, self._allowed = allowed != self._allowed, max(0, min(allowed, self._parallel))
        if changed:
            self._dispatch()

    def tick(self) -> None:
        """Give back what waits at elements that take nothing now or have become silent, and start what may start."""
        now = time.monotonic()
        with self._lock:
            back = [task for lane in self._lanes.values() for task in self._stranded(lane, now)]
        if back:
            self._owner.back(back)
        self._dispatch()

    def silent(self) -> frozenset[str]:
        """Return the elements whose small objects have not been answered for a while."""
        now = time.monotonic()
        with self._lock:
            return frozenset(name for name, lane in self._lanes.items() if _is_silent(lane, now))

    def oldest(self) -> float | None:
        """Return since when the oldest task waits that nobody has begun, None when there is none."""
        with self._lock:
            heads = [queue[0].since for lane in self._lanes.values() for queue in (lane.small, lane.large) if queue]
        return min(heads, default=None)

    def stop(self) -> None:
        """Let the batches end after what they have taken."""
        with self._lock:
            self._stopping = True

    def threads(self) -> list[threading.Thread]:
        """Return the threads at work (daemons: a transfer cut by the end of the process is simply done again)."""
        with self._lock:
            return [b.thread for lane in self._lanes.values() for b in lane.batches if b.thread is not None]

    def _stranded(self, lane: _Lane, now: float) -> list[Task]:
        """Empty the queues of a lane whose element takes nothing, or fell silent (once: there may be no better one)."""
        if not lane.small and not lane.large:
            return []
        if self._owner.doors(lane.element) is not None:
            silent = _is_silent(lane, now)
            once, lane.given_back = silent and not lane.given_back, silent
            if not once:
                return []
        back = [*lane.small, *lane.large]
        lane.small.clear()
        lane.large.clear()
        return back

    def _dispatch(self) -> None:
        while (started := self._start_one()) is not None:
            started.start()

    def _start_one(self) -> threading.Thread | None:
        """Begin a batch of the lane that waited longest for its turn, if another one may run."""
        now = time.monotonic()
        with self._lock:
            counted = sum(
                now - batch.heard_at < SILENT_SECONDS for lane in self._lanes.values() for batch in lane.batches
            )
            if self._stopping or counted >= self._allowed:
                return None
            for lane in sorted(self._lanes.values(), key=lambda lane: lane.served_at):
                large = lane.startable(self._large_at_once)
                if large is not None and self._owner.doors(lane.element) is not None:
                    return self._begin(lane, large=large)
        return None

    def _begin(self, lane: _Lane, *, large: bool) -> threading.Thread:
        batch = _Batch(large)
        batch.thread = threading.Thread(target=self._run, args=(lane, batch), name=f"copy-{lane.element}", daemon=True)
        lane.batches.append(batch)
        lane.served_at = time.monotonic()
        return batch.thread

    def _run(self, lane: _Lane, batch: _Batch) -> None:
        began = time.monotonic()
        try:
            doors = self._owner.doors(lane.element)
            if doors is not None:
                for put, result in self._engine.store_many(self._feed(lane, batch), doors):
                    batch.heard_at = time.monotonic()
                    task = batch.out.pop(id(put), None)
                    if task is not None:
                        self._owner.stored(task, result)
        except Exception as error:  # noqa: BLE001 - the edge of a copy thread: one object never stops the others
            log.error("copies failed", se=lane.element, error=type(error).__name__)
            for task in batch.out.values():
                self._owner.broken(task, error)
        finally:
            with self._lock:
                lane.batches.remove(batch)
                if not batch.large:
                    lane.learn(time.monotonic() - began)
            self.tick()

    def _feed(self, lane: _Lane, batch: _Batch) -> Iterator[Put]:
        """Give out one slice of the queue, less when the element leaves service or copying is to pause."""
        queue, size = lane.queue(large=batch.large), 0
        for _ in range(1 if batch.large else SLICE_OBJECTS):
            if size >= lane.slice_bytes or self._owner.doors(lane.element) is None:
                return
            with self._lock:
                if not queue or self._stopping or not self._allowed:
                    return
                task = queue.popleft()
                batch.out[id(task.put)] = task
            size += task.put.spec.size
            yield task.put


def _is_silent(lane: _Lane, now: float) -> bool:
    return any(batch.out and not batch.large and now - batch.heard_at >= SILENT_SECONDS for batch in lane.batches)
