"""C-MOVE and C-GET with real peers."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, AllStoragePresentationContexts, build_context, build_role, evt
from pynetdicom.sop_class import (
    CTImageStorage,
    MRImageStorage,
    PatientRootQueryRetrieveInformationModelGet,
    PatientRootQueryRetrieveInformationModelMove,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

from dgis.dimse.ae import AeEntry
from tests.unit.dgis.dimse.conftest import SETTINGS, Edge
from tests.unit.dgis.dimse.doubles import data_bytes, make_file

MOVE = StudyRootQueryRetrieveInformationModelMove
GET = StudyRootQueryRetrieveInformationModelGet
EXPLICIT, JPEG2000 = pydicom.uid.ExplicitVRLittleEndian, pydicom.uid.JPEG2000


class Receiver:
    """A storage SCP by pynetdicom that keeps what it gets."""

    def __init__(self, contexts: list[Any], *, status: Callable[[Any], int] | None = None) -> None:
        self.got: list[tuple[Any, bytes, str]] = []
        self.associations = 0
        ae = AE("DEST")
        ae.supported_contexts = contexts
        handlers = [(evt.EVT_C_STORE, self._store), (evt.EVT_ESTABLISHED, self._established)]
        self._status = status
        self.server: Any = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        self.port = self.server.socket.getsockname()[1]

    def _store(self, event: Any) -> int:
        code = self._status(event) if self._status else 0
        if code == 0:
            raw = event.request.DataSet.getvalue()
            self.got.append((event.request, raw, event.context.transfer_syntax))
        return code

    def _established(self, _: Any) -> None:
        self.associations += 1


@pytest.fixture
def receiver() -> Iterator[Callable[..., Receiver]]:
    made: list[Receiver] = []

    def make(contexts: list[Any] | None = None, **options: Any) -> Receiver:
        one = Receiver(contexts or [build_context(CTImageStorage, [EXPLICIT, JPEG2000])], **options)
        made.append(one)
        return one

    yield make
    for one in made:
        threading.Thread(target=one.server.shutdown, daemon=True).start()  # polls every half second


def _identifier(**values: Any) -> Dataset:
    data_set = Dataset()
    data_set.QueryRetrieveLevel = "STUDY"
    data_set.StudyInstanceUID = "1.2.3.1"
    for keyword, value in values.items():
        setattr(data_set, keyword, value)
    return data_set


def _move(
    edge: Edge, identifier: Dataset, *, destination: str = "DEST", model: str = MOVE, **options: Any
) -> list[Any]:
    ae = AE("VIEWER")
    ae.add_requested_context(model)
    ae.dimse_timeout = 15
    association = ae.associate("127.0.0.1", edge.port, ae_title="DGIS")
    assert association.is_established
    answers = list(association.send_c_move(identifier, destination, model, **options))
    association.release()
    return answers


def _counts(status: Dataset) -> tuple[int, int, int]:
    return (
        status.NumberOfCompletedSuboperations,
        status.NumberOfFailedSuboperations,
        status.NumberOfWarningSuboperations,
    )


def test_move_is_byte_exact_and_names_its_originator(edge: Edge, tmp_path: Path, receiver: Any) -> None:
    files = [make_file(tmp_path / "in", pixels=300_000, syntax=s) for s in (EXPLICIT, EXPLICIT, EXPLICIT)]
    compressed = make_file(tmp_path / "in", syntax=EXPLICIT, pixels=999)
    for path in (*files, compressed):
        with path.open("ab") as stream:
            stream.write(b"trailer that is no part of the object")
        edge.retrieve.add(path, trailing=37)
    dest = receiver()
    edge.destination("DEST", dest.port)
    answers = _move(edge, _identifier(), msg_id=42)
    assert answers[0][0].Status == 0xFF00 and answers[0][0].NumberOfRemainingSuboperations == 4
    final = answers[-1][0]
    assert final.Status == 0 and _counts(final) == (4, 0, 0)
    assert "NumberOfRemainingSuboperations" not in final
    assert [raw for _, raw, _ in dest.got] == [data_bytes(f)[:-37] for f in (*files, compressed)]
    request = dest.got[0][0]
    assert request.MoveOriginatorApplicationEntityTitle == "VIEWER" and request.MoveOriginatorMessageID == 42
    assert dest.associations == 1
    assert sorted(edge.retrieve.released) == sorted(edge.retrieve.files)


@pytest.mark.parametrize(
    ("level", "values", "field", "expected"),
    [
        ("STUDY", {"StudyInstanceUID": ["1.2.3.1", "1.2.3.2"], "PatientID": "T1"}, "studies", ("1.2.3.1", "1.2.3.2")),
        ("SERIES", {"SeriesInstanceUID": ["1.5", "1.6"]}, "series", ("1.5", "1.6")),
        ("IMAGE", {"SeriesInstanceUID": "1.5", "SOPInstanceUID": ["1.7", "1.8"]}, "instances", ("1.7", "1.8")),
    ],
)
def test_uid_lists_at_every_level(
    edge: Edge, receiver: Any, level: str, values: dict[str, Any], field: str, expected: tuple[str, ...]
) -> None:
    edge.destination("DEST", receiver().port)
    (final, _), *_ = _move(edge, _identifier(QueryRetrieveLevel=level, **values))
    assert final.Status == 0 and _counts(final) == (0, 0, 0)
    request = edge.retrieve.asked[0]
    assert getattr(request, field) == expected and request.patients == ()


def test_patient_level_in_both_models(edge: Edge, receiver: Any) -> None:
    edge.destination("DEST", receiver().port)
    for model in (MOVE, PatientRootQueryRetrieveInformationModelMove):
        identifier = _identifier(QueryRetrieveLevel="PATIENT", PatientID="P1", IssuerOfPatientID="A")
        assert _move(edge, identifier, model=model)[-1][0].Status == 0
        assert [(p.issuer, p.patient_id) for p in edge.retrieve.asked[-1].patients] == [("A", "P1")]


@pytest.mark.parametrize(
    ("values", "offending"),
    [({"QueryRetrieveLevel": "X"}, 0x00080052), ({"StudyInstanceUID": ""}, 0x0020000D),
     ({"StudyInstanceUID": "1.2.*"}, 0x0020000D)],
)  # fmt: skip
def test_bad_identifiers_are_a900(edge: Edge, receiver: Any, values: dict[str, Any], offending: int) -> None:
    edge.destination("DEST", receiver().port)
    (status, _), *rest = _move(edge, _identifier(**values))
    assert (status.Status, status.OffendingElement, rest) == (0xA900, offending, [])


def test_unknown_destination_is_a801(edge: Edge) -> None:
    (status, _), *rest = _move(edge, _identifier(), destination="NOWHERE")
    assert status.Status == 0xA801 and "AE table" in status.ErrorComment and rest == []


@pytest.mark.parametrize(
    ("requesters", "allowed"),
    [((), True), (("self",), False), (("VIEWER",), True), (("OTHER", "self"), False), (("OTHER", "VIEWER"), True)],
)
def test_who_may_move_to_a_destination(edge: Edge, receiver: Any, requesters: tuple[str, ...], allowed: bool) -> None:
    entry = AeEntry(title="DEST", host="127.0.0.1", port=receiver().port, rights=("move",), requesters=requesters)
    edge.table.put(entry)
    (status, _), *_ = _move(edge, _identifier())
    assert status.Status == (0x0000 if allowed else 0x0124)
    edge.table.put(entry.model_copy(update={"title": "VIEWER", "requesters": ("self",)}))
    assert _move(edge, _identifier(), destination="VIEWER")[-1][0].Status == 0


def test_an_instance_asked_for_twice_is_sent_once(edge: Edge, tmp_path: Path, receiver: Any) -> None:
    located = edge.retrieve.add(make_file(tmp_path / "in"))
    dest = receiver()
    edge.destination("DEST", dest.port)
    uids = [located.instance_uid] * 3
    identifier = _identifier(QueryRetrieveLevel="IMAGE", SeriesInstanceUID="1.2.3.1.1", SOPInstanceUID=uids)
    status, _ = _move(edge, identifier)[-1]
    assert status.Status == 0 and _counts(status) == (1, 0, 0) and len(dest.got) == 1
    assert edge.retrieve.asked[0].instances == (located.instance_uid,)


def test_more_retrieves_than_allowed_are_a701(make_edge: Any, tmp_path: Path, receiver: Any) -> None:
    edge: Edge = make_edge(limits=replace(SETTINGS.limits, retrieves=1))
    edge.retrieve.add(make_file(tmp_path / "in"))
    edge.retrieve.delay = 1.5
    edge.destination("DEST", receiver().port)
    first: list[Any] = []
    slow = threading.Thread(target=lambda: first.extend(_move(edge, _identifier())))
    slow.start()
    while not edge.retrieve.asked:
        time.sleep(0.01)
    (status, _), *rest = _move(edge, _identifier())
    assert (status.Status, rest) == (0xA701, []) and "retrieves" in status.ErrorComment
    slow.join()
    assert first[-1][0].Status == 0
    edge.retrieve.delay = 0
    assert _move(edge, _identifier())[-1][0].Status == 0


def test_unreachable_catalog_is_c001(edge: Edge, receiver: Any) -> None:
    edge.retrieve.unavailable = True
    edge.destination("DEST", receiver().port)
    assert _move(edge, _identifier())[-1][0].Status == 0xC001


def test_one_bad_instance_and_a_refused_context_do_not_end_the_rest(edge: Edge, tmp_path: Path, receiver: Any) -> None:
    good = [edge.retrieve.add(make_file(tmp_path / "in")) for _ in range(3)]
    lost = edge.retrieve.add(make_file(tmp_path / "in"))
    mr = edge.retrieve.add(make_file(tmp_path / "in", SOPClassUID=MRImageStorage))
    refused = edge.retrieve.add(make_file(tmp_path / "in"))
    gone = edge.retrieve.add(make_file(tmp_path / "in"))
    edge.retrieve.files[gone.instance_uid][1].unlink()
    edge.retrieve.lost.add(lost.instance_uid)
    last = edge.retrieve.add(make_file(tmp_path / "in"))
    bad = refused.instance_uid
    dest = receiver(status=lambda event: 0xA700 if event.request.AffectedSOPInstanceUID == bad else 0)
    edge.destination("DEST", dest.port)
    status, identifier = _move(edge, _identifier())[-1]
    assert status.Status == 0xB000 and _counts(status) == (4, 4, 0)
    failed = {lost.instance_uid, mr.instance_uid, refused.instance_uid, gone.instance_uid}
    assert set(identifier.FailedSOPInstanceUIDList) == failed
    assert {r.AffectedSOPInstanceUID for r, *_ in dest.got} == {x.instance_uid for x in (*good, last)}


def test_warnings_are_counted_apart(edge: Edge, tmp_path: Path, receiver: Any) -> None:
    edge.retrieve.add(make_file(tmp_path / "in"))
    edge.destination("DEST", receiver(status=lambda _: 0xB000).port)
    status, _ = _move(edge, _identifier())[-1]
    assert status.Status == 0 and _counts(status) == (0, 0, 1)


def test_a_dead_destination_is_a702_soon(edge: Edge, tmp_path: Path) -> None:
    for _ in range(20):
        edge.retrieve.add(make_file(tmp_path / "in"))
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        edge.destination("DEST", sock.getsockname()[1])
    started = time.monotonic()
    status, identifier = _move(edge, _identifier())[-1]
    assert status.Status == 0xA702 and _counts(status) == (0, 20, 0)
    assert len(identifier.FailedSOPInstanceUIDList) == 20
    assert time.monotonic() - started < 3


def test_a_listener_that_opens_a_moment_late_is_found(edge: Edge, tmp_path: Path, receiver: Any) -> None:
    edge.retrieve.add(make_file(tmp_path / "in"))
    dest = receiver()
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    edge.destination("DEST", port)
    forward = threading.Timer(0.4, _forward, args=(port, dest.port))
    forward.start()
    assert _move(edge, _identifier())[-1][0].Status == 0
    forward.join()
    assert len(dest.got) == 1


def test_a_silent_destination_does_not_hang(edge: Edge, tmp_path: Path) -> None:
    for _ in range(5):
        edge.retrieve.add(make_file(tmp_path / "in"))
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        edge.destination("DEST", sock.getsockname()[1])
        started = time.monotonic()
        answers = _move(edge, _identifier())
    assert answers[-1][0].Status == 0xA702
    assert time.monotonic() - started < 8
    assert len(answers) >= 3  # heartbeats while waiting


def test_a_destination_that_aborts_once_gets_the_rest(edge: Edge, tmp_path: Path, receiver: Any) -> None:
    instances = [edge.retrieve.add(make_file(tmp_path / "in")) for _ in range(4)]
    bad = instances[1].instance_uid

    def status(event: Any) -> int:
        if event.request.AffectedSOPInstanceUID == bad:
            event.assoc.abort()
        return 0

    dest = receiver(status=status)
    edge.destination("DEST", dest.port)
    final, identifier = _move(edge, _identifier())[-1]
    assert final.Status == 0xB000 and _counts(final) == (3, 1, 0)
    assert identifier.FailedSOPInstanceUIDList == bad
    assert dest.associations == 2


def test_more_kinds_than_contexts_open_another_association(edge: Edge, tmp_path: Path, receiver: Any) -> None:
    classes = [context.abstract_syntax for context in AllStoragePresentationContexts][:130]
    assert len(classes) == 130
    for uid in classes:
        edge.retrieve.add(make_file(tmp_path / "in", SOPClassUID=uid))
    dest = receiver([build_context(uid, EXPLICIT) for uid in classes])
    edge.destination("DEST", dest.port)
    status, _ = _move(edge, _identifier())[-1]
    assert status.Status == 0 and _counts(status) == (130, 0, 0)
    assert dest.associations == 3  # two contexts a class: as stored, and what it can be converted to


def test_cancel_of_a_move_is_fe00_within_a_second(edge: Edge, tmp_path: Path, receiver: Any) -> None:
    for _ in range(50):
        edge.retrieve.add(make_file(tmp_path / "in"))
    edge.retrieve.delay = 0.1
    dest = receiver()
    edge.destination("DEST", dest.port)
    ae = AE("VIEWER")
    ae.add_requested_context(MOVE)
    association = ae.associate("127.0.0.1", edge.port, ae_title="DGIS")
    answers = association.send_c_move(_identifier(), "DEST", MOVE, msg_id=3)
    next(answers)
    while len(dest.got) < 2:
        time.sleep(0.01)
    started = time.monotonic()
    association.send_c_cancel(3, query_model=MOVE)
    *_, (final, _) = answers
    assert final.Status == 0xFE00 and time.monotonic() - started < 1.0
    assert 0 < final.NumberOfRemainingSuboperations < 50 and final.NumberOfFailedSuboperations == 0
    association.release()
    deadline = time.monotonic() + 1.0  # the fetching side hears of it a moment after the answer left
    while not edge.retrieve.stopped_early and time.monotonic() < deadline:
        time.sleep(0.01)
    assert edge.retrieve.stopped_early


def test_pending_answers_keep_coming_while_fetching_takes_long(edge: Edge, tmp_path: Path, receiver: Any) -> None:
    edge.retrieve.add(make_file(tmp_path / "in"))
    edge.retrieve.delay = 2.5
    edge.destination("DEST", receiver().port)
    answers = _move(edge, _identifier())
    assert [s.Status for s, _ in answers[:3]] == [0xFF00] * 3 and answers[-1][0].Status == 0


def _get(edge: Edge, contexts: list[Any], *, model: str = GET) -> tuple[list[Any], list[tuple[str, bytes]]]:
    got: list[tuple[str, bytes]] = []

    def store(event: Any) -> int:
        got.append((event.context.transfer_syntax, event.request.DataSet.getvalue()))
        return 0

    ae = AE("VIEWER")
    ae.requested_contexts = [build_context(model), *contexts]
    roles = [build_role(uid, scp_role=True) for uid in {c.abstract_syntax for c in contexts}]
    association = ae.associate(
        "127.0.0.1", edge.port, ae_title="DGIS", ext_neg=roles, evt_handlers=[(evt.EVT_C_STORE, store)]
    )
    assert association.is_established
    answers = list(association.send_c_get(_identifier(), model))
    association.release()
    return answers, got


@pytest.mark.parametrize("model", [GET, PatientRootQueryRetrieveInformationModelGet])
def test_get_is_byte_exact_and_fails_what_has_no_context(edge: Edge, tmp_path: Path, model: str) -> None:
    paths = [make_file(tmp_path / "in", pixels=400_000) for _ in range(3)]
    for path in paths:
        edge.retrieve.add(path)
    mr = edge.retrieve.add(make_file(tmp_path / "in", SOPClassUID=MRImageStorage))
    answers, got = _get(edge, [build_context(CTImageStorage, EXPLICIT)], model=model)
    assert [raw for _, raw in got] == [data_bytes(p) for p in paths]
    status, identifier = answers[-1]
    assert status.Status == 0xB000 and _counts(status) == (3, 1, 0)
    assert identifier.FailedSOPInstanceUIDList == mr.instance_uid


def test_get_without_any_storage_context_is_a702(edge: Edge, tmp_path: Path) -> None:
    edge.retrieve.add(make_file(tmp_path / "in"))
    answers, got = _get(edge, [build_context(MRImageStorage)])
    assert answers[-1][0].Status == 0xA702 and got == []


def test_a_slow_get_says_pending_between_its_instances(edge: Edge, tmp_path: Path) -> None:
    for _ in range(2):
        edge.retrieve.add(make_file(tmp_path / "in"))
    edge.retrieve.delay = 1.3
    answers, got = _get(edge, [build_context(CTImageStorage, EXPLICIT)])
    assert [s.Status for s, _ in answers] == [0xFF00] * (len(answers) - 1) + [0] and len(answers) >= 4
    assert len(got) == 2


def test_getscu_and_movescu(edge: Edge, dcmtk: Any, tmp_path: Path) -> None:
    paths = [make_file(tmp_path / "in", pixels=100_000) for _ in range(5)]
    for path in paths:
        edge.retrieve.add(path)
    out = tmp_path / "out"
    out.mkdir()
    key = ("-k", "0008,0052=STUDY", "-k", "0020,000D=1.2.3.1")
    result = dcmtk("getscu", "-S", "-aec", "DGIS", "+B", "-od", out, *key, "127.0.0.1", edge.port)
    assert result.returncode == 0, result.stderr
    # getscu offers no explicit VR context first for CT unless asked; what it takes it must get byte-exact.
    assert sorted(data_bytes(p) for p in out.iterdir()) == sorted(data_bytes(p) for p in paths)
    moved = tmp_path / "moved"
    moved.mkdir()
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    edge.destination("DEST", port)
    storescp = subprocess.Popen(["/usr/bin/storescp", "+B", "+xa", "-od", str(moved), str(port)])
    try:
        _listening(port)
        result = dcmtk("movescu", "-S", "-aec", "DGIS", "-aem", "DEST", *key, "127.0.0.1", edge.port)
        assert result.returncode == 0, result.stderr
    finally:
        storescp.send_signal(signal.SIGTERM)
        storescp.wait(5)
    assert sorted(data_bytes(p) for p in moved.iterdir()) == sorted(data_bytes(p) for p in paths)


def test_a_huge_object_does_not_pile_up_in_memory(edge: Edge, tmp_path: Path, receiver: Any) -> None:
    """The receiver reads slowly: the sender's memory must stay flat (the 1.2 GB case in small, as growth)."""
    path = make_file(tmp_path / "in")
    located = edge.retrieve.add(path)
    with path.open("ab") as stream:
        stream.truncate(300 * 1024 * 1024)  # sparse
    held, _, offset, _ = edge.retrieve.files[located.instance_uid]
    edge.retrieve.files[located.instance_uid] = (held, path, offset, 300 * 1024 * 1024 - offset)
    drain = _Drain()
    edge.destination("DEST", drain.port)
    before = _rss()
    answers = _move(edge, _identifier())
    drain.close()
    assert answers[-1][0].Status == 0
    assert drain.bytes == 300 * 1024 * 1024 - offset
    assert _rss() - before < 40 * 1024 * 1024


