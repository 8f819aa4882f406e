"""The worker: everything spooled is registered, copied k times and only then freed, whatever fails meanwhile."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from catalog.errors import CatalogUnavailable
from catalog.wire import RegisterBatch, RegisterResult
from dgis.backoff import Backoff
from dgis.board import Board, read_board
from dgis.copier import CopyPlan
from dgis.errors import SpoolLocked
from dgis.ingest import Ingest
from dgis.metrics import make_metrics
from dgis.spool import Spool
from dgis.worker import Worker, WorkerSettings
from storage_provider.channel import ObjectSpec, Stored
from storage_provider.errors import Corrupt
from storage_provider.keys import object_key
from storage_provider.transfer.route import Doors
from tests.helpers.doubles import MemoryCatalog, MemoryEngine, element
from tests.helpers.objects import data_set
from tests.helpers.spooling import arrival, everything_below, store


class Grid:
    """A spool with a worker that can be started and stopped, a catalog and storage elements in memory."""

    def __init__(self, root: Path, *elements: str, copies: int = 2) -> None:
        self.root = root
        self.spool = Spool(root)
        self.catalog = MemoryCatalog(*(element(name) for name in elements))
        self.engine = MemoryEngine()
        self.copies = copies
        self.registry = CollectorRegistry()

    @contextlib.contextmanager
    def working(self, *, parallel: int = 4) -> Iterator[Worker]:
        self.registry = CollectorRegistry()
        plan = CopyPlan(node="dgis-a", site="a", copies=self.copies, parallel=parallel)
        worker = Worker(Spool(self.root), self.catalog, self.engine, WorkerSettings(plan), make_metrics(self.registry))
        stop = threading.Event()
        thread = threading.Thread(target=worker.run, args=(stop,))
        thread.start()
        try:
            yield worker
        finally:
            stop.set()
            thread.join(10)
            assert not thread.is_alive()

    def board(self) -> Board:
        board = read_board(self.root)
        assert board is not None
        return board

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    return Grid(tmp_path / "spool", "se1", "se2", "se3")


def until(condition: Callable[[], object], *, seconds: float = 8.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def empty(grid: Grid) -> bool:
    return grid.spool.backlog().count == 0


def test_spooled_objects_are_registered_copied_to_k_elements_and_freed(grid: Grid) -> None:
    entries = [store(grid.spool, f"1.2.{n}", data=data_set(f"1.2.{n}")) for n in range(1, 31)]
    with grid.working():
        until(lambda: empty(grid))
        until(lambda: grid.count("dgis_copies_total", se="se1") > 0)
    assert len(grid.catalog.instances) == 30
    for entry in entries:
        assert len(grid.catalog.verified(object_key(entry.record.sha256))) == 2
    assert grid.catalog.spooled() == set()
    assert grid.engine.stores == 60
    used = [len(grid.engine.stored[se]) for se in ("se1", "se2", "se3")]
    assert max(used) - min(used) <= 6, f"copies spread over the elements: {used}"
    assert grid.catalog.batches == [("ae:MOD@a", 30)]
    assert everything_below(grid.root) == []
    assert grid.count("dgis_registered_objects_total", outcome="registered") == 30


def test_the_first_copy_goes_to_the_own_site_the_next_to_another(tmp_path: Path) -> None:
    grid = Grid(tmp_path / "spool")
    grid.catalog.elements = [element("b1", "b"), element("a1"), element("a2"), element("c1", "c", "draining")]
    entry = store(grid.spool)
    with grid.working():
        until(lambda: empty(grid))
    at = grid.catalog.verified(object_key(entry.record.sha256))
    assert len(at & {"a1", "a2"}) == 1 and "b1" in at


def test_a_release_is_answered_soon_after_the_registration(grid: Grid) -> None:
    ingest = Ingest(grid.spool, make_metrics(CollectorRegistry()))
    with grid.working():
        until(lambda: read_board(grid.root) is not None)
        began = time.monotonic()
        receiving = ingest.begin(arrival())
        receiving.write(data_set())
        receiving.commit()
        assert ingest.settle("as1")
        assert time.monotonic() - began < 0.5
    assert "1.2.3.4.1" in grid.catalog.instances


def test_catalog_down_keeps_everything_and_the_worker_catches_up_by_itself(grid: Grid) -> None:
    grid.catalog.down = True
    with grid.working():
        store(grid.spool)
        until(lambda: read_board(grid.root) is not None and not grid.board().catalog_reachable)
        assert grid.spool.backlog().unregistered == 1
        store(grid.spool, "1.2.9", data=data_set("1.2.9"))
        grid.catalog.down = False
        until(lambda: empty(grid), seconds=10)
        until(lambda: grid.board().catalog_reachable)
    assert set(grid.catalog.instances) == {"1.2.3.4.1", "1.2.9"}


def test_catalog_down_after_the_copies_keeps_the_spool_file_until_it_acknowledged(grid: Grid) -> None:
    grid.engine.slow = 0.3
    entry = store(grid.spool)
    with grid.working():
        until(lambda: grid.engine.running)
        grid.catalog.down = True
        until(lambda: grid.engine.stores == 2)
        time.sleep(0.5)
        assert grid.spool.find(entry.record.sha256) is not None
        grid.catalog.down = False
        until(lambda: empty(grid), seconds=10)
    assert grid.engine.stores == 2


def test_too_few_elements_keep_the_spool_file_and_the_rest_follows_later(grid: Grid) -> None:
    grid.engine.down = {"se2", "se3"}
    entry = store(grid.spool)
    key = object_key(entry.record.sha256)
    with grid.working():
        until(lambda: grid.catalog.verified(key) == {"se1"})
        until(lambda: grid.board().backlog.waiting_for_storage == 1)
        until(lambda: grid.board().unreachable == ("se2", "se3"))
        assert grid.spool.find(entry.record.sha256) is not None
        assert key in grid.catalog.spooled()
        assert grid.board().errors
        grid.engine.down = set()
        until(lambda: empty(grid), seconds=15)
        until(lambda: grid.board().unreachable == ())
    assert len(grid.catalog.verified(key)) == 2
    assert sum(len(objects) for objects in grid.engine.stored.values()) == 2


@pytest.mark.parametrize("state", ["draining", "readonly"])
def test_an_element_taken_out_of_service_gets_nothing_new_soon_after(grid: Grid, state: str) -> None:
    with grid.working():
        store(grid.spool)
        until(lambda: empty(grid))
        grid.catalog.elements = [element("se1", state=state), element("se2"), element("se3")]
        time.sleep(2.1)
        before = len(grid.engine.stored.get("se1", {}))
        entries = [store(grid.spool, f"1.2.7.{n}") for n in range(6)]
        until(lambda: empty(grid))
    for entry in entries:
        assert grid.catalog.verified(object_key(entry.record.sha256)) == {"se2", "se3"}
    assert len(grid.engine.stored.get("se1", {})) == before


def test_a_full_element_is_passed_over(grid: Grid) -> None:
    grid.engine.full = {"se1"}
    entry = store(grid.spool)
    with grid.working():
        until(lambda: empty(grid))
    assert grid.catalog.verified(object_key(entry.record.sha256)) == {"se2", "se3"}
    assert grid.count("dgis_copy_failures_total", se="se1") == 1


def test_other_content_under_one_uid_is_quarantined_and_copied_too(grid: Grid) -> None:
    first = store(grid.spool)
    second = store(grid.spool, data=data_set(number=2))
    with grid.working():
        until(lambda: empty(grid))
    assert grid.catalog.instances["1.2.3.4.1"].sha256 == first.record.sha256
    assert len(grid.catalog.verified(object_key(second.record.sha256))) == 2
    assert grid.count("dgis_conflicts_total", kind="content") == 1


def test_identical_content_again_is_not_copied_again(grid: Grid) -> None:
    store(grid.spool)
    with grid.working():
        until(lambda: empty(grid))
        store(grid.spool)
        until(lambda: empty(grid))
        until(lambda: not grid.catalog.spooled())
    assert grid.engine.stores == 2
    assert grid.count("dgis_registered_objects_total", outcome="identical") == 1


def test_rejected_objects_are_kept_and_shown_and_do_not_stop_the_others(grid: Grid) -> None:
    grid.catalog.reject = lambda record: record.instance_uid == "1.2.5"
    for n in range(1, 9):
        store(grid.spool, f"1.2.{n}", data=data_set(f"1.2.{n}"))
    with grid.working():
        until(lambda: empty(grid))
        until(lambda: grid.board().rejected == 1)
    assert [reason for _, reason in grid.spool.rejected()] == ["odd"]
    assert len(grid.catalog.instances) == 7


def test_one_record_that_spoils_its_batch_is_found_and_set_aside(grid: Grid) -> None:
    grid.catalog.refuse = lambda record: record.instance_uid == "1.2.5"
    for n in range(1, 9):
        store(grid.spool, f"1.2.{n}", data=data_set(f"1.2.{n}"))
    with grid.working():
        until(lambda: empty(grid))
    assert len(grid.spool.rejected()) == 1
    assert len(grid.catalog.instances) == 7


def test_a_catalog_that_refuses_everything_costs_no_object(grid: Grid) -> None:
    grid.catalog.refuse = lambda record: True
    for n in range(1, 9):
        store(grid.spool, f"1.2.{n}", data=data_set(f"1.2.{n}"))
    with grid.working():
        until(lambda: read_board(grid.root) is not None and not grid.board().catalog_reachable)
        assert grid.spool.rejected() == ()
        grid.catalog.refuse = lambda record: False
        until(lambda: empty(grid), seconds=10)
    assert len(grid.catalog.instances) == 8


def test_a_damaged_entry_never_blocks_the_others(grid: Grid) -> None:
    bad, _ = store(grid.spool), store(grid.spool, "1.2.9", data=data_set("1.2.9"))
    bad.path.write_bytes(b"garbage")
    with grid.working():
        until(lambda: empty(grid))
        until(lambda: grid.board().damaged == 1)
        assert any(error.where == "spool" for error in grid.board().errors)
    assert grid.spool.damaged() == (bad.name,)


def test_an_object_that_changed_on_disk_is_never_copied_and_never_deleted(grid: Grid) -> None:
    entry = store(grid.spool)
    whole = entry.path.read_bytes()
    entry.path.write_bytes(b"\xff" + whole[1:])
    real = grid.engine.store

    def far_side_checks(*arguments: object, **options: object) -> object:
        try:
            return real(*arguments, **options)  # type: ignore[arg-type]
        except AssertionError:
            raise Corrupt("digest differs") from None

    grid.engine.store = far_side_checks  # type: ignore[method-assign, assignment]
    with grid.working():
        until(lambda: grid.spool.damaged() != () and read_board(grid.root) is not None)
        until(lambda: any("damaged" in error.text for error in grid.board().errors))
    assert grid.engine.stores == 0


@pytest.mark.parametrize("moment", ["registered", "copied", "acknowledged"])
def test_a_restart_at_any_point_finishes_the_work(grid: Grid, moment: str) -> None:
    entry = store(grid.spool)
    key = object_key(entry.record.sha256)
    if moment == "registered":  # died between registration and copies
        grid.engine.down = {"se1", "se2", "se3"}
        with grid.working():
            until(lambda: grid.spool.find(entry.record.sha256))
    else:  # died after the copies, before the catalog heard of them, or before the file was freed
        saved = entry.path.read_bytes()
        with grid.working():
            until(lambda: empty(grid))
        path = grid.root / "registered" / entry.record.sha256[:2] / entry.record.sha256
        path.write_bytes(saved)
        if moment == "copied":
            grid.catalog.replicas.clear()
    grid.engine.down = set()
    with grid.working():
        until(lambda: empty(grid))
        until(lambda: key not in grid.catalog.spooled())
    assert len(grid.catalog.verified(key)) == 2
    assert len(grid.catalog.instances) == 1


def test_an_object_the_catalog_forgot_is_registered_again(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dgis.worker._RESCAN_SECONDS", 0.2)
    grid.engine.slow = 0.4
    store(grid.spool)
    with grid.working():
        until(lambda: grid.engine.running)
        grid.catalog.instances.clear()
        grid.catalog.objects.clear()
        grid.catalog.replicas.clear()
        until(lambda: empty(grid))
    assert "1.2.3.4.1" in grid.catalog.instances


def test_order_of_arrival_decides_between_parties(grid: Grid) -> None:
    for n in range(6):
        sender = "ONE" if n % 2 else "TWO"
        store(grid.spool, f"1.2.{n}", data=data_set(f"1.2.{n}"), sender=sender)
    first = store(grid.spool, "1.9.1", data=data_set("1.9.1", number=1), sender="ONE")
    store(grid.spool, "1.9.1", data=data_set("1.9.1", number=2), sender="TWO")
    with grid.working():
        until(lambda: empty(grid))
    assert grid.catalog.instances["1.9.1"].sha256 == first.record.sha256
    assert sorted(grid.catalog.batches, key=str) == [("ae:ONE@a", 4), ("ae:TWO@a", 1), ("ae:TWO@a", 3)]


def test_only_one_worker_per_spool(grid: Grid) -> None:
    with grid.working():
        until(lambda: read_board(grid.root) is not None)
        plan = CopyPlan(node="x", site="a", copies=1)
        second = Worker(grid.spool, grid.catalog, grid.engine, WorkerSettings(plan), make_metrics(CollectorRegistry()))
        with pytest.raises(SpoolLocked):
            second.run(threading.Event())


def test_copies_run_in_parallel_up_to_the_bound(grid: Grid) -> None:
    grid.engine.slow = 0.05
    for n in range(12):
        store(grid.spool, f"1.2.{n}", data=data_set(f"1.2.{n}"))
    with grid.working(parallel=3):
        until(lambda: empty(grid))
    assert grid.engine.most_running == 3


def test_an_element_that_hangs_holds_up_no_copy_at_the_others(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dgis.copylanes.SILENT_SECONDS", 0.2)
    let_go, real = threading.Event(), grid.engine.store

    def hangs(spec: ObjectSpec, path: Path, doors: Doors, *, acting_for: str | None = None) -> Stored:
        if doors.se == "se2":
            assert let_go.wait(30)
        return real(spec, path, doors, acting_for=acting_for)

    monkeypatch.setattr(grid.engine, "store", hangs)
    entries = [store(grid.spool, f"1.2.{n}", data=data_set(f"1.2.{n}")) for n in range(30)]
    with grid.working(parallel=1):
        until(lambda: grid.spool.backlog().count == 1)  # the one that se2 has begun with
        (left,) = (entry for entry in entries if grid.spool.find(entry.record.sha256))
        until(lambda: len(grid.catalog.verified(object_key(left.record.sha256))) == 1)
        let_go.set()
        until(lambda: empty(grid))
    assert all(len(grid.catalog.verified(object_key(entry.record.sha256))) == 2 for entry in entries)


def test_a_first_copy_is_told_before_the_second_is_there(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    grid.engine.down = {"se3"}
    let_go, real = threading.Event(), grid.engine.store

    def waits(spec: ObjectSpec, path: Path, doors: Doors, *, acting_for: str | None = None) -> Stored:
        if doors.se == "se2":
            assert let_go.wait(30)
        return real(spec, path, doors, acting_for=acting_for)

    monkeypatch.setattr(grid.engine, "store", waits)
    entry = store(grid.spool)
    key = object_key(entry.record.sha256)
    with grid.working():
        until(lambda: grid.catalog.verified(key) == {"se1"})
        assert grid.spool.find(entry.record.sha256) is not None
        let_go.set()
        until(lambda: empty(grid))
    assert grid.catalog.verified(key) == {"se1", "se2"}


def test_a_catalog_that_hangs_does_not_keep_the_worker_from_stopping(
    grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dgis.worker._STOP_SECONDS", 0.3)
    hanging, let_go = threading.Event(), threading.Event()

    def hangs(*_: object, **__: object) -> None:
        hanging.set()
        let_go.wait(30)

    monkeypatch.setattr(grid.catalog, "register", hangs)
    store(grid.spool)
    with grid.working():
        assert hanging.wait(5)
        began = time.monotonic()
    assert time.monotonic() - began < 3
    assert grid.spool.backlog().unregistered == 1
    let_go.set()


def test_a_disk_that_refuses_is_loud_and_loses_nothing(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = store(grid.spool)
    real = os.replace

    def refuses(source: object, target: object) -> None:
        if "registered" in str(target):
            raise PermissionError(13, "Permission denied")
        real(source, target)  # type: ignore[arg-type]

    with grid.working():
        monkeypatch.setattr(os, "replace", refuses)
        until(lambda: any("Permission" in error.text for error in grid.board().errors) if read_board(grid.root) else 0)
        assert entry.path.exists()
        monkeypatch.undo()
        until(lambda: empty(grid), seconds=10)


def test_left_over_objects_survive_a_start_without_catalog(grid: Grid) -> None:
    for n in range(1, 6):
        grid.spool.mark_registered(store(grid.spool, f"1.2.{n}", data=data_set(f"1.2.{n}")))
    grid.catalog.down = True
    with grid.working():
        until(lambda: read_board(grid.root) is not None and not grid.board().catalog_reachable)
        grid.catalog.down = False
        until(lambda: empty(grid), seconds=10)
    assert len(grid.catalog.instances) == 5


@pytest.mark.parametrize("where", ["inbox", "registered"])
def test_an_object_that_makes_the_catalog_fail_does_not_stop_the_others(
    grid: Grid, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr("dgis.registrar.Backoff", lambda: Backoff(first=0.01, longest=0.02))
    real = grid.catalog.register

    def fails_at_one(batch: RegisterBatch, *, acting_for: str | None = None) -> list[RegisterResult]:
        if any(record.instance_uid == "1.2.1" for record in batch.instances):
            raise CatalogUnavailable("500")
        return real(batch, acting_for=acting_for)

    monkeypatch.setattr(grid.catalog, "register", fails_at_one)
    for n in range(1, 21):
        entry = store(grid.spool, f"1.2.{n}", data=data_set(f"1.2.{n}"))
        if where == "registered":
            grid.spool.mark_registered(entry)
    with grid.working():
        until(lambda: grid.spool.backlog().count == 1, seconds=10)
        until(lambda: any("others go on" in error.text for error in grid.board().errors))
    assert len(grid.catalog.instances) == 19


def test_a_file_that_cannot_be_read_now_does_not_stop_the_others(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [store(grid.spool, f"1.2.{n}", data=data_set(f"1.2.{n}")) for n in range(1, 6)]
    real = os.open

    def refuses(path: str | Path, *arguments: int, **options: int) -> int:
        if str(path) == str(entries[2].path):
            raise OSError(5, "Input/output error")
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refuses)
    with grid.working():
        until(lambda: grid.spool.backlog().count == 1)
        until(lambda: any("cannot be read now" in error.text for error in grid.board().errors))
    assert len(grid.catalog.instances) == 4
