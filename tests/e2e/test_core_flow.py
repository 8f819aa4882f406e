"""Spool, worker, search and retrieve against a real catalog and two real storage elements over mutual TLS."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from catalog.wire import LocateRequest, Match, Query
from dgis.board import Unreachable, read_board
from dgis.copier import CopyPlan
from dgis.elements import Elements
from dgis.errors import RetrieveUnavailable, SearchIncomplete
from dgis.ingest import Ingest, Promise
from dgis.metrics import make_metrics
from dgis.retrieve import Fetched, Retrieve
from dgis.search import Search
from dgis.sources import BlameReporter, Sources
from dgis.spool import Spool
from dgis.worker import Worker, WorkerSettings
from storage_provider.channels import open_channels
from storage_provider.transfer.engine import Engine
from tests.helpers.objects import data_set
from tests.helpers.pki import SiteHome
from tests.helpers.services import Services, services
from tests.helpers.spooling import arrival, everything_below

pytestmark = pytest.mark.xdist_group("core-flow")
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def grid(site: SiteHome, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    with services(site, tmp_path_factory.mktemp("core-flow"), "se1", "se2") as running:
        yield running


class Node:
    """One DGIS without its edge: receivers' rooms here, the worker as a process of its own."""

    def __init__(self, grid: Services, root: Path, study: str) -> None:
        self.grid, self.root, self.study = grid, root, study
        self.spool = Spool(root)
        metrics = make_metrics(CollectorRegistry())
        self.ingest = Ingest(self.spool, metrics)
        catalog = grid.client()
        self.engine = Engine(open_channels(grid.session()), on_blame=BlameReporter(catalog))
        elements = Elements(catalog)
        unreachable = Unreachable(root)
        sources = Sources(self.spool, self.engine, elements, site="a", metrics=metrics, unreachable=unreachable)
        self.retrieve = Retrieve(catalog, sources, elements, metrics)
        self.search = Search(catalog, unreachable, metrics)
        self.catalog = catalog
        self.data: dict[str, bytes] = {}
        self.worker = -1

    def start_worker(self) -> None:
        self.worker = os.fork()
        if self.worker == 0:
            try:
                self._work()
            finally:
                os._exit(1)

    def _work(self) -> None:
        stop = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
        engine = Engine(open_channels(self.grid.session()))
        plan = CopyPlan(node="dgis-a", site="a", copies=2)
        metrics = make_metrics(CollectorRegistry())
        Worker(Spool(self.root), self.grid.client(), engine, WorkerSettings(plan), metrics).run(stop)
        os._exit(0)

    def kill_worker(self) -> None:
        self.end_worker(signal.SIGKILL)

    def end_worker(self, number: signal.Signals = signal.SIGTERM) -> int:
        if self.worker < 0:
            return 0
        worker, self.worker = self.worker, -1
        os.kill(worker, number)
        return os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])

    def store(self, number: int, *, pixels: bytes = b"\x01" * 4000) -> str:
        uid = f"{self.study}.{number}"
        data = data_set(uid, study=self.study, series=f"{self.study}.0", number=number, pixels=pixels)
        receiving = self.ingest.begin(arrival(uid, association="as1"))
        for start in range(0, len(data), 65536):
            receiving.write(data[start : start + 65536])
        receiving.commit()
        self.data.setdefault(uid, data)
        return uid

    def found(self) -> set[str]:
        query = Query(
            level="IMAGE",
            matches=(Match(keyword="StudyInstanceUID", op="eq", values=(self.study,)),),
            keys=("SOPInstanceUID",),
        )
        return {str(row["SOPInstanceUID"]) for row in self.search.find(query)}

    def fetched(self) -> set[str]:
        """Retrieve the study; every data set must be byte-identical."""
        seen = set()
        plan = self.retrieve.plan(LocateRequest(studies=(self.study,)))
        for result in self.retrieve.fetch(plan):
            assert isinstance(result, Fetched), result
            with result.path.open("rb") as stream:
                stream.seek(result.data_offset)
                assert stream.read(result.data_length) == self.data[result.located.instance_uid]
            result.release()
            seen.add(result.located.instance_uid)
        return seen

    def verified(self) -> list[set[str]]:
        located = self.catalog.locate(LocateRequest(studies=(self.study,)))
        return [{r.location for r in one.replicas if (r.kind, r.state) == ("object", "verified")} for one in located]

    def drained(self) -> bool:
        return self.spool.backlog().count == 0


