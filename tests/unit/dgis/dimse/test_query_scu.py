"""The SCU side against real acceptors: our edge, and stock pynetdicom that answers badly."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, build_role, evt

from dgis.dimse import ask, status
from dgis.dimse.ask import Key, KeyMistake
from dgis.dimse.get_scu import MAX_STORAGE_CONTEXTS, FolderUser, safe_name, storage_proposals
from dgis.dimse.limits import PeerAddress, Timeouts
from dgis.dimse.negotiation import EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE
from dgis.dimse.query_scu import PeerRefused, PeerSilent, open_asking
from dgis.dimse.runtime.entity import GridAE
from dgis.medium import open_instance

CT = "1.2.840.10008.5.1.4.1.1.2"
STUDY_FIND, STUDY_GET = "1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.5.1.4.1.2.2.3"
FAST = Timeouts(connect=1, acse=2, dimse=2, send=2, close=0.5)


def ours(**changes: float) -> GridAE:
    return GridAE("TOOL", timeouts=FAST)


def study(*keys: str) -> Dataset:
    return ask.identifier("STUDY", [Key.parse(key) for key in ("StudyInstanceUID", *keys)])


# --- keys and identifiers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [IMPLICIT_LE, EXPLICIT_LE, EXPLICIT_BE])
def test_identifiers_are_written_and_read_in_each_syntax(syntax: str) -> None:
    keys = ["PatientName=山田^太郎", "0010,0020=47*", "(0020,000D)=1.2\\1.3", "Rows=512", "StudyDate=20250101-"]
    data = ask.identifier("STUDY", [Key.parse(key) for key in keys])
    back = ask.decode(ask.encode(data, syntax), syntax)
    assert back == {
        "SpecificCharacterSet": "ISO_IR 192",
        "StudyDate": "20250101-",
        "QueryRetrieveLevel": "STUDY",
        "PatientName": "山田^太郎",
        "PatientID": "47*",
        "StudyInstanceUID": ["1.2", "1.3"],
        "Rows": 512,
    }


def test_a_key_inside_a_sequence_and_a_character_set_of_ones_own() -> None:
    keys = ["RequestAttributesSequence.ScheduledProcedureStepID=7", "SpecificCharacterSet=ISO_IR 100"]
    data = ask.identifier("SERIES", [Key.parse(key) for key in (*keys, "PatientName=Äneas")])
    raw = ask.encode(data, EXPLICIT_LE)
    assert "Äneas".encode("latin-1") in raw
    back = ask.decode(raw, EXPLICIT_LE)
    assert back["RequestAttributesSequence"] == [{"ScheduledProcedureStepID": "7"}]
    assert back["PatientName"] == "Äneas"


@pytest.mark.parametrize(
    "keys",
    [
        ["NoSuchKeyword=1"],
        ["0002,0010=1.2"],
        ["Rows=many"],
        ["SpecificCharacterSet=ISO_IR 100", "PatientName=山田"],
    ],
    ids=lambda keys: keys[-1],
)
def test_keys_that_cannot_be_asked_for(keys: list[str]) -> None:
    with pytest.raises(KeyMistake):
        ask.identifier("STUDY", [Key.parse(key) for key in keys])


def test_no_uid_of_a_peer_becomes_a_path() -> None:
    assert safe_name("1.2.840.1") == "1.2.840.1.dcm"
    for uid in ("../../etc/passwd", "1.2/../3", "/abs", "", ".", "..", "1..2", "1.2\x00", "CON", "1." * 200 + "1"):
        name = safe_name(uid)
        assert Path(name).name == name and name[:-4].isalnum() and len(name) == 44, uid
    assert safe_name("a") != safe_name("A")


def test_contexts_of_a_get_fit_one_association() -> None:
    assert len(storage_proposals([])) == MAX_STORAGE_CONTEXTS
    assert storage_proposals([])[0].abstract_syntax == CT or CT in {p.abstract_syntax for p in storage_proposals([])}
    known = storage_proposals([(CT, EXPLICIT_LE), (CT, IMPLICIT_LE)])
    assert [p.transfer_syntaxes for p in known] == [(EXPLICIT_LE,), (IMPLICIT_LE,)]
    assert len({p.transfer_syntaxes for p in storage_proposals([(CT, None)])}) > 10
    many = [(f"1.2.{n}", None) for n in range(300)]
    assert len(storage_proposals(many)) == MAX_STORAGE_CONTEXTS
    assert all(p.scp_role for p in storage_proposals(many))


# --- against our own edge ------------------------------------------------------------------------------------------


def test_find_reads_all_of_a_fast_answer(edge: Any) -> None:
    edge.search.rows = [{"StudyInstanceUID": f"1.2.{n}", "PatientName": "Müller^Jörg"} for n in range(3000)]
    with open_asking(ours(), PeerAddress("DGIS", "127.0.0.1", edge.port), model="study", service="find") as asking:
        rows = []
        for _, row in asking.run(study("PatientName", "SpecificCharacterSet=ISO_IR 192"), stop=lambda: False):
            assert row is not None
            rows.append(row)
            if len(rows) == 1:
                time.sleep(0.5)  # thousands of answers arrive meanwhile: they wait in TCP, none is lost
    assert [row["StudyInstanceUID"] for row in rows] == [f"1.2.{n}" for n in range(3000)]
    assert {row["PatientName"] for row in rows} == {"Müller^Jörg"}
    assert asking.ending is not None and asking.ending.ok


def test_refusals_and_silence_are_told_apart(edge: Any) -> None:
    with pytest.raises(PeerRefused, match="not called WRONG"):
        open_asking(ours(), PeerAddress("WRONG", "127.0.0.1", edge.port), model="study", service="find")
    with pytest.raises(PeerSilent, match="nothing answers"):
        open_asking(ours(), PeerAddress("DGIS", "127.0.0.1", 1), model="study", service="find")
    with pytest.raises(PeerSilent, match="resolved"):
        open_asking(ours(), PeerAddress("DGIS", "no-such-host.invalid", 104), model="study", service="find")


def test_a_cancel_right_behind_its_request_is_not_lost(edge: Any) -> None:
    edge.search.rows = [{"StudyInstanceUID": f"1.2.{n}"} for n in range(3)]
    edge.search.block = threading.Event()
    for _ in range(10):
        began = time.monotonic()
        with open_asking(ours(), PeerAddress("DGIS", "127.0.0.1", edge.port), model="study", service="find") as asking:
            list(asking.run(study(), stop=lambda: True))
        assert asking.ending is not None and asking.ending.status == status.CANCELLED
        assert time.monotonic() - began < 1
    edge.search.block.set()
    peer = PeerAddress("DGIS", "127.0.0.1", edge.port)
    with open_asking(ours(), peer, model="study", service="find") as asking:
        assert len(list(asking.run(study(), stop=lambda: False))) == 3
        asking.association.send_message(1, ask.cancel(1))  # too late: its operation is over
        assert len(list(asking.run(study(), stop=lambda: False))) == 3, "the same message ID, another operation"


def test_an_scp_role_for_a_query_is_passed_over(edge: Any) -> None:
    """The answer would be neither role, which is no item: the association lives, with the default roles."""
    role = build_role(STUDY_FIND, scp_role=True)
    ae = AE("ODD")
    ae.add_requested_context(STUDY_FIND)
    association = ae.associate("127.0.0.1", edge.port, ae_title="DGIS", ext_neg=[role])
    assert association.is_established and STUDY_FIND not in association.acceptor.role_selection
    association.release()


def _dgis(*args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "dgis.cli", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ, DGIS_HOME="/nowhere"),
    )


def test_ctrl_c_sends_a_cancel_and_keeps_what_came(edge: Any) -> None:
    edge.search.rows = [{"StudyInstanceUID": f"1.2.{n}"} for n in range(5)]
    edge.search.block = threading.Event()
    process = _dgis("find", f"DGIS@127.0.0.1:{edge.port}", "--format", "json", "--aet", "TOOL")
    deadline = time.monotonic() + 20
    while not edge.search.asked and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    asked = time.monotonic()
    out, err = process.communicate(timeout=20)
    assert time.monotonic() - asked < 3, err
    edge.search.block.set()
    answer = json.loads(out)
    assert [row["StudyInstanceUID"] for row in answer["matches"]] == ["1.2.0"]
    assert (answer["status"], answer["cancelled"], process.returncode) == ("FE00", True, 3), err


def test_an_incomplete_answer_is_exit_code_3(edge: Any) -> None:
    edge.search.rows, edge.search.incomplete = [{"StudyInstanceUID": "1.2.3"}], True
    process = _dgis("find", f"DGIS@127.0.0.1:{edge.port}")
    out, err = process.communicate(timeout=20)
    assert process.returncode == 3 and "1.2.3" in out
    assert "C001" in err and "a catalog did not answer" in err


# --- against stock pynetdicom --------------------------------------------------------------------------------------


def instance(uid: str) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = CT, uid
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.PatientName = "1.2", "1.2.1", "A^B"
    return ds


@pytest.fixture
def serve() -> Iterator[Callable[..., int]]:
    servers: list[Any] = []

    def start(handler: tuple[Any, ...], *contexts: str) -> int:
        ae = AE("PEER")
        ae.maximum_pdu_size = 4096
        for context in contexts:
            ae.add_supported_context(context, [ExplicitVRLittleEndian], scu_role=True, scp_role=True)
        server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[handler])
        servers.append(server)
        return int(server.server_address[1])

    yield start
    for server in servers:
        server.shutdown()


def test_get_writes_what_crossed_the_wire_under_safe_names(
    serve: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pynetdicom import _config

    monkeypatch.setattr(_config, "UNRESTRICTED_STORAGE_SERVICE", True)
    uids = ["1.2.3.4", "../../escaped"]

    def handle(event: Any) -> Iterator[Any]:
        yield len(uids)
        for uid in uids:
            yield 0xFF00, instance(uid)

    port = serve((evt.EVT_C_GET, handle), STUDY_GET, CT)
    told: list[int] = []
    out = tmp_path / "out"
    out.mkdir()
    user = FolderUser(out, told=lambda received: told.append(len(received.files)))
    peer = PeerAddress("PEER", "127.0.0.1", port)
    proposals = storage_proposals([(CT, EXPLICIT_LE)])
    with open_asking(ours(), peer, model="study", service="get", storage=proposals, user=user) as asking:
        counts = [count for count, _ in asking.run(study(), stop=lambda: False)]
    assert asking.ending is not None and asking.ending.counts is not None
    assert asking.ending.counts.completed == 2 and counts
    assert told == [1, 2]
    digest = hashlib.sha256(b"../../escaped").hexdigest()[:40]
    assert sorted(p.name for p in out.iterdir()) == sorted(["1.2.3.4.dcm", f"{digest}.dcm"])
    assert list(tmp_path.iterdir()) == [out]
    found = open_instance(out / "1.2.3.4.dcm")
    assert (found.sop_class_uid, found.transfer_syntax) == (CT, EXPLICIT_LE)
    assert (out / "1.2.3.4.dcm").read_bytes()[found.data_set_offset :] == ask.encode(instance("1.2.3.4"), EXPLICIT_LE)


def test_ctrl_c_ends_a_get_and_keeps_what_came(serve: Callable[..., int], tmp_path: Path) -> None:
    def handle(event: Any) -> Iterator[Any]:
        yield 500
        for number in range(500):
            if event.is_cancelled:
                yield 0xFE00, None
                return
            yield 0xFF00, instance(f"1.2.3.{number}")
            time.sleep(0.1)

    port = serve((evt.EVT_C_GET, handle), STUDY_GET, CT)
    keys = ("-k", "StudyInstanceUID=1.2", "--sop-class", "CTImageStorage", "--format", "json")
    process = _dgis("get", f"PEER@127.0.0.1:{port}", "--out", str(tmp_path), *keys)
    deadline = time.monotonic() + 20
    while not list(tmp_path.glob("*.dcm")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    told = json.loads(out)
    assert (process.returncode, told["status"], told["cancelled"]) == (3, "FE00", True), err
    assert len(told["files"]) == len(list(tmp_path.glob("*.dcm"))) == told["completed"] > 0
    assert not list(tmp_path.glob(".incoming*"))


def test_a_full_disk_fails_the_instance_and_not_the_retrieve(serve: Callable[..., int], tmp_path: Path) -> None:
    def handle(event: Any) -> Iterator[Any]:
        yield 1
        yield 0xFF00, instance("1.2.3.4")

    port = serve((evt.EVT_C_GET, handle), STUDY_GET, CT)
    user = FolderUser(tmp_path / "gone", told=lambda _: None)
    peer = PeerAddress("PEER", "127.0.0.1", port)
    with open_asking(
        ours(), peer, model="study", service="get", storage=storage_proposals([(CT, None)]), user=user
    ) as asking:
        list(asking.run(study(), stop=lambda: False))
    assert asking.ending is not None and asking.ending.status == status.SUB_OPERATIONS_FAILED
    assert [uid for uid, _ in user.received.failures] == ["1.2.3.4"] and not user.received.files


def test_a_peer_that_falls_silent_ends_the_wait(serve: Callable[..., int]) -> None:
    def handle(event: Any) -> Iterator[Any]:
        yield 0xFF00, study()
        time.sleep(4)
        yield 0x0000, None

    port = serve((evt.EVT_C_FIND, handle), STUDY_FIND)
    began = time.monotonic()
    with (
        pytest.raises(PeerSilent, match="no response within 2 s"),
        open_asking(ours(), PeerAddress("PEER", "127.0.0.1", port), model="study", service="find") as asking,
    ):
        list(asking.run(study(), stop=lambda: False))
    assert time.monotonic() - began < 4
    with pytest.raises(PeerRefused, match="does not offer C-MOVE"):
        both = serve((evt.EVT_C_FIND, handle), STUDY_FIND, CT)
        open_asking(
            ours(),
            PeerAddress("PEER", "127.0.0.1", both),
            model="study",
            service="move",
            storage=storage_proposals([(CT, EXPLICIT_LE)]),
        )