def _forward(port: int, target: int) -> None:
    """Listen on `port` once and pass the connection on to `target`."""

    def pump(source: socket.socket, sink: socket.socket) -> None:
        while piece := source.recv(65536):
            sink.sendall(piece)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    with socket.create_server(("127.0.0.1", port)) as listener:
        one, _ = listener.accept()
        with one, socket.create_connection(("127.0.0.1", target)) as two:
            back = threading.Thread(target=pump, args=(two, one))
            back.start()
            pump(one, two)
            back.join()


class _Drain:
    """A storage SCP that counts bytes and keeps none."""

    def __init__(self) -> None:
        self._sock = socket.create_server(("127.0.0.1", 0))
        self.port = self._sock.getsockname()[1]
        self.bytes = 0
        self.peak = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        from dgis.dimse import command as dimse
        from tests.unit.dgis.dimse.raw import item, read_pdu

        sock, _ = self._sock.accept()
        _, body = read_pdu(sock)
        answer = body[:68] + item(0x10, b"1.2.840.10008.3.1.1.1")
        answer += item(0x21, b"\x01\x00\x00\x00" + item(0x40, EXPLICIT.encode()))
        answer += item(0x50, item(0x51, (65536).to_bytes(4, "big")) + item(0x52, b"1.2.3"))
        sock.sendall(b"\x02\x00" + len(answer).to_bytes(4, "big") + answer)
        request = None
        while True:
            kind, body = read_pdu(sock)
            if kind == 5:
                sock.sendall(b"\x06\x00\x00\x00\x00\x04\x00\x00\x00\x00")
                continue
            if kind != 4:
                return
            for context, control, piece in dimse.pdvs(memoryview(body)):
                if control == 3:
                    request = dimse.decode(bytes(piece))
                    continue
                self.bytes += len(piece)
                if control & 2:
                    assert request is not None
                    raw = dimse.response(request, dimse.Answer(0))
                    sock.sendall(b"".join(dimse.p_data(context, raw, is_command=True, max_pdu=16384)))

    def close(self) -> None:
        self._sock.close()
        self._thread.join(5)


def _rss() -> int:
    with open("/proc/self/statm", encoding="ascii") as stream:
        return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _listening(port: int) -> None:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError("storescp did not start")
