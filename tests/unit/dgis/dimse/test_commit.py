"""Storage commitment as SCP: a real requester on one side, a catalog in memory on the other."""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE, evt
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification

from catalog.wire import Conflict, InstanceRecord, RawHeader, ReplicaRef
from dgis.board import ErrorList
from dgis.commitment import CommitmentStore, ReportBy
from dgis.committer import CommitRules, Committer
from dgis.dimse.ae import AeEntry, AeTable, Right, UnknownAe
from dgis.dimse.commit_report import EventReporter
from dgis.dimse.limits import Timeouts
from dgis.dimse.serve import serve_dimse
from dgis.dimse.services import Services
from dgis.metrics import make_metrics
from dgis.spool import Spool
from storage_provider.keys import object_key
from tests.helpers.doubles import MemoryCatalog
from tests.helpers.objects import CT
from tests.helpers.spooling import store
from tests.unit.dgis.dimse.conftest import SETTINGS
from tests.unit.dgis.dimse.doubles import IngestDouble, RetrieveDouble, SearchDouble

WELL_KNOWN = "1.2.840.10008.1.20.1.1"
MR = "1.2.840.10008.5.1.4.1.1.4"
QUICK = Timeouts(connect=1, acse=2, dimse=2, send=2, close=0.5)
FAST = CommitRules(copies=2, timeout=30.0, grace=0.6, retry=60.0)
NOTHING = 0.9  # seconds after which what has not come does not come: several turns of the worker


@dataclass
class Told:
    """One N-EVENT-REPORT as the requester saw it."""

    event: int
    transaction: str
    committed: list[tuple[str, str]]
    failed: dict[str, int]
    retrieve_ae: str
    same: bool


class Requester:
    """A modality: asks on one association, listens for reports on a port and on the association it asked on."""

    def __init__(self, node: Node, title: str = "CT1", *, listen: bool = True, port: int = 0) -> None:
        self.node, self.title = node, title
        self.told: queue.Queue[Told] = queue.Queue()
        self.answer = 0x0000
        self.port = port
        self._server: Any = None
        if listen:
            self.listen()

    def listen(self) -> None:
        ae = AE(self.title)
        ae.add_supported_context(StorageCommitmentPushModel, scu_role=False, scp_role=True)
        ae.add_supported_context(Verification)
        handlers = [(evt.EVT_N_EVENT_REPORT, self._take, [False])]
        address = ("127.0.0.1", self.port)
        self._server = ae.start_server(address, block=False, evt_handlers=handlers)  # type: ignore[arg-type]
        self.port = self._server.socket.getsockname()[1]

    def deafen(self) -> None:
        self._server.shutdown()

    def _take(self, event: Any, same: bool) -> tuple[int, None]:
        information = event.event_information
        failed = {i.ReferencedSOPInstanceUID: i.FailureReason for i in information.get("FailedSOPSequence", [])}
        committed = [
            (str(i.ReferencedSOPClassUID), str(i.ReferencedSOPInstanceUID))
            for i in information.get("ReferencedSOPSequence", [])
        ]
        self.told.put(
            Told(
                event.event_type,
                str(information.TransactionUID),
                committed,
                failed,
                str(information.get("RetrieveAETitle", "")),
                same,
            )
        )
        return self.answer, None

    @contextlib.contextmanager
    def association(self) -> Iterator[Any]:
        ae = AE(self.title)
        ae.add_requested_context(StorageCommitmentPushModel)
        association = ae.associate(
            "127.0.0.1",
            self.node.port,
            ae_title="DGIS",
            evt_handlers=[(evt.EVT_N_EVENT_REPORT, self._take, [True])],  # type: ignore[list-item]
        )
        assert association.is_established
        try:
            yield association
        finally:
            association.release()

    def ask(self, *references: tuple[str, str], transaction: str | None = None) -> str:
        """Ask and release; the status must be Success."""
        transaction = transaction or generate_uid()
        with self.association() as association:
            assert request(association, information(transaction, references)) == 0x0000
        return transaction

    def hears(self, *, within: float = 6.0) -> Told:
        return self.told.get(timeout=within)

    def hears_nothing(self) -> None:
        with pytest.raises(queue.Empty):
            self.told.get(timeout=NOTHING)


