"""C-ECHO and C-STORE with real peers."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pynetdicom import AE, build_context
from pynetdicom.sop_class import CTImageStorage

from tests.unit.dgis.dimse.conftest import Edge
from tests.unit.dgis.dimse.doubles import data_bytes, make_file


def test_echo_by_dcmtk_and_pynetdicom(edge: Edge, dcmtk: Any) -> None:
    result = dcmtk("echoscu", "-aec", "DGIS", "127.0.0.1", edge.port)
    assert result.returncode == 0, result.stderr
    edge.echo()


@pytest.mark.parametrize("nodelay", [True, False])
def test_dcmtk_stores_byte_exact(edge: Edge, dcmtk: Any, tmp_path: Path, nodelay: bool) -> None:
    files = [make_file(tmp_path / "in", pixels=200_000, InstanceNumber=i) for i in range(20)]
    started = time.monotonic()
    result = dcmtk("storescu", "-aec", "DGIS", "-aet", "CT1", "127.0.0.1", edge.port, *files, nodelay=nodelay)
    assert result.returncode == 0, result.stderr
    assert time.monotonic() - started < 1.5  # 20 x 44 ms if Nagle and delayed acknowledgement met
    assert [edge.ingest.data_set(path) for _, path in edge.ingest.done] == [data_bytes(f) for f in files]
    arrival, _ = edge.ingest.done[0]
    assert (arrival.calling_ae, arrival.called_ae, arrival.acting_for) == ("CT1", "DGIS", "ae:CT1@a")
    _soon(lambda: edge.ingest.settled == [arrival.association_id])
    assert edge.ingest.forgotten == []


def test_private_retired_and_unknown_classes_and_syntaxes(edge: Edge, tmp_path: Path) -> None:
    classes = {
        "private": "1.2.826.0.1.3680043.9.9999.1",
        "retired": "1.2.840.10008.5.1.4.1.1.6",
        "sr": "1.2.840.10008.5.1.4.1.1.88.33",
        "palette": "1.2.840.10008.5.1.4.39.1",
    }
    ae = AE("X")
    ae.requested_contexts = [
        build_context(classes["private"], "1.2.826.0.1.3680043.9.9999.2"),
        build_context(classes["retired"], ["1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2"]),
        build_context(classes["sr"], "1.2.840.10008.1.2.1.99"),
        build_context(classes["palette"]),
        build_context("1.2.840.10008.5.1.4.31"),  # worklist: a service we do not offer
        build_context("1.2.840.10008.1.3.10"),  # DICOMDIR: not an instance
    ]
    association = ae.associate("127.0.0.1", edge.port, ae_title="DGIS")
    assert association.is_established
    accepted = {c.abstract_syntax: c.transfer_syntax[0] for c in association.accepted_contexts}
    assert accepted == {
        classes["private"]: "1.2.826.0.1.3680043.9.9999.2",
        classes["retired"]: "1.2.840.10008.1.2.4.50",
        classes["sr"]: "1.2.840.10008.1.2.1.99",
        classes["palette"]: "1.2.840.10008.1.2",
    }
    assert {c.abstract_syntax: c.result for c in association.rejected_contexts} == {
        "1.2.840.10008.5.1.4.31": 3,
        "1.2.840.10008.1.3.10": 3,
    }
    association.release()


def test_128_contexts_are_answered_one_by_one(edge: Edge) -> None:
    ae = AE("X")
    ae.requested_contexts = [build_context(f"1.2.826.0.1.3680043.9.9999.{i}") for i in range(128)]
    association = ae.associate("127.0.0.1", edge.port, ae_title="DGIS")
    assert len(association.accepted_contexts) == 128
    association.release()


@pytest.mark.parametrize("roles", [(True, False), (True, True), (False, True)])
def test_role_proposals_are_accepted(edge: Edge, roles: tuple[bool, bool]) -> None:
    from pynetdicom import build_role

    ae = AE("OLD")
    ae.add_requested_context(CTImageStorage)
    role = build_role(CTImageStorage, scu_role=roles[0], scp_role=roles[1])
    association = ae.associate("127.0.0.1", edge.port, ae_title="DGIS", ext_neg=[role])
    assert [(c.as_scu, c.as_scp) for c in association.accepted_contexts] == [roles]
    association.release()


@pytest.mark.parametrize(
    ("change", "status"),
    [("full", 0xA700), ("mismatch", 0xA900), ("empty", 0xC000)],
)
def test_refusals(edge: Edge, tmp_path: Path, change: str, status: int) -> None:
    data_set = pydicom.dcmread(make_file(tmp_path / "in", pixels=300_000))
    if change == "full":
        edge.ingest.limit = 100_000
    ae = AE("X")
    ae.add_requested_context(CTImageStorage, pydicom.uid.ExplicitVRLittleEndian)
    association = ae.associate("127.0.0.1", edge.port, ae_title="DGIS")
    if change == "mismatch":
        response = _raw_store(association, data_set, instance="1.2.3.999")
    elif change == "empty":
        response = _raw_store(association, data_set, instance="1.2.3.999", raw=b"\x08\x00")
    else:
        response = association.send_c_store(data_set)
    assert response.Status == status
    assert 0 < len(response.ErrorComment) <= 64
    assert edge.ingest.done == [] and edge.ingest.staged() == []
    edge.ingest.limit = None
    assert association.send_c_store(data_set).Status == 0  # the association goes on
    association.release()


def test_an_abort_in_mid_object_leaves_nothing(edge: Edge, tmp_path: Path) -> None:
    import socket

    from dgis.dimse import command as dimse

    sock = _raw_association(edge.port)
    request = dimse.store_request(1, CTImageStorage, "1.2.3", None)
    sock.sendall(b"".join(dimse.p_data(1, request, is_command=True, max_pdu=16384)))
    piece = bytes(10_000)
    sock.sendall(dimse.pdv_head(1, len(piece), is_command=False, last=False) + piece)
    _soon(lambda: len(edge.ingest.staged()) == 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    sock.close()
    _soon(lambda: edge.ingest.staged() == [])
    assert edge.ingest.done == []
    _soon(lambda: len(edge.ingest.forgotten) == 1)


def test_not_authorised_is_0124_and_no_right_at_all_a_rejection(make_edge: Callable[..., Edge], tmp_path: Path) -> None:
    edge = make_edge(rights=frozenset({"echo"}))
    data_set = pydicom.dcmread(make_file(tmp_path / "in"))
    ae = AE("STRANGER")
    ae.add_requested_context(CTImageStorage, pydicom.uid.ExplicitVRLittleEndian)
    association = ae.associate("127.0.0.1", edge.port, ae_title="DGIS")
    assert association.send_c_store(data_set).Status == 0x0124
    association.release()
    assert edge.ingest.done == []
    refusing = make_edge(rights=frozenset())
    association = ae.associate("127.0.0.1", refusing.port, ae_title="DGIS")
    assert association.is_rejected
    assert (association.acceptor.primitive.result_source, association.acceptor.primitive.diagnostic) == (1, 3)


def test_an_error_nobody_foresaw_is_0110_and_says_nothing_of_the_patient(
    edge: Edge, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(arrival: Any) -> Any:
        raise RuntimeError("SECRET^NAME")

    data_set = pydicom.dcmread(make_file(tmp_path / "in", PatientName="SECRET^NAME", PatientID="SECRETID"))
    ae = AE("X")
    ae.add_requested_context(CTImageStorage, pydicom.uid.ExplicitVRLittleEndian)
    association = ae.associate("127.0.0.1", edge.port, ae_title="DGIS")
    monkeypatch.setattr(edge.ingest, "begin", begin)
    assert association.send_c_store(data_set).Status == 0x0110
    monkeypatch.undo()
    assert association.send_c_store(data_set).Status == 0
    association.release()
    captured = capsys.readouterr()
    assert "c-store failed" in captured.err
    assert "SECRET" not in captured.out + captured.err


def test_wrong_called_title_is_rejected(edge: Edge) -> None:
    ae = AE("X")
    ae.add_requested_context("1.2.840.10008.1.1")
    association = ae.associate("127.0.0.1", edge.port, ae_title="OTHER")
    assert association.is_rejected and association.acceptor.primitive.diagnostic == 7


def test_release_waits_for_settle_but_not_longer(make_edge: Callable[..., Edge], tmp_path: Path) -> None:
    edge = make_edge(settle=0.5)
    edge.ingest.settle_seconds = 10
    ae = AE("X")
    ae.add_requested_context(CTImageStorage, pydicom.uid.ExplicitVRLittleEndian)
    association = ae.associate("127.0.0.1", edge.port, ae_title="DGIS")
    assert association.send_c_store(pydicom.dcmread(make_file(tmp_path / "in"))).Status == 0
    started = time.monotonic()
    association.release()
    assert association.is_released
    assert 0.4 < time.monotonic() - started < 1.5


def _raw_store(association: Any, data_set: Any, *, instance: str, raw: bytes | None = None) -> Any:
    """Send a C-STORE whose command does not fit its data set."""
    from io import BytesIO

    from pynetdicom.dimse_primitives import C_STORE
    from pynetdicom.dsutils import encode

    request = C_STORE()
    request.MessageID = 7
    request.AffectedSOPClassUID = data_set.SOPClassUID
    request.AffectedSOPInstanceUID = instance
    request.Priority = 2
    request.DataSet = BytesIO(raw if raw is not None else encode(data_set, False, True))
    association._reactor_checkpoint.clear()
    while not association._is_paused:
        time.sleep(0.001)
    association.dimse.send_msg(request, 1)
    _, response = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    return response


def _raw_association(port: int) -> Any:
    import socket

    from tests.unit.dgis.dimse.raw import associate

    sock = socket.create_connection(("127.0.0.1", port), timeout=5)
    associate(sock, [(CTImageStorage, "1.2.840.10008.1.2")])
    return sock


def _soon(condition: Callable[[], bool], *, within: float = 3.0) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)
