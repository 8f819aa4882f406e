"""What an association negotiates (PS3.7 annex D, PS3.8 section 7.1), with a real requestor on the other side."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import Any

import pydicom
import pytest
from pynetdicom import AE, build_context, build_role
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import (
    AsynchronousOperationsWindowNegotiation,
    SOPClassCommonExtendedNegotiation,
    SOPClassExtendedNegotiation,
    UserIdentityNegotiation,
)
from pynetdicom.sop_class import (
    CTImageStorage,
    PatientRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)
from structlog.testing import capture_logs

from dgis.dimse import command as dimse
from dgis.dimse.ae import AeEntry
from dgis.dimse.negotiation import SUPPORTED, Extensions, Service, answer_extended, granted_extensions
from dgis.dimse.users import hashed, matches
from tests.unit.dgis.dimse.conftest import Edge
from tests.unit.dgis.dimse.doubles import make_file
from tests.unit.dgis.dimse.raw import associate, read_pdu

MakeEdge = Callable[..., Edge]
IMPLICIT = "1.2.840.10008.1.2"
FIND = StudyRootQueryRetrieveInformationModelFind


def _associate(edge: Edge, *items: Any, called: str = "DGIS", calling: str = "PEER", max_pdu: int = 16382) -> Any:
    ae = AE(calling)
    ae.requested_contexts = [build_context(uid) for uid in (Verification, FIND, CTImageStorage)]
    return ae.associate("127.0.0.1", edge.port, ae_title=called, ext_neg=list(items), max_pdu=max_pdu)


# --- user identity, PS3.7 D.3.3.7 ----------------------------------------------------------------------------------


def _user(kind: int, primary: bytes, secondary: bytes = b"", *, answer: bool = True) -> UserIdentityNegotiation:
    made = UserIdentityNegotiation()
    made.user_identity_type, made.primary_field, made.positive_response_requested = kind, primary, answer
    if kind == 2:
        made.secondary_field = secondary
    return made


@pytest.mark.parametrize(
    ("kind", "answered"), [(1, True), (2, True), (3, False), (4, False), (5, False)]
)  # username, with passcode, Kerberos, SAML, JWT
def test_every_kind_of_identity_is_accepted(edge: Edge, kind: int, answered: bool) -> None:
    association = _associate(edge, _user(kind, b"someone", b"secret"))
    assert association.is_established and association.send_c_echo().Status == 0
    response = association.acceptor.user_identity
    # A ticket, assertion or token that was not verified gets no response, which says so.
    assert (response is not None and response.server_response == b"") is answered
    association.release()


def test_no_response_that_was_not_asked_for(edge: Edge) -> None:
    association = _associate(edge, _user(1, b"someone", answer=False))
    assert association.is_established and association.acceptor.user_identity is None
    association.release()


@pytest.mark.parametrize("policy", ["check", "require"])
def test_passcodes_are_checked_against_the_table(make_edge: MakeEdge, policy: str) -> None:
    edge = make_edge(user_identity=policy, users={"radiology": hashed(b"open sesame")})
    with capture_logs() as lines:
        for primary, secondary in ((b"radiology", b"wrong"), (b"nobody", b"open sesame"), (b"radiology", b"")):
            refused = _associate(edge, _user(2, primary, secondary or b"-"))
            assert refused.is_rejected
            answer = refused.acceptor.primitive
            assert (answer.result, answer.result_source, answer.diagnostic) == (1, 1, 1)
        right = _associate(edge, _user(2, b"radiology", b"open sesame"))
        assert right.is_established and right.acceptor.user_identity.server_response == b""
        right.release()
    assert "open sesame" not in repr(lines) and "wrong" not in repr(lines)
    assert any("user identity not accepted" in line.get("reason", "") for line in lines)
    assert _associate(edge).is_established is (policy == "check")
    assert _associate(edge, _user(1, b"radiology")).is_established is (policy == "check")


def test_a_passcode_is_kept_as_a_salted_hash() -> None:
    one, other = hashed(b"open sesame"), hashed(b"open sesame")
    assert one != other and b"open sesame" not in one.encode()
    assert matches(b"open sesame", one) and matches(b"open sesame", other) and not matches(b"Open sesame", one)


# --- SOP class extended negotiation, PS3.7 D.3.3.5 and PS3.4 -------------------------------------------------------


def _extended(uid: str, information: bytes) -> SOPClassExtendedNegotiation:
    made = SOPClassExtendedNegotiation()
    made.sop_class_uid, made.service_class_application_information = uid, information
    return made


def _flags(service: Service, count: int) -> bytes:
    return bytes(SUPPORTED[service].flags()[:count])


@pytest.mark.parametrize(
    ("uid", "asked", "answer"),
    [
        (FIND, b"\x01\x01\x01\x01", _flags(Service.FIND, 4)),
        (PatientRootQueryRetrieveInformationModelFind, b"\x01", _flags(Service.FIND, 1)),
        (FIND, b"\x00\x00\x00\x00", b"\0\0\0\0"),
        (FIND, b"\x01\x01\x01\x01\x01", _flags(Service.FIND, 4)),  # enhanced multi-frame conversion: not understood
        (StudyRootQueryRetrieveInformationModelMove, b"\x01\x01", _flags(Service.MOVE, 1)),
        (StudyRootQueryRetrieveInformationModelGet, b"\x01", _flags(Service.GET, 1)),
        (CTImageStorage, b"\x02\x00\x03\x00\x01\x00", b"\x02\x00\x03\x00\x00"),
        (Verification, b"\x01", None),
        ("1.2.840.10008.5.1.1.9", b"\x01", None),
        (FIND, b"", None),
    ],
)
def test_extended_negotiation_says_what_the_code_does(uid: str, asked: bytes, answer: bytes | None) -> None:
    assert answer_extended({uid: asked}).get(uid) == answer


def test_extended_negotiation_on_the_wire(edge: Edge) -> None:
    move = StudyRootQueryRetrieveInformationModelMove
    association = _associate(edge, _extended(FIND, b"\x01\x01\x01\x01"), _extended(move, b"\x01"))
    answers = association.acceptor.sop_class_extended
    assert answers == {FIND: _flags(Service.FIND, 4), move: _flags(Service.MOVE, 1)}
    association.release()


def test_what_was_agreed_is_known_to_the_handlers() -> None:
    assert granted_extensions({FIND: b"\x01\x00"}, FIND) == Extensions(relational=True)
    assert granted_extensions({FIND: b"\x00\x01\x00\x00"}, FIND) == Extensions(date_time=True)
    assert granted_extensions({}, FIND) == Extensions()


def test_common_extended_negotiation_is_tolerated_and_not_answered(edge: Edge) -> None:
    common = SOPClassCommonExtendedNegotiation()
    common.sop_class_uid, common.service_class_uid = CTImageStorage, "1.2.840.10008.4.2"
    common.related_general_sop_class_identification = ["1.2.840.10008.5.1.4.1.1.7"]
    association = _associate(edge, common)
    assert association.is_established and association.send_c_echo().Status == 0
    assert not association.acceptor.sop_class_common_extended
    association.release()


# --- roles, window, PDU size ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scu", "scp"), [(True, False), (False, True), (True, True)])
def test_storage_roles_are_granted_as_proposed(edge: Edge, scu: bool, scp: bool) -> None:
    association = _associate(edge, build_role(CTImageStorage, scu_role=scu, scp_role=scp))
    assert association.is_established
    answer = association.acceptor.role_selection[CTImageStorage]
    assert (answer.scu_role, answer.scp_role) == (scu, scp)
    accepted = next(cx for cx in association.accepted_contexts if cx.abstract_syntax == CTImageStorage)
    assert (accepted.as_scu, accepted.as_scp) == (scu, scp)
    association.release()


@pytest.mark.parametrize("window", [(0, 0), (5, 5), (1, 1), (1, 0)])
def test_the_operations_window_is_one(edge: Edge, window: tuple[int, int]) -> None:
    asked = AsynchronousOperationsWindowNegotiation()
    asked.maximum_number_operations_invoked, asked.maximum_number_operations_performed = window
    association = _associate(edge, asked)
    assert association.is_established
    assert association.acceptor.asynchronous_operations == (1, 1)
    association.release()


@pytest.mark.parametrize("max_pdu", [0, 64, 4096, 131072, 2**31 - 1])
def test_the_peer_s_pdu_size_is_honoured(edge: Edge, max_pdu: int) -> None:
    edge.search.rows = [{"StudyInstanceUID": f"1.2.{i}", "StudyDescription": "x" * 60} for i in range(3)]
    with socket.create_connection(("127.0.0.1", edge.port), timeout=5) as sock:
        answer = associate(sock, [(FIND, IMPLICIT)], max_pdu=max_pdu)
        assert b"\x51\x00\x00\x04" + (131072).to_bytes(4, "big") in answer
        request = {0x0002: dimse.uid(FIND), 0x0100: b"\x20\x00", 0x0110: b"\1\0", 0x0700: b"\0\0", 0x0800: b"\1\0"}
        identifier = struct.pack("<HHL", 8, 0x52, 6) + b"STUDY " + struct.pack("<HHL", 8, 0x1030, 0)
        for control, data in ((3, dimse.encode(request)), (2, identifier)):
            body = struct.pack(">LBB", len(data) + 2, 1, control) + data
            sock.sendall(b"\x04\x00" + struct.pack(">L", len(body)) + body)
        sizes, commands = _pdus_until_final(sock)
    assert commands == [0xFF00] * 3 + [0]
    assert max_pdu == 0 or max(sizes) <= max_pdu


def _pdus_until_final(sock: socket.socket) -> tuple[list[int], list[int]]:
    """Read responses to a C-FIND; return the lengths of the P-DATA-TF and the statuses."""
    sizes, statuses, command = [], [], b""
    while not statuses or statuses[-1] == 0xFF00:
        kind, body = read_pdu(sock)
        assert kind == 4
        sizes.append(len(body))
        for _, control, fragment in dimse.pdvs(memoryview(body)):
            if control & 1:
                command += bytes(fragment)
                if control & 2:
                    statuses.append(dimse.decode(command).status)
                    command = b""
    return sizes, statuses


@pytest.mark.parametrize("max_pdu", [0, 4096, 131072])
def test_objects_go_through_any_pdu_size(edge: Edge, tmp_path: Any, max_pdu: int) -> None:
    association = _associate(edge, max_pdu=max_pdu)
    sent = pydicom.dcmread(make_file(tmp_path, pixels=300_000, syntax=IMPLICIT))
    assert association.send_c_store(sent).Status == 0
    association.release()
    assert len(edge.ingest.done) == 1


# --- titles, limits ------------------------------------------------------------------------------------------------


def _diagnostic(association: Association) -> tuple[int, int, int] | None:
    if association.is_established:
        association.release()
        return None
    answer: Any = association.acceptor.primitive
    return answer.result, answer.result_source, answer.diagnostic


CALLED_UNKNOWN, CALLING_UNKNOWN = (1, 1, 7), (1, 1, 3)


def test_called_titles(make_edge: MakeEdge) -> None:
    exact = make_edge(also_called=("ARCHIVE",))
    assert _diagnostic(_associate(exact, called="ARCHIVE")) is None
    assert _diagnostic(_associate(exact, called="  DGIS  ")) is None
    assert _diagnostic(_associate(exact, called="dgis")) == CALLED_UNKNOWN
    assert _diagnostic(_associate(exact, called="DGIS2")) == CALLED_UNKNOWN
    loose = make_edge(ignore_title_case=True)
    assert _diagnostic(_associate(loose, called="dgis")) is None
    assert _diagnostic(_associate(loose, called="DGIS2")) == CALLED_UNKNOWN
    anybody = make_edge(accept_any_called=True)
    assert _diagnostic(_associate(anybody, called="WHATEVER")) is None


def test_calling_titles_have_no_wildcards(make_edge: MakeEdge) -> None:
    edge = make_edge(rights=frozenset())
    for title in ("*", "VIEW*", "VIEWER?"):
        edge.table.put(AeEntry(title=title, rights=("echo",)))
    assert _diagnostic(_associate(edge, calling="VIEWER1")) == CALLING_UNKNOWN
    edge.table.put(AeEntry(title="VIEWER1", rights=("echo",)))
    assert _diagnostic(_associate(edge, calling="VIEWER1")) is None  # read again at once
    assert _diagnostic(_associate(edge, calling="viewer1")) == CALLING_UNKNOWN
    assert edge.table.remove("VIEWER1")
    assert _diagnostic(_associate(edge, calling="VIEWER1")) == CALLING_UNKNOWN


def test_case_may_be_ignored_in_calling_titles(tmp_path: Any) -> None:
    from dgis.dimse.ae import AeTable

    table = AeTable(tmp_path / "ae.toml", ignore_case=True)
    table.put(AeEntry(title="Viewer1", host="h", port=104, rights=("find",)))
    assert table.caller("VIEWER1 ", "127.0.0.1").rights == {"find"}
    assert table.destination("viewer1") is not None


def test_128_contexts_each_with_its_answer(edge: Edge) -> None:
    ae = AE("PEER")
    refused = "1.2.840.10008.5.1.1.9"  # Basic Grayscale Print Management
    ae.requested_contexts = [
        build_context(f"1.3.6.1.4.1.9999.{n}") if n % 2 else build_context(refused) for n in range(128)
    ]
    association = ae.associate("127.0.0.1", edge.port, ae_title="DGIS")
    assert association.is_established
    assert len(association.accepted_contexts) == 64 and len(association.rejected_contexts) == 64
    assert {cx.result for cx in association.rejected_contexts} == {3}  # abstract syntax not supported
    association.release()
