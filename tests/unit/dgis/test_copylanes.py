"""Lanes: batches bounded in size, elements that do not hold up one another, large objects beside small ones."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest

from dgis import copylanes
from dgis.copylanes import LARGE_BYTES, SLICE_OBJECTS, Lanes, Task
from storage_provider.channel import ObjectSpec, Put, Stored
from storage_provider.checksum import chunk_count
from storage_provider.errors import StorageError, Unreachable
from storage_provider.keys import object_key
from storage_provider.transfer.route import Doors


def until(condition: Callable[[], object], *, seconds: float = 8.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


class Far:
    """An engine in memory; a `held` element takes puts and answers when it is let go."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[Put]]] = []
        self.held: dict[str, threading.Event] = {}
        self.breaks: set[str] = set()
        self.running = self.most_running = 0
        self._lock = threading.Lock()

    def hold(self, *elements: str) -> None:
        self.held |= {name: threading.Event() for name in elements}

    def release(self) -> None:
        for event in self.held.values():
            event.set()
        self.held = {}

    def store_many(self, puts: Iterable[Put], doors: Doors) -> Iterator[tuple[Put, Stored | StorageError]]:
        taken: list[Put] = []
        with self._lock:
            self.batches.append((doors.se, taken))
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        try:
            for put in puts:
                taken.append(put)
                if doors.se in self.held:
                    assert self.held[doors.se].wait(20)
                if doors.se in self.breaks:
                    raise RuntimeError("broken")
                yield put, Stored(put.spec.key, put.spec.size, put.spec.sha256, datetime.now(UTC))
        finally:
            with self._lock:
                self.running -= 1


class Owner:
    """Says which elements take copies, and keeps what it hears."""

    def __init__(self) -> None:
        self.closed: set[str] = set()
        self.done: list[Task] = []
        self.failed: list[Task] = []
        self.given_back: list[Task] = []
        self.asked = 0
        self.close_after = 1 << 30

    def doors(self, element: str) -> Doors | None:
        return None if element in self.closed else Doors(element, (f"memory://{element}",))

    def stored(self, task: Task, result: Stored | StorageError) -> None:
        assert isinstance(result, Stored)
        self.done.append(task)
        if len(self.done) >= self.close_after:
            self.closed.add(task.element)

    def broken(self, task: Task, error: Exception) -> None:
        self.failed.append(task)

    def back(self, tasks: Sequence[Task]) -> None:
        self.given_back.extend(tasks)


class Scene:
    def __init__(self, *, parallel: int = 4) -> None:
        self.far, self.owner = Far(), Owner()
        self.lanes = Lanes(self.far, self.owner, parallel=parallel)
        self.number = 0

    def tasks(self, element: str, count: int, size: int = 1000, *, since: float = 0.0) -> list[Task]:
        made = []
        for _ in range(count):
            self.number += 1
            digest = sha256(str(self.number).encode()).hexdigest()
            chunks = (digest,) * chunk_count(size)
            made.append(
                Task(Put(ObjectSpec(object_key(digest), size, digest, chunks), Path("x")), element, None, since)
            )
        return made

    def ended(self) -> bool:
        return not self.lanes.threads()


@pytest.fixture
def scene() -> Iterator[Scene]:
    made = Scene()
    yield made
    made.far.release()
    made.lanes.stop()
    until(made.ended)


def test_every_task_is_done_once_in_bounded_batches(scene: Scene) -> None:
    tasks = scene.tasks("a", 300) + scene.tasks("b", 10)
    scene.lanes.add(tasks)
    until(lambda: len(scene.owner.done) == 310)
    until(scene.ended)
    assert set(map(id, scene.owner.done)) == set(map(id, tasks))
    assert max(len(taken) for _, taken in scene.far.batches) <= SLICE_OBJECTS
    assert sum(len(taken) for name, taken in scene.far.batches if name == "b") == 10


def test_a_batch_is_bounded_in_bytes(scene: Scene) -> None:
    scene.lanes.add(scene.tasks("a", 9, 4 * 1024 * 1024))
    until(lambda: len(scene.owner.done) == 9)
    until(scene.ended)
    assert len(scene.far.batches[0][1]) == copylanes.SLICE_BYTES // (4 * 1024 * 1024)