@pytest.fixture
def node(grid: Services, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Node]:
    node = Node(grid, tmp_path / "spool", f"1.2.{zlib.crc32(request.node.name.encode())}")
    yield node
    node.end_worker()
    for service in (grid.catalog, *grid.elements.values()):
        if service.process is None:
            service.start()


def until(condition: Callable[[], object], *, seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def test_stored_found_by_release_copied_twice_freed_and_retrieved(node: Node) -> None:
    node.start_worker()
    stored = {node.store(number) for number in range(1, 41)}
    assert node.ingest.settle("as1")
    assert node.found() == stored
    assert node.fetched() == stored, "also while they lie in the spool only"
    until(node.drained)
    assert node.verified() == [{"se1", "se2"}] * 40
    assert node.fetched() == stored
    assert everything_below(node.root) == []
    assert node.end_worker() == 0


def test_a_large_object_goes_in_and_out_in_chunks(node: Node) -> None:
    node.start_worker()
    uid = node.store(1, pixels=os.urandom(MIB) * 13)
    until(node.drained)
    (located,) = node.catalog.locate(LocateRequest(instances=(uid,)))
    assert len(located.object.chunks) == 4
    assert node.fetched() == {uid}


def test_storing_goes_on_without_catalog_and_without_an_element_and_catches_up(node: Node) -> None:
    node.grid.catalog.kill()
    node.grid.elements["se2"].kill()
    node.start_worker()
    stored = {node.store(number) for number in range(1, 11)}
    assert not node.ingest.settle("as1", timeout=0.5)
    with pytest.raises(SearchIncomplete):
        node.found()
    with pytest.raises(RetrieveUnavailable):
        node.fetched()
    node.grid.catalog.start()
    until(lambda: node.found() == stored)
    until(lambda: node.verified() == [{"se1"}] * 10)
    assert node.spool.backlog().count == 10
    until(lambda: (board := read_board(node.root)) is not None and board.unreachable == ("se2",))
    assert node.fetched() == stored
    node.grid.elements["se2"].start()
    until(node.drained, seconds=30)
    assert node.verified() == [{"se1", "se2"}] * 10


def test_retrieve_uses_the_element_that_is_left(node: Node) -> None:
    node.start_worker()
    stored = {node.store(number) for number in range(1, 6)}
    until(node.drained)
    node.grid.elements["se1"].kill()
    began = time.monotonic()
    assert node.fetched() == stored
    assert time.monotonic() - began < 5


def test_other_content_under_one_uid_is_quarantined_with_copies_of_its_own(node: Node) -> None:
    node.start_worker()
    uid = node.store(1)
    assert node.ingest.settle("as1")
    node.store(1, pixels=b"\x02" * 4000)
    node.store(1)
    until(node.drained)
    conflicts = [c for c in node.grid.operator().conflicts() if c.instance_uid == uid]
    assert [c.kind for c in conflicts] == ["content"]
    quarantined = conflicts[0].quarantined
    assert quarantined is not None
    for service in node.grid.elements.values():
        assert node.engine.channel(service.url + "/areas/main").stat(quarantined.object_key).size == quarantined.size
    assert node.fetched() == {uid}, "the first copy is kept"


def test_replicated_success_means_two_verified_copies(node: Node) -> None:
    node.start_worker()
    node.ingest = Ingest(
        node.spool, make_metrics(CollectorRegistry()), promise=Promise(accept="replicated", timeout=20)
    )
    node.store(1)
    assert node.verified() == [{"se1", "se2"}]


def test_kill_minus_nine_of_everything_loses_nothing_and_doubles_nothing(node: Node) -> None:
    node.start_worker()
    elements = node.grid.elements
    victims = [node.kill_worker, elements["se1"].kill, node.grid.catalog.kill, elements["se2"].kill, node.kill_worker]
    number = 0
    for victim in victims:
        for _ in range(15):
            number += 1
            node.store(number)
        time.sleep(random.uniform(0.0, 0.3))
        victim()
        for service in (node.grid.catalog, *node.grid.elements.values()):
            if service.process is None:
                service.start()
        if node.worker < 0:
            node.start_worker()
    until(node.drained, seconds=40)
    assert node.found() == set(node.data)
    assert node.verified() == [{"se1", "se2"}] * number
    assert node.fetched() == set(node.data)
    assert node.spool.rejected() == () and node.spool.damaged() == ()
