"""A node for storage commitment: receiver, worker and a catalog in memory; and a modality that asks."""

from __future__ import annotations

import contextlib
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
from dgis.commit_answers import CommitAnswers
from dgis.commit_store import CommitmentStore
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
from tests.unit.dgis.dimse.conftest import SETTINGS
from tests.unit.dgis.dimse.doubles import IngestDouble, RetrieveDouble, SearchDouble

WELL_KNOWN = "1.2.840.10008.1.20.1.1"
MR = "1.2.840.10008.5.1.4.1.1.4"
QUICK = Timeouts(connect=2, acse=8, dimse=8, send=8, close=0.5)
FAST = CommitRules(copies=2, timeout=30.0, grace=0.6, retry=60.0, turn=0.05)
NOTHING = 0.5  # seconds after which what has not come does not come: several turns of the worker


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

    def __init__(
        self, node: Node, title: str = "CT1", *, listen: bool = True, port: int = 0, roles: bool = True
    ) -> None:
        self.node, self.title = node, title
        self.told: queue.Queue[Told] = queue.Queue()
        self.answer = 0x0000
        self.port, self.roles = port, roles
        self._server: Any = None
        if listen:
            self.listen()

    def listen(self) -> None:
        ae = AE(self.title)
        roles = {"scu_role": False, "scp_role": True} if self.roles else {}
        ae.add_supported_context(StorageCommitmentPushModel, **roles)  # type: ignore[arg-type]
        ae.add_supported_context(Verification)
        handlers = [(evt.EVT_N_EVENT_REPORT, self._take, [False])]
        address = ("127.0.0.1", self.port)
        self._server = ae.start_server(address, block=False, evt_handlers=handlers)  # type: ignore[arg-type]
        self.port = self._server.socket.getsockname()[1]

    def deafen(self) -> None:
        self._server.shutdown()
        self._server = None

    def close(self) -> None:
        if self._server is not None:
            threading.Thread(target=self._server.shutdown, daemon=True).start()  # polls every half second

    def _take(self, event: Any, same: bool) -> tuple[int, None]:
        information, answer = event.event_information, self.answer
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
        return answer, None

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

    def hears(self, *, within: float = 20.0) -> Told:
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
        self._requesters: list[Requester] = []

    def start(self) -> Node:
        self.start_receiver()
        self.start_worker()
        return self

    def start_receiver(self) -> None:
        settings = replace(SETTINGS, commit_report=self.rules.report)
        doubles = (IngestDouble(self.root / "store"), SearchDouble(), RetrieveDouble())
        services = Services(
            *doubles,
            self.table,
            commitment=CommitmentStore(self.spool.root),
            commit_answers=CommitAnswers(self.spool.root),
        )
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

    def close(self) -> None:
        """Stop, with every requester; it is not started again."""
        self.stop()
        for requester in self._requesters:
            requester.close()

    def stop(self, *names: str) -> None:
        for name in names or tuple(self._ends):
            if (end := self._ends.pop(name, None)) is not None:
                end()

    def requester(self, title: str = "CT1", *, reachable: bool = True, **other: Any) -> Requester:
        """A modality in the AE table, with its port unless it is not `reachable`."""
        made = Requester(self, title, **other)
        self._requesters.append(made)
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


def until(condition: Callable[[], object], *, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
