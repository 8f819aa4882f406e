"""Retrieve: in order, from wherever a copy is, and one that fails never ends the rest."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from catalog.wire import LocateRequest, ReplicaChange
from dgis.elements import Elements
from dgis.errors import RetrieveUnavailable
from dgis.metrics import make_metrics
from dgis.registrar import to_instance
from dgis.retrieve import Failed, Fetched, ReadAhead, Retrieve
from dgis.sources import BlameReporter, Sources
from dgis.spool import Spool
from storage_provider.channel import ObjectSpec
from storage_provider.keys import object_key
from storage_provider.transfer.engine import Blame
from storage_provider.transfer.route import Doors
from tests.helpers.doubles import MemoryCatalog, MemoryEngine, element
from tests.helpers.objects import data_set
from tests.helpers.spooling import everything_below, store

EVERYTHING = LocateRequest()


class Node:
    """A node whose objects may be put into the spool, onto storage elements, or both."""

    def __init__(self, root: Path, ahead: ReadAhead | None = None) -> None:
        self.spool = Spool(root)
        self.catalog = MemoryCatalog(element("se1"), element("se2", "b"))
        self.engine = MemoryEngine()
        self.registry = CollectorRegistry()
        self.elements = Elements(self.catalog)
        metrics = make_metrics(self.registry)
        self.sources = Sources(self.spool, self.engine, self.elements, site="a", metrics=metrics)
        self.retrieve = Retrieve(self.catalog, self.sources, self.elements, metrics, ahead=ahead)
        self.data: dict[str, bytes] = {}

    def put(self, number: int, *at: str, keep: bool = False, size: int = 1000) -> str:
        """Store one instance; `at` names the elements that get a verified copy; `keep` leaves it in the spool."""
        uid = f"1.2.3.{number}"
        data = self.data[uid] = data_set(uid, number=number, pixels=bytes([number % 251]) * size)
        entry = store(self.spool, uid, data=data, step=65536)
        path = self.spool.mark_registered(entry)
        record = to_instance(entry.record, node="dgis-a")
        self.catalog.instances[uid] = self.catalog.objects[record.object_key] = record
        for name in at:
            spec = ObjectSpec(record.object_key, record.size, record.sha256, record.chunks)
            self.engine.store(spec, path, Doors(name, (f"https://{name}",)))
            self.say(record.object_key, name, "object", "verified")
        if keep:
            self.say(record.object_key, "dgis-a", "spool", "spooled")
        else:
            self.spool.free(entry.record.sha256)
        return uid

    def say(self, key: str, place: str, kind: str, state: str) -> None:
        self.catalog.update_replicas(
            [ReplicaChange.model_validate({"object_key": key, "location": place, "kind": kind, "state": state})]
        )

    def all(self) -> list[Fetched | Failed]:
        results = list(self.retrieve.fetch(self.retrieve.plan(EVERYTHING)))
        for result in results:
            if isinstance(result, Fetched):
                uid = result.located.instance_uid
                with result.path.open("rb") as stream:
                    stream.seek(result.data_offset)
                    assert stream.read(result.data_length) == self.data[uid], "byte-exact"
                result.release()
                result.release()
        return results


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path / "spool")
    yield node
    scratch = tmp_path / "spool" / "scratch"
    deadline = time.monotonic() + 5
    while left := everything_below(scratch):
        assert time.monotonic() < deadline, f"left in scratch: {left}"
        time.sleep(0.02)


def test_instances_come_in_order_from_spool_and_elements_byte_exact(node: Node) -> None:
    for number, places in ((5, ("se1",)), (1, ("se2",)), (4, ()), (2, ("se1", "se2")), (3, ())):
        node.put(number, *places, keep=not places)
    results = node.all()
    assert [r.located.instance_number for r in results] == [1, 2, 3, 4, 5]
    assert all(isinstance(r, Fetched) for r in results)
    assert node.registry.get_sample_value("dgis_fetched_objects_total", {"source": "spool"}) == 2
    assert node.registry.get_sample_value("dgis_fetched_objects_total", {"source": "se2"}) == 1
    assert node.registry.get_sample_value("dgis_fetched_objects_total", {"source": "se1"}) == 2


def test_a_spool_file_freed_while_it_is_held_stays_readable(node: Node) -> None:
    uid = node.put(1, keep=True)
    (result,) = node.retrieve.fetch(node.retrieve.plan(EVERYTHING))
    assert isinstance(result, Fetched)
    node.spool.free(node.catalog.instances[uid].sha256)
    assert result.path.read_bytes()[result.data_offset :][: result.data_length] == node.data[uid]
    result.release()


def test_an_object_freed_between_plan_and_fetch_is_located_anew(node: Node) -> None:
    uid = node.put(1, keep=True)
    record = node.catalog.instances[uid]
    plan = node.retrieve.plan(EVERYTHING)
    path = node.spool.find(record.sha256)
    assert path is not None
    spec = ObjectSpec(record.object_key, record.size, record.sha256)
    node.engine.store(spec, path, Doors("se1", ("https://se1",)))
    node.say(record.object_key, "se1", "object", "verified")
    node.spool.free(record.sha256)
    (result,) = node.retrieve.fetch(plan)
    assert isinstance(result, Fetched)
    assert node.catalog.locates == 2
    result.release()


def test_an_object_just_moving_inside_the_spool_is_waited_for(node: Node) -> None:
    data = data_set("1.2.3.1")
    entry = store(node.spool, "1.2.3.1", data=data)
    record = to_instance(entry.record, node="dgis-a")
    node.catalog.instances["1.2.3.1"] = node.catalog.objects[record.object_key] = record
    node.say(record.object_key, "dgis-a", "spool", "spooled")
    threading.Timer(0.1, node.spool.mark_registered, (entry,)).start()
    (result,) = node.retrieve.fetch(node.retrieve.plan(EVERYTHING))
    assert isinstance(result, Fetched)
    result.release()


def test_a_down_element_is_replaced_by_another(node: Node) -> None:
    node.put(1, "se1", "se2")
    node.engine.down = {"se1"}
    (result,) = node.all()
    assert isinstance(result, Fetched)


def test_one_that_cannot_be_had_never_ends_the_rest(node: Node) -> None:
    node.put(1, "se1")
    node.put(2, "se2")
    node.put(3)
    node.put(4, "se1")
    node.engine.down = {"se2"}
    results = node.all()
    assert [type(r) for r in results] == [Fetched, Failed, Failed, Fetched]
    assert all(r.reason and "1.2.3" not in r.reason for r in results if isinstance(r, Failed))
    assert node.registry.get_sample_value("dgis_fetch_failures_total") == 2


def test_reading_ahead_runs_in_parallel_within_its_bounds_and_keeps_the_order(tmp_path: Path) -> None:
    node = Node(tmp_path / "spool", ReadAhead(objects=3, bytes=10_000_000, parallel=3))
    for number in range(1, 10):
        node.put(number, "se1")
    node.engine.slow = 0.1
    began = time.monotonic()
    results = node.all()
    assert [r.located.instance_number for r in results] == list(range(1, 10))
    assert node.engine.most_running == 3
    assert time.monotonic() - began < 0.8


def test_reading_ahead_stops_at_its_bounds(tmp_path: Path) -> None:
    node = Node(tmp_path / "spool", ReadAhead(objects=8, bytes=250_000, parallel=4))
    for number in range(1, 7):
        node.put(number, "se1", size=100_000)
    results = node.retrieve.fetch(node.retrieve.plan(EVERYTHING))
    first = next(results)
    assert isinstance(first, Fetched)
    time.sleep(0.3)
    assert len(everything_below(node.spool.root / "scratch")) == 2
    first.release()
    for result in results:
        assert isinstance(result, Fetched)
        result.release()


def test_an_object_larger_than_the_bound_is_read_alone(tmp_path: Path) -> None:
    node = Node(tmp_path / "spool", ReadAhead(bytes=1000))
    node.put(1, "se1", size=50_000)
    node.put(2, "se1", size=50_000)
    assert [type(r) for r in node.all()] == [Fetched, Fetched]
    assert node.engine.most_running == 1


def test_cancel_ends_within_a_second_and_leaves_nothing_behind(node: Node) -> None:
    for number in range(1, 9):
        node.put(number, "se1")
    node.engine.slow = 30.0
    cancel = threading.Event()
    threading.Timer(0.2, cancel.set).start()
    began = time.monotonic()
    assert list(node.retrieve.fetch(node.retrieve.plan(EVERYTHING), cancelled=cancel.is_set)) == []
    assert time.monotonic() - began < 1.0


def test_closing_the_iterator_stops_the_transfers(node: Node) -> None:
    for number in range(1, 9):
        node.put(number, "se1")
    results = node.retrieve.fetch(node.retrieve.plan(EVERYTHING))
    first = next(results)
    assert isinstance(first, Fetched)
    first.release()
    results.close()  # type: ignore[attr-defined]


def test_a_plan_is_refused_when_the_catalog_does_not_answer_in_full(node: Node) -> None:
    node.put(1, "se1")
    node.put(2, "se1")
    node.catalog.cut_after = 1
    with pytest.raises(RetrieveUnavailable):
        node.retrieve.plan(EVERYTHING)
    node.catalog.down = True
    with pytest.raises(RetrieveUnavailable):
        node.retrieve.plan(EVERYTHING)


def test_several_retrieves_at_once_do_not_mix(node: Node) -> None:
    for number in range(1, 6):
        node.put(number, "se1")
    plans = [node.retrieve.fetch(node.retrieve.plan(EVERYTHING)) for _ in range(3)]
    for results in itertools.zip_longest(*plans):
        assert len({result.path for result in results}) == 3
        assert len({result.located.instance_uid for result in results}) == 1
        for result in results:
            result.release()


def test_a_corrupt_copy_is_reported_as_suspect_and_an_absent_catalog_does_not_matter(node: Node) -> None:
    uid = node.put(1, "se1", "se2")
    key = object_key(node.catalog.instances[uid].sha256)
    reporter = BlameReporter(node.catalog)
    reporter(Blame("se1", key, "corrupt", "digest differs"))
    reporter(Blame("se2", key, "unreachable", "refused"))
    assert node.catalog.verified(key) == {"se2"}
    node.catalog.down = True
    reporter(Blame("se2", key, "corrupt", "digest differs"))
    node.catalog.down = False
    (result,) = node.all()
    assert isinstance(result, Fetched)
    assert node.registry.get_sample_value("dgis_fetched_objects_total", {"source": "se2"}) == 1