def test_an_element_that_hangs_holds_up_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copylanes, "SILENT_SECONDS", 0.1)
    scene = Scene(parallel=1)
    scene.far.hold("silent")
    scene.lanes.add(scene.tasks("silent", 50))
    until(lambda: scene.far.batches)
    scene.lanes.add([*scene.tasks("b", 200), *scene.tasks("c", 200)])

    def others_done() -> bool:
        scene.lanes.tick()
        return len(scene.owner.done) == 400

    until(others_done)
    assert scene.lanes.silent() == {"silent"}
    assert {task.element for task in scene.owner.done} == {"b", "c"}
    # What it has not taken is given back once, to be placed elsewhere; when it comes again it stays
    assert len(scene.owner.given_back) == 49
    again = scene.owner.given_back[:]
    scene.lanes.add(again)
    scene.lanes.tick()
    assert len(scene.owner.given_back) == 49
    scene.far.release()
    until(lambda: len(scene.owner.done) == 450)
    until(scene.ended)
    assert scene.lanes.silent() == frozenset()


def test_large_objects_go_one_by_one_and_small_ones_beside_them(scene: Scene) -> None:
    scene.far.hold("a")
    large = scene.tasks("a", 3, LARGE_BYTES + 1)
    scene.lanes.add(large)
    until(lambda: scene.far.batches)
    held = scene.far.held.pop("a")  # the one under way waits on, what comes now does not
    scene.lanes.add(scene.tasks("a", 100))
    until(lambda: len(scene.owner.done) == 100)
    assert [taken for _, taken in scene.far.batches if large[0].put in taken] == [[large[0].put]]
    held.set()
    until(lambda: len(scene.owner.done) == 103)
    until(scene.ended)
    assert sorted(len(taken) for _, taken in scene.far.batches if taken[0].spec.size > LARGE_BYTES) == [1, 1, 1]


def test_no_more_batches_run_at_once_than_allowed() -> None:
    scene = Scene(parallel=2)
    scene.far.hold(*"abcdef")
    scene.lanes.add([task for name in "abcdef" for task in scene.tasks(name, 300)])
    until(lambda: scene.far.running == 2)
    scene.lanes.tick()
    assert len(scene.far.batches) == 2
    scene.far.release()
    until(lambda: len(scene.owner.done) == 1800)
    until(scene.ended)
    assert scene.far.most_running == 2
    assert {name for name, _ in scene.far.batches[:12]} == set("abcdef"), "each element has its turn"


def test_nothing_begins_while_copying_pauses_and_a_batch_under_way_takes_no_more(scene: Scene) -> None:
    scene.far.hold("a")
    scene.lanes.add(scene.tasks("a", 100))
    until(lambda: scene.far.batches)
    scene.lanes.pace(0)
    scene.lanes.add(scene.tasks("b", 5, since=7.0))
    scene.far.release()
    until(scene.ended)
    assert len(scene.owner.done) == 1
    assert scene.lanes.oldest() == 0.0
    scene.lanes.tick()
    assert scene.ended()
    scene.lanes.pace(4)
    until(lambda: len(scene.owner.done) == 105)
    assert scene.lanes.oldest() is None


def test_an_element_that_leaves_service_is_left_alone_in_mid_batch(scene: Scene) -> None:
    scene.owner.close_after = 10
    scene.lanes.add(scene.tasks("a", 100))
    until(lambda: len(scene.owner.given_back) == 90)
    until(scene.ended)
    assert len(scene.owner.done) == 10
    scene.lanes.add(scene.tasks("a", 3))
    scene.lanes.tick()
    assert len(scene.owner.given_back) == 93 and len(scene.far.batches) == 1


def test_an_engine_that_breaks_costs_only_what_it_had_taken(scene: Scene) -> None:
    scene.far.breaks = {"a"}
    scene.lanes.add(scene.tasks("a", 5))
    until(lambda: len(scene.owner.failed) == 5)
    scene.far.breaks = set()
    scene.lanes.add(scene.tasks("a", 5))
    until(lambda: len(scene.owner.done) == 5)


def test_slices_fit_the_speed_of_their_element(scene: Scene) -> None:
    lane = copylanes._Lane("a")
    for _ in range(9):
        lane.learn(10.0)
    slow = lane.slice_bytes
    for _ in range(9):
        lane.learn(0.1)
    assert slow <= 2 * 1024 * 1024 < lane.slice_bytes <= 64 * 1024 * 1024


def test_the_errors_of_objects_are_outcomes(scene: Scene) -> None:
    heard: list[Stored | StorageError] = []
    scene.owner.stored = lambda task, result: heard.append(result)  # type: ignore[method-assign]

    def unreachable(puts: Iterable[Put], doors: Doors) -> Iterator[tuple[Put, Stored | StorageError]]:
        for put in puts:
            yield put, Unreachable("no")

    scene.far.store_many = unreachable  # type: ignore[method-assign]
    scene.lanes.add(scene.tasks("a", 4))
    until(lambda: len(heard) == 4)
    assert {type(one) for one in heard} == {Unreachable}
