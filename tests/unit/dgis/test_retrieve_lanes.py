"""Retrieve with lanes: small objects come in batches into memory; what a lane cannot give comes all the same."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from prometheus_client import CollectorRegistry

from dgis.elements import Elements
from dgis.lanes import Lanes
from dgis.metrics import make_metrics
from dgis.registrar import to_instance
from dgis.retrieve import Failed, Fetched, Held, Retrieve
from dgis.sources import BlameReporter, Sources
from dgis.spool import Spool
from storage_provider.checksum import CHUNK_BYTES
from storage_provider.transfer.engine import Engine, Patience
from tests.conformance.memory_channel import MemoryChannel, MemoryProvider
from tests.helpers.doubles import MemoryCatalog, element
from tests.helpers.objects import data_set
from tests.helpers.spooling import everything_below, store
from tests.unit.dgis.test_retrieve import EVERYTHING, Node


class LaneNode(Node):
    """A node with the real engine over storage elements in memory."""

    def __init__(self, root: Path) -> None:
        self.spool = Spool(root)
        self.catalog = MemoryCatalog(element("se1"), element("se2", "b"))
        self.far = {name: MemoryProvider(name) for name in ("se1", "se2")}
        self.real = Engine(
            lambda url: MemoryChannel(self.far[urlsplit(url).hostname or ""]),
            on_blame=BlameReporter(self.catalog),
            patience=Patience(stall_seconds=0.5),
        )
        self.registry = CollectorRegistry()
        self.elements = Elements(self.catalog)
        metrics = make_metrics(self.registry)
        self.sources = Sources(self.spool, self.real, self.elements, site="a", metrics=metrics, reading=self.real)
        self.retrieve = Retrieve(self.catalog, self.sources, self.elements, metrics)
        self.data: dict[str, bytes] = {}

    def put(self, number: int, *at: str, keep: bool = False, size: int = 1000) -> str:
        uid = f"1.2.3.{number}"
        data = self.data[uid] = data_set(uid, number=number, pixels=bytes([number % 251]) * size)
        entry = store(self.spool, uid, data=data, step=65536)
        path = self.spool.mark_registered(entry)
        record = to_instance(entry.record, node="dgis-a")
        self.catalog.instances[uid] = self.catalog.objects[record.object_key] = record
        for name in at:
            self.far[name].add(path.read_bytes()[: record.size])
            self.say(record.object_key, name, "object", "verified")
        if keep:
            self.say(record.object_key, "dgis-a", "spool", "spooled")
        else:
            self.spool.free(entry.record.sha256)
        return uid

    def key(self, uid: str) -> str:
        return self.catalog.instances[uid].object_key

    def kinds(self) -> list[type]:
        """Fetch everything and compare it; how each came."""
        results = list(self.retrieve.fetch(self.retrieve.plan(EVERYTHING)))
        for result in results:
            if isinstance(result, Failed):
                continue
            whole = b"".join(result.content) if isinstance(result, Held) else result.path.read_bytes()
            data = whole[result.data_offset :][: result.data_length]
            assert data == self.data[result.located.instance_uid], "byte-exact"
            result.release()
        assert [r.located.instance_number for r in results] == sorted(r.located.instance_number or 0 for r in results)
        return [type(result) for result in results]

    def count(self, source: str) -> float | None:
        return self.registry.get_sample_value("dgis_fetched_objects_total", {"source": source})


@pytest.fixture
def node(tmp_path: Path) -> Iterator[LaneNode]:
    node = LaneNode(tmp_path / "spool")
    yield node
    scratch = tmp_path / "spool" / "scratch"
    deadline = time.monotonic() + 5
    while left := everything_below(scratch):
        assert time.monotonic() < deadline, f"left in scratch: {left}"
        time.sleep(0.02)


def test_small_objects_come_into_memory_without_a_file(node: LaneNode) -> None:
    for number in range(1, 30):
        node.put(number, "se1", "se2")
    assert node.kinds() == [Held] * 29
    assert node.count("se1") == 29 and node.far["se2"].gets == 0, "the own site first"
    assert node.catalog.locates == 1


def test_every_way_in_the_order_of_the_plan(node: LaneNode) -> None:
    node.put(1, "se1")
    node.put(2, keep=True)
    node.put(3, "se2")
    node.put(4, "se1", size=CHUNK_BYTES + 1)
    node.put(5, "se1", keep=True)
    node.put(6, "se1", "se2")
    node.put(7)
    node.put(8, "se2")
    assert node.kinds() == [Held, Fetched, Held, Fetched, Fetched, Held, Failed, Held]
    assert node.count("spool") == 2


def test_a_bad_copy_is_blamed_and_the_good_one_is_sent(node: LaneNode) -> None:
    uids = [node.put(number, "se1", "se2") for number in range(1, 6)]
    data, at = node.far["se1"].objects[node.key(uids[2])]
    node.far["se1"].objects[node.key(uids[2])] = (data[:-1] + b"\xff", at)
    del node.far["se1"].objects[node.key(uids[3])]
    assert node.kinds() == [Held, Held, Fetched, Fetched, Held]
    assert node.catalog.verified(node.key(uids[2])) == {"se2"}
    assert node.catalog.verified(node.key(uids[3])) == {"se2"}


def test_an_element_that_is_away_is_left_for_the_other_one(node: LaneNode) -> None:
    for number in range(1, 21):
        node.put(number, "se1", "se2")
    node.far["se1"].faults.unreachable = True
    kinds = node.kinds()
    assert Failed not in kinds and kinds[-1] is Held, "the lane goes on at the other element"
    assert kinds.count(Fetched) <= 2
    assert (node.count("se2") or 0) == 20


def test_nothing_is_had_when_all_elements_are_away_and_it_does_not_take_long(node: LaneNode) -> None:
    for number in range(1, 31):
        node.put(number, "se1", "se2")
    for far in node.far.values():
        far.faults.unreachable = True
    assert node.kinds() == [Failed] * 30


def test_cancelling_ends_within_a_moment_and_stops_the_lane(node: LaneNode) -> None:
    for number in range(1, 9):
        node.put(number, "se1")
    node.far["se1"].faults.silent = True
    node.far["se1"].timeout = 3.0
    began = time.monotonic()
    cancelled = lambda: time.monotonic() - began > 0.2  # noqa: E731
    assert list(node.retrieve.fetch(node.retrieve.plan(EVERYTHING), cancelled=cancelled)) == []
    assert time.monotonic() - began < 1.0


def test_closing_the_iterator_stops_the_lane(node: LaneNode) -> None:
    for number in range(1, 40):
        node.put(number, "se1", size=500_000)
    results = node.retrieve.fetch(node.retrieve.plan(EVERYTHING))
    assert isinstance(next(results), Held)
    results.close()
    assert node.far["se1"].gets < 39, "the window bounds what is read ahead"


def test_a_silent_batch_is_given_up(node: LaneNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dgis.lanes._STALL_SECONDS", 0.3)
    for number in range(1, 6):
        node.put(number, "se1", "se2")
    node.far["se1"].faults.silent = True
    node.far["se1"].timeout = 3.0
    began = time.monotonic()
    assert node.kinds() == [Fetched] + [Held] * 4
    assert time.monotonic() - began < 2.5
    assert (node.count("se2") or 0) == 5


def test_lanes_of_nothing() -> None:
    lanes = Lanes(lambda sources: None, (), threading.BoundedSemaphore(1))
    lanes.close()


def test_without_a_place_objects_come_by_the_disk_and_places_come_back(
    node: LaneNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What all retrieves of a process hold in memory is bounded: the lanes of all together are."""
    monkeypatch.setattr("dgis.sources.LANES_AT_ONCE", 1)
    metrics = make_metrics(CollectorRegistry())
    sources = Sources(node.spool, node.real, node.elements, site="a", metrics=metrics, reading=node.real)
    node.put(1, "se1")
    plan = node.retrieve.plan(EVERYTHING)
    first = sources.lanes(plan.instances, acting_for=None)
    second = sources.lanes(plan.instances, acting_for=None)
    assert first.pop(plan.instances[0]) is not None and second.pop(plan.instances[0]) is None
    second.close()
    first.close()
    first.close()
    third = sources.lanes(plan.instances, acting_for=None)
    assert third.pop(plan.instances[0]) is not None
    third.close()