def information(transaction: str, references: Sequence[tuple[str, str]]) -> Dataset:
    action = Dataset()
    action.TransactionUID = transaction
    action.ReferencedSOPSequence = [item(*reference) for reference in references]
    return action


def item(sop_class: str, instance: str) -> Dataset:
    made = Dataset()
    made.ReferencedSOPClassUID, made.ReferencedSOPInstanceUID = sop_class, instance
    return made


def request(association: Any, data: Dataset | None, *, action: int = 1, instance: str = WELL_KNOWN) -> int:
    """Send an N-ACTION and return its status."""
    status, _ = association.send_n_action(data, action, StorageCommitmentPushModel, instance)
    assert "Status" in status, "no response"
    return int(status.Status)


@dataclass
class Node:
    """A receiver and a worker's committer over one spool; both can be stopped and started again."""

    root: Path
    rules: CommitRules = FAST
    catalog: MemoryCatalog = field(default_factory=MemoryCatalog)
    rights: tuple[Right, ...] = ("echo", "store", "commit")
    port: int = 0

    def __post_init__(self) -> None:
        self.spool = Spool(self.root / "spool")
        self.store = CommitmentStore(self.spool.root)
        self.table = AeTable(self.root / "ae.toml", unknown=UnknownAe(rights=frozenset({"echo"})))
        self.registry = CollectorRegistry()
        self.errors = ErrorList()
        self._ends: dict[str, Callable[[], None]] = {}

    def start(self) -> Node:
        self.start_receiver()
        self.start_worker()
        return self

    def start_receiver(self) -> None:
        settings = replace(SETTINGS, commit_report=self.rules.report)
        doubles = (IngestDouble(self.root / "store"), SearchDouble(), RetrieveDouble())
        services = Services(*doubles, self.table, commitment=CommitmentStore(self.spool.root))
        listener = socket.create_server(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        stop = threading.Event()
        thread = threading.Thread(target=serve_dimse, args=(listener, settings, services, stop))
        thread.start()

        def end() -> None:
            stop.set()
            thread.join(10)
            listener.close()

        self._ends["receiver"] = end

    def start_worker(self) -> None:
        self.registry = CollectorRegistry()
        self.committer = Committer(
            Spool(self.spool.root),
            CommitmentStore(self.spool.root),
            self.catalog,
            EventReporter(self.table, aet="DGIS", timeouts=QUICK),
            self.rules,
            metrics=make_metrics(self.registry),
            errors=self.errors,
        )
        stop = threading.Event()
        thread = threading.Thread(target=self.committer.run, args=(stop,))
        thread.start()

        def end() -> None:
            stop.set()
            thread.join(10)
            assert not thread.is_alive()

        self._ends["worker"] = end

    def stop(self, *names: str) -> None:
        for name in names or tuple(self._ends):
            if (end := self._ends.pop(name, None)) is not None:
                end()

    def requester(self, title: str = "CT1", *, reachable: bool = True, **other: Any) -> Requester:
        """A modality in the AE table, with its port unless it is not `reachable`."""
        made = Requester(self, title, **other)
        self.declare(made, reachable=reachable)
        return made

    def declare(self, requester: Requester, *, reachable: bool = True) -> None:
        host, port = ("127.0.0.1", requester.port) if reachable else ("", 0)
        self.table.put(AeEntry(title=requester.title, host=host, port=port, rights=self.rights))

    def knows(self, instance: str, *, sop_class: str = CT, copies: int = 2) -> tuple[str, str]:
        """Have the catalog know an instance with so many verified copies, and one that lies in a spool only."""
        sha = f"{abs(hash(instance)):064x}"[-64:]
        record = InstanceRecord(
            instance_uid=instance,
            sop_class_uid=sop_class,
            transfer_syntax_uid="1.2.840.10008.1.2.1",
            data_sha256=sha,
            sha256=sha,
            size=1,
            object_key=object_key(sha),
            header=RawHeader.pack(b"", syntax="1.2.840.10008.1.2.1", complete=True),
            received_at=datetime.now(UTC),
            spooled_at="dgis",
        )
        self.catalog.instances[instance] = self.catalog.objects[record.object_key] = record
        places = [("object", f"se{n}", "verified") for n in range(copies)]
        for kind, place, state in (*places, ("spool", "dgis", "spooled"), ("object", "sick", "suspect")):
            self.catalog.replicas[record.object_key, kind, place] = ReplicaRef.model_validate(
                {"location": place, "kind": kind, "state": state}
            )
        return sop_class, instance

    def contest(self, instance: str, ae: str, *, kind: str = "content") -> None:
        self.catalog.open_conflicts.append(
            Conflict.model_validate(
                {
                    "id": "c",
                    "instance_uid": instance,
                    "kind": kind,
                    "state": "open",
                    "opened_at": datetime.now(UTC),
                    "source_ae": ae,
                }
            )
        )

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0


@pytest.fixture
def make_node(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    made: list[Node] = []

    def make(*, report: ReportBy = "new", start: bool = True, **rules: Any) -> Node:
        node = Node(tmp_path / f"node{len(made)}", rules=replace(FAST, report=report, **rules))
        made.append(node)
        return node.start() if start else node

    yield make
    for node in made:
        node.stop()


@pytest.fixture
def node(make_node: Callable[..., Node]) -> Node:
    return make_node()


def until(condition: Callable[[], object], *, seconds: float = 6.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


# --- what is committed -----------------------------------------------------------------------------------------------


def test_committed_with_k_verified_copies_and_reported_on_a_new_association(node: Node) -> None:
    modality = node.requester()
    references = [node.knows("1.2.3.1"), node.knows("1.2.3.2", sop_class=MR)]
    transaction = modality.ask(*references)
    assert modality.hears() == Told(1, transaction, references, {}, "DGIS", same=False)
    until(lambda: [one.state for one in node.store.closed()] == ["reported"])
    modality.hears_nothing()  # once is enough
    assert node.store.open() == []
    assert node.count("dgis_commitment_instances_total", outcome="committed") == 2
    assert node.count("dgis_commitment_reports_total", outcome="taken") == 1


def test_the_transaction_is_held_until_the_copies_are_there(node: Node) -> None:
    modality = node.requester()
    ready, late = node.knows("1.2.3.1"), node.knows("1.2.3.2", copies=1)
    modality.ask(ready, late)
    modality.hears_nothing()
    until(lambda: node.committer.shown.pending == 1)
    node.knows("1.2.3.2", copies=2)
    assert modality.hears().committed == [ready, late]


def test_each_failure_has_its_reason(node: Node) -> None:
    modality = node.requester()
    good, conflicting = node.knows("1.2.3.1"), node.knows("1.2.3.4")
    node.knows("1.2.3.3", sop_class=MR)
    node.contest("1.2.3.4", "CT1")
    modality.ask(good, (CT, "1.2.3.2"), (CT, "1.2.3.3"), conflicting)
    told = modality.hears()
    assert (told.event, told.committed) == (2, [good])
    assert told.failed == {"1.2.3.2": 0x0112, "1.2.3.3": 0x0119, "1.2.3.4": 0x0110}
    assert node.count("dgis_commitment_instances_total", outcome="0112") == 1


def test_a_conflict_of_another_sender_does_not_harm_and_one_of_syntax_does(node: Node) -> None:
    modality = node.requester()
    others, mine = node.knows("1.2.3.1"), node.knows("1.2.3.2")
    node.contest("1.2.3.1", "OTHER")
    node.contest("1.2.3.2", "CT1", kind="syntax")
    modality.ask(others, mine)
    told = modality.hears()
    assert (told.committed, told.failed) == ([others], {"1.2.3.2": 0x0110})


def test_an_unknown_instance_may_still_come_for_a_moment(make_node: Callable[..., Node]) -> None:
    node = make_node(grace=5.0)
    modality = node.requester()
    modality.ask((CT, "1.2.3.1"))
    modality.hears_nothing()
    reference = node.knows("1.2.3.1")
    assert modality.hears().committed == [reference]


def test_what_lies_unregistered_in_the_inbox_is_pending(node: Node) -> None:
    """Also when the catalog knows k copies under that UID: the inbox may hold another content from this sender."""
    entry = store(node.spool, "1.2.3.1", sender="CT1")
    modality = node.requester()
    reference = node.knows("1.2.3.1")
    modality.ask(reference, (CT, "1.2.3.2"))
    modality.hears_nothing()
    node.contest("1.2.3.1", "CT1")  # the worker registers it: it was another content
    node.spool.discard(entry)
    assert modality.hears().failed == {"1.2.3.1": 0x0110, "1.2.3.2": 0x0112}


def test_time_is_up_at_the_commit_timeout(make_node: Callable[..., Node]) -> None:
    node = make_node(timeout=1.5)
    modality = node.requester()
    good = node.knows("1.2.3.1")
    node.knows("1.2.3.2", copies=1)
    store(node.spool, "1.2.3.3")
    modality.ask(good, (CT, "1.2.3.2"), (CT, "1.2.3.3"))
    told = modality.hears()
    assert (told.event, told.committed) == (2, [good])
    assert told.failed == {"1.2.3.2": 0x0213, "1.2.3.3": 0x0110}


def test_a_catalog_that_is_down_decides_nothing_until_time_is_up(make_node: Callable[..., Node]) -> None:
    node = make_node(timeout=2.5)
    modality = node.requester()
    reference = node.knows("1.2.3.1")
    node.catalog.down = True
    modality.ask(reference)
    modality.hears_nothing()
    node.catalog.down = False
    assert modality.hears().committed == [reference]
    node.catalog.down = True
    modality.ask(reference)
    assert modality.hears().failed == {"1.2.3.1": 0x0110}
    assert any("CatalogUnavailable" in error.text for error in node.errors.all())


def test_a_thousand_instances_in_one_transaction(node: Node) -> None:
    modality = node.requester()
    references = [node.knows(f"1.2.3.{n}", copies=0 if n % 10 == 0 else 2) for n in range(1, 1001)]
    locates = node.catalog.locates
    modality.ask(*references)
    modality.hears_nothing()
    assert node.catalog.locates - locates <= 8, "one question a look, and ever fewer looks"
    for n in range(10, 1001, 10):
        node.knows(f"1.2.3.{n}")
    told = modality.hears()
    assert (told.event, told.committed, told.failed) == (1, references, {})


def test_many_small_transactions_share_questions_and_associations(node: Node) -> None:
    modality = node.requester()
    references = [node.knows(f"1.2.3.{n}") for n in range(1, 41)]
    with modality.association() as association:
        for reference in references:
            assert request(association, information(generate_uid(), [reference])) == 0
    told = [modality.hears() for _ in references]
    assert sorted(one.committed[0][1] for one in told) == sorted(uid for _, uid in references)
    assert node.catalog.locates < 30


# --- the request -----------------------------------------------------------------------------------------------------


def test_the_right_is_needed(make_node: Callable[..., Node]) -> None:
    node = make_node(start=False)
    node.rights = ("echo", "store", "find")
    node.start()
    modality = node.requester()
    with modality.association() as association:
        assert request(association, information("1.2.3", [(CT, "1.2.3.1")])) == 0x0124
    assert node.store.open() == []


def test_out_of_place_requests_are_refused_by_their_own_status(node: Node) -> None:
    modality = node.requester()
    good = information("1.2.3", [(CT, "1.2.3.1")])
    bad_uid = information("1.2.3", [(CT, "1.2.3.1")])
    del bad_uid.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    untitled = information("1.2.3", [(CT, "1.2.3.1")])
    del untitled.TransactionUID
    nested = Dataset()
    nested.TransactionUID, nested.PatientName = "1.2.3", "X"
    with modality.association() as association:
        assert request(association, good, action=2) == 0x0123
        assert request(association, good, instance="1.2.3.4") == 0x0112
        assert request(association, None) == 0x0115
        assert request(association, information("1.2.3", [])) == 0x0115
        assert request(association, bad_uid) == 0x0115
        assert request(association, untitled) == 0x0115
        assert request(association, nested) == 0x0115
        status, _ = association.send_n_get([], StorageCommitmentPushModel, WELL_KNOWN)
        assert status.Status == 0x0211
        assert node.store.open() == []
        assert request(association, good) == 0x0000


def test_the_same_transaction_again(node: Node) -> None:
    modality = node.requester()
    held, other = node.knows("1.2.3.1", copies=1), node.knows("1.2.3.2")
    transaction = modality.ask(held)
    assert modality.ask(held, transaction=transaction) == transaction  # nobody minds a repetition
    with modality.association() as association:
        assert request(association, information(transaction, [other])) == 0x0110
    second = node.requester("CT2")
    second.ask(other, transaction=transaction)  # another AE's transactions are its own
    assert second.hears().committed == [other]
    node.knows("1.2.3.1")
    assert modality.hears().committed == [held]
    modality.hears_nothing()
    modality.ask(held, transaction=transaction)  # after its end it is a new one
    assert modality.hears().committed == [held]


def test_open_transactions_are_bounded(tmp_path: Path, node: Node) -> None:
    node.stop("receiver")
    node.catalog.down = True
    modality = node.requester()
    narrow = CommitmentStore(node.spool.root, limit=2)
    services = Services(IngestDouble(tmp_path / "s"), SearchDouble(), RetrieveDouble(), node.table, commitment=narrow)
    listener = socket.create_server(("127.0.0.1", node.port))
    stop = threading.Event()
    thread = threading.Thread(target=serve_dimse, args=(listener, SETTINGS, services, stop))
    thread.start()
    with modality.association() as association:
        answers = [request(association, information(f"1.2.{n}", [(CT, "1.2.3.1")])) for n in range(3)]
    stop.set()
    thread.join(10)
    listener.close()
    assert answers == [0x0000, 0x0000, 0x0213]


# --- the report ------------------------------------------------------------------------------------------------------


def test_on_the_same_association_while_it_is_open(make_node: Callable[..., Node]) -> None:
    node = make_node(report="same_then_new")
    modality = node.requester()
    first, second = node.knows("1.2.3.1"), node.knows("1.2.3.2")
    with modality.association() as association:
        assert request(association, information("1.2.10", [first])) == 0
        told = modality.hears()
        assert (told.same, told.committed) == (True, [first])
        until(lambda: not node.store.open())
        assert request(association, information("1.2.11", [second, (CT, "9.9")])) == 0
        told = modality.hears()
        assert (told.same, told.committed, told.failed) == (True, [second], {"9.9": 0x0112})
    modality.hears_nothing()
    assert [one.state for one in node.store.closed()] == ["reported", "reported"]


def test_on_a_new_association_when_the_same_has_ended(make_node: Callable[..., Node]) -> None:
    node = make_node(report="same_then_new")
    modality = node.requester()
    reference = node.knows("1.2.3.1", copies=1)
    modality.ask(reference)
    node.knows("1.2.3.1")
    assert modality.hears().same is False


def test_a_report_refused_on_the_same_association_is_repeated_on_a_new_one(make_node: Callable[..., Node]) -> None:
    node = make_node(report="same_then_new")
    modality = node.requester()
    reference = node.knows("1.2.3.1")
    modality.answer = 0x0110
    with modality.association() as association:
        assert request(association, information("1.2.10", [reference])) == 0
        assert modality.hears().same is True
        modality.answer = 0x0000
        assert modality.hears().same is False
    until(lambda: not node.store.open())


def test_only_the_same_association_means_given_up_without_it(make_node: Callable[..., Node]) -> None:
    node = make_node(report="same")
    modality = node.requester()
    reference = node.knows("1.2.3.1", copies=1)
    transaction = modality.ask(reference)
    node.knows("1.2.3.1")
    until(lambda: [one.state for one in node.store.closed()] == ["given_up"])
    modality.hears_nothing()
    assert node.store.closed()[0].transaction_uid == transaction
    assert "association ended" in node.store.closed()[0].note


def test_a_requester_without_address_is_told_on_its_association(node: Node) -> None:
    """Never at the address it called from: that may be a NAT, or somebody else's."""
    modality = node.requester(reachable=False)
    reference = node.knows("1.2.3.1")
    with modality.association() as association:
        assert request(association, information("1.2.10", [reference])) == 0
        assert modality.hears().same is True
    modality.ask(node.knows("1.2.3.2", copies=1))
    node.knows("1.2.3.2")
    until(lambda: any("dgis ae add CT1" in error.text for error in node.errors.all()))
    modality.hears_nothing()
    node.declare(modality)  # the operator does what the text says
    assert modality.hears(within=8).committed == [(CT, "1.2.3.2")]


def test_an_unreachable_requester_is_tried_again_and_keeps_nobody_waiting(node: Node) -> None:
    silent, modality = node.requester("CT2", listen=False, reachable=False), node.requester()
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # accepts connections, says nothing
        silent.port = deaf.getsockname()[1]
        node.declare(silent)
        reference = node.knows("1.2.3.1")
        silent.ask(reference)
        time.sleep(0.5)
        modality.ask(reference)
        assert modality.hears(within=2).committed == [reference]
        until(lambda: node.count("dgis_commitment_reports_total", outcome="failed") >= 1)
    silent.listen()
    assert silent.hears(within=8).committed == [reference]
    assert any("CT2" in error.text for error in node.errors.all())


def test_a_report_that_is_refused_is_repeated_then_given_up(make_node: Callable[..., Node]) -> None:
    node = make_node(retry=1.5)
    modality = node.requester()
    modality.answer = 0x0110
    modality.ask(node.knows("1.2.3.1"))
    modality.hears()
    until(lambda: [one.state for one in node.store.closed()] == ["given_up"])
    assert modality.told.qsize() >= 1, "it was repeated"
    assert node.count("dgis_commitment_reports_total", outcome="given_up") == 1
    key = node.store.closed()[0].key
    modality.answer = 0x0000
    assert node.store.retry(key)
    until(lambda: [one.state for one in node.store.closed()] == ["reported"])


# --- surviving -------------------------------------------------------------------------------------------------------


def test_a_transaction_survives_restarts_between_request_verdict_and_report(node: Node) -> None:
    modality = node.requester()
    node.stop("worker")
    reference = node.knows("1.2.3.1", copies=1)
    modality.ask(reference)
    node.stop()
    node.start()
    modality.hears_nothing()
    modality.deafen()
    node.knows("1.2.3.1")
    until(lambda: [one.state for one in node.store.open()] == ["judged"])
    node.stop()
    modality.listen()
    node.start()
    assert modality.hears().committed == [reference]
    until(lambda: not node.store.open())


def test_a_receiver_that_died_holds_nothing(make_node: Callable[..., Node]) -> None:
    node = make_node(report="same_then_new")
    modality = node.requester()
    reference = node.knows("1.2.3.1")
    stale = node.store.root / "held" / "4711-dead"
    stale.mkdir()
    (stale / ".lock").touch()
    from dgis.commitment import transaction_key

    (stale / transaction_key("CT1", "1.2.10")).touch()
    modality.ask(reference, transaction="1.2.10")
    assert modality.hears().committed == [reference]
    assert not stale.exists()


def test_files_hold_no_uid_in_their_names_and_rubbish_stops_nobody(node: Node) -> None:
    (node.store.root / "open" / "0.json").write_text("{")
    (node.store.root / "open" / "1.json").write_text(json.dumps({"state": "pending"}))
    modality = node.requester()
    transaction = modality.ask(node.knows("1.2.3.1", copies=1))
    until(lambda: node.committer.shown.pending == 1)
    names = [path.name for path in node.store.root.rglob("*")]
    assert not any(transaction in name or "CT1" in name for name in names)
    node.knows("1.2.3.1")
    modality.hears()
