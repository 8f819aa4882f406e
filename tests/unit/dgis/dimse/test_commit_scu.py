"""Storage commitment as SCU: stock SCPs and our own, reports on every way they may come."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, build_role, evt
from pynetdicom.sop_class import StorageCommitmentPushModel

from dgis.commit_answers import CommitAnswers
from dgis.dimse.commit_scu import Waiting, request_commitment
from dgis.dimse.commit_wire import (
    CommitmentError,
    Report,
    Request,
    read_report,
    read_request,
    write_report,
    write_request,
)
from dgis.dimse.limits import PeerAddress, Timeouts
from dgis.dimse.negotiation import DEFLATED_LE, EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE
from dgis.dimse.query_scu import PeerRefused, PeerSilent
from dgis.dimse.runtime.entity import GridAE
from tests.helpers.grid import free_port
from tests.helpers.objects import CT
from tests.unit.dgis.dimse.commitnode import MR, WELL_KNOWN, Node, item

REFERENCES = [(CT, "1.2.3.1"), (MR, "1.2.3.2")]
SYNTAXES = (IMPLICIT_LE, EXPLICIT_LE, EXPLICIT_BE, DEFLATED_LE)


def scu(title: str = "DGIS") -> GridAE:
    return GridAE(title, timeouts=Timeouts(connect=1, acse=2, dimse=3, send=2, close=0.5))


@dataclass
class Archive:
    """A stock SCP (pynetdicom) that reports at once: on the same association, or to `report_to`."""

    report_to: int | None = None
    status: int = 0x0000
    mute: bool = False
    refuse_second: bool = True
    port: int = 0
    asked: list[Dataset] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)

    @contextlib.contextmanager
    def running(self) -> Iterator[Archive]:
        ae = AE("ARCHIVE")
        ae.add_supported_context(StorageCommitmentPushModel, [IMPLICIT_LE])
        handlers = [(evt.EVT_N_ACTION, self._act)]
        server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)  # type: ignore[arg-type]
        assert server is not None
        self.port = server.socket.getsockname()[1]
        try:
            yield self
        finally:
            server.shutdown()

    @property
    def address(self) -> PeerAddress:
        return PeerAddress("ARCHIVE", "127.0.0.1", self.port)

    def _act(self, event: Any) -> tuple[int, None]:
        self.asked.append(event.action_information)
        if self.status == 0 and not self.mute:
            threading.Thread(target=self._report, args=(event.assoc, event.action_information)).start()
        return self.status, None

    def _report(self, association: Any, asked: Dataset) -> None:
        time.sleep(0.1)
        told = Dataset()
        told.TransactionUID = asked.TransactionUID
        told.ReferencedSOPSequence = asked.ReferencedSOPSequence[:1]
        refused = item(str(asked.ReferencedSOPSequence[1].ReferencedSOPClassUID), "1.2.3.2")
        refused.FailureReason = 0x0112
        told.FailedSOPSequence = [refused]
        if self.report_to is not None:
            ae = AE("ARCHIVE")
            ae.add_requested_context(StorageCommitmentPushModel)
            role = build_role(StorageCommitmentPushModel, scp_role=True)
            association = ae.associate("127.0.0.1", self.report_to, ae_title="DGIS", ext_neg=[role])
            assert association.is_established
        status, _ = association.send_n_event_report(told, 2, StorageCommitmentPushModel, WELL_KNOWN)
        self.answers.append(status.Status)
        if self.report_to is not None:
            association.release()


def committed_first_only(report: Report) -> None:
    assert report.committed == (REFERENCES[0],)
    assert report.failed == ((*REFERENCES[1], 0x0112),)


def test_a_report_on_the_same_association() -> None:
    with Archive().running() as archive:
        committed_first_only(request_commitment(scu(), archive.address, [*REFERENCES, REFERENCES[0]]))
    assert archive.answers == [0x0000]
    assert [i.ReferencedSOPInstanceUID for i in archive.asked[0].ReferencedSOPSequence] == ["1.2.3.1", "1.2.3.2"]


def test_a_report_to_a_listener_of_ours() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    with listener, Archive(report_to=listener.getsockname()[1]).running() as archive:
        report = request_commitment(scu(), archive.address, REFERENCES, waiting=Waiting(5, listener))
    committed_first_only(report)
    assert archive.answers == [0x0000]


def test_a_report_to_a_receiver_of_the_node(node: Node) -> None:
    node.declare(node.requester("ARCHIVE"))
    answers = CommitAnswers(node.spool.root)
    with Archive(report_to=node.port).running() as archive:
        committed_first_only(
            request_commitment(scu(), archive.address, REFERENCES, waiting=Waiting(5, answers=answers))
        )
    assert archive.answers == [0x0000]
    assert list((node.store.root / "asked").iterdir()) == []


def test_a_report_that_nobody_waits_for_is_refused_and_not_kept(node: Node) -> None:
    node.declare(node.requester("ARCHIVE"))
    with Archive(report_to=node.port).running() as archive, pytest.raises(PeerSilent, match="no report came"):
        request_commitment(scu(), archive.address, REFERENCES, waiting=Waiting(1.0, answers=None, listener=_unused()))
    assert archive.answers == [0x0110]
    assert list((node.store.root / "asked").iterdir()) == []


def _unused() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def test_what_goes_wrong_is_said() -> None:
    nowhere = PeerAddress("ARCHIVE", "127.0.0.1", free_port())
    with pytest.raises(PeerSilent, match="nothing answers"):
        request_commitment(scu(), nowhere, REFERENCES)
    with Archive(status=0x0213).running() as archive, pytest.raises(PeerRefused, match="0213"):
        request_commitment(scu(), archive.address, REFERENCES)
    with Archive(mute=True).running() as archive, pytest.raises(PeerSilent, match="no report came within 1 s"):
        request_commitment(scu(), archive.address, REFERENCES, waiting=Waiting(1.0))
    with Archive(mute=True).running() as archive, pytest.raises(PeerSilent, match="stopped"):
        request_commitment(scu(), archive.address, REFERENCES, waiting=Waiting(9.0, stop=lambda: True))


def test_a_transaction_beyond_reason_is_refused_by_its_size(node: Node) -> None:
    node.declare(node.requester("OTHER"))
    peer = PeerAddress("DGIS", "127.0.0.1", node.port)
    references = [(CT, f"1.2.{n:060d}") for n in range(40_000)]
    with pytest.raises(PeerRefused, match="0213"):
        request_commitment(scu("OTHER"), peer, references)
    assert node.store.open() == []


@pytest.mark.parametrize("report", ["same_then_new", "new"])
def test_dgis_asks_dgis(make_node: Callable[..., Node], report: str) -> None:
    node = make_node(report=report)
    references = [node.knows("1.2.3.1"), (MR, "1.2.3.2")]
    peer = PeerAddress("DGIS", "127.0.0.1", node.port)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        asker = node.requester("OTHER", listen=False, port=listener.getsockname()[1])
        assert asker.port == listener.getsockname()[1]
        told = request_commitment(scu("OTHER"), peer, references, waiting=Waiting(8, listener))
    assert (told.committed, told.failed) == ((references[0],), ((MR, "1.2.3.2", 0x0112),))


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_what_is_written_is_read_in_every_syntax(syntax: str) -> None:
    request = Request("1.2.840.1", tuple(REFERENCES))
    assert read_request(write_request(request, syntax), syntax) == request
    for failed in ((), ((CT, "1.2.3.9", 0x0119), (MR, "1.2.3.8", 0x0213))):
        report = Report("1.2.840.1", tuple(REFERENCES), failed)
        raw = write_report(report, syntax, retrieve_ae="DGIS")
        assert read_report(raw, syntax) == report
        assert report.event_type == (2 if failed else 1)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_damaged_information_is_refused_and_nothing_else(syntax: str) -> None:
    """Every cut and many flips of a byte: read, or CommitmentError; never anything else."""
    whole = write_request(Request("1.2.840.1", tuple(REFERENCES)), syntax)
    damaged = [whole[:n] for n in range(len(whole))]
    damaged += [bytes((*whole[:n], whole[n] ^ flip, *whole[n + 1 :])) for n in range(len(whole)) for flip in (1, 0x80)]
    for raw in (*damaged, b"\xff" * 200):
        with contextlib.suppress(CommitmentError):
            read_request(raw, syntax)
        with contextlib.suppress(CommitmentError):
            read_report(raw, syntax)


def test_stock_peers_write_what_we_read(tmp_path: Path) -> None:
    """Undefined lengths, as many toolkits write their sequences."""
    from io import BytesIO

    from pydicom.filewriter import write_dataset

    asked = Dataset()
    asked.TransactionUID = "1.2.840.1"
    asked.ReferencedSOPSequence = [item(*reference) for reference in REFERENCES]
    asked["ReferencedSOPSequence"].is_undefined_length = True
    for one in asked.ReferencedSOPSequence:
        one.is_undefined_length_sequence_item = True
    from pydicom.filebase import DicomBytesIO

    target = DicomBytesIO()
    target.is_little_endian, target.is_implicit_VR = True, True
    write_dataset(target, asked)
    raw = target.parent.getvalue() if isinstance(target.parent, BytesIO) else target.getvalue()
    assert read_request(raw, IMPLICIT_LE) == Request("1.2.840.1", tuple(REFERENCES))
