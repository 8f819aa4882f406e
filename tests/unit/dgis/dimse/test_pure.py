"""The rooms without sockets: command sets, messages, identifiers, answers, character sets, negotiation, AE table."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.filewriter import write_dataset

from dgis.dimse import command as dimse
from dgis.dimse.ae import AeEntry, AeTable, AeTableError, UnknownAe, read, write
from dgis.dimse.answer import RowWriter, failed_uids
from dgis.dimse.charset import Charset
from dgis.dimse.command import Answer, Command, CommandError, Counts
from dgis.dimse.identifier import FindOptions, find_request, locate_request
from dgis.dimse.messages import Assembler, Message
from dgis.dimse.negotiation import Context, Service, negotiate, service_of
from dgis.dimse.values import IdentifierError, elements

IMPLICIT, EXPLICIT, BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"


# --- commands --------------------------------------------------------------------------------------------------------


def test_a_response_is_what_pynetdicom_expects() -> None:
    from pynetdicom.dsutils import decode

    request = dimse.decode(dimse.store_request(7, "1.2.840.10008.5.1.4.1.1.2", "1.2.3", dimse.MoveOriginator("ME", 9)))
    assert (request.field, request.message_id, request.instance) == (1, 7, "1.2.3") and request.has_data_set
    raw = dimse.response(request, Answer(0xA900, "x" * 100, (0x0020000D,), Counts(1, 2, 3, 70000)))
    data_set = decode(BytesIO(raw), True, True)
    assert data_set.CommandField == 0x8001 and data_set.MessageIDBeingRespondedTo == 7
    assert data_set.AffectedSOPInstanceUID == "1.2.3" and data_set.Status == 0xA900
    assert data_set.ErrorComment == "x" * 64 and data_set.OffendingElement == 0x0020000D
    assert data_set.NumberOfWarningSuboperations == 65535
    assert data_set.CommandGroupLength == len(raw) - 12


@given(raw=st.binary(max_size=200))
def test_any_bytes_are_a_command_or_a_command_error(raw: bytes) -> None:
    try:
        command = dimse.decode(raw)
    except CommandError:
        return
    assert command.field >= 0


@pytest.mark.parametrize("max_pdu", [0, 16, 1024, 16382, 131072, 10**9])
def test_fragments_fit_the_peer(max_pdu: int) -> None:
    raw = bytes(range(256)) * 1200
    pdus = list(dimse.p_data(3, raw, is_command=False, max_pdu=max_pdu))
    limit = min(max_pdu or 131072, 131072)
    assert all(len(pdu) - 6 <= limit for pdu in pdus)
    pieces = [piece for pdu in pdus for piece in dimse.pdvs(memoryview(pdu)[6:])]
    assert b"".join(bytes(data) for *_, data in pieces) == raw
    assert [control for _, control, _ in pieces][-1] == 2 and {c for _, c, _ in pieces[:-1]} <= {0}


# --- messages --------------------------------------------------------------------------------------------------------


class _Receiver:
    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.sunk = b""
        self.closed = self.aborted = 0

    def accepted(self, context_id: int) -> bool:
        return context_id in (1, 3)

    def open_sink(self, context_id: int, command: Command) -> _Receiver | None:
        return self if command.field == 1 else None

    def received(self, message: Message) -> None:
        self.messages.append(message)

    def write(self, piece: memoryview) -> None:
        self.sunk += piece

    def close(self) -> None:
        self.closed += 1

    def abort(self) -> None:
        self.aborted += 1


@given(cuts=st.lists(st.integers(1, 60), min_size=1, max_size=8), size=st.integers(1, 300))
def test_a_store_arrives_whole_however_it_is_cut(cuts: list[int], size: int) -> None:
    receiver = _Receiver()
    assembler = Assembler(receiver, max_data=100)
    data = os.urandom(size)
    for control, raw in ((1, dimse.store_request(1, "1.2", "1.3", None)), (0, data)):
        position, turn = 0, 0
        while position < len(raw):
            piece = raw[position : position + cuts[turn % len(cuts)]]
            position, turn = position + len(piece), turn + 1
            last = 2 if position == len(raw) else 0
            assembler.feed(memoryview(struct.pack(">LBB", len(piece) + 2, 1, control | last) + piece))
    assert receiver.sunk == data and receiver.closed == 1 and not assembler.in_message
    assembler.abort()
    assert receiver.aborted == 0


def test_an_abort_in_mid_message_aborts_the_sink_once() -> None:
    receiver = _Receiver()
    assembler = Assembler(receiver, max_data=100)
    request = dimse.store_request(1, "1.2", "1.3", None)
    assembler.feed(memoryview(struct.pack(">LBB", len(request) + 2, 1, 3) + request))
    assembler.abort()
    assembler.abort()
    assert receiver.aborted == 1 and receiver.closed == 0


@given(bodies=st.lists(st.binary(max_size=80), max_size=5))
def test_any_p_data_is_taken_or_refused(bodies: list[bytes]) -> None:
    assembler = Assembler(_Receiver(), max_data=100)
    for body in bodies:
        try:
            assembler.feed(memoryview(body))
        except CommandError:
            return


# --- negotiation -----------------------------------------------------------------------------------------------------


def test_every_storage_class_of_the_dictionary_is_storage() -> None:
    from pynetdicom import AllStoragePresentationContexts

    assert {service_of(str(c.abstract_syntax)) for c in AllStoragePresentationContexts} == {Service.STORE}
    assert service_of("1.2.840.10008.1.20.1") is Service.COMMIT
    for uid in ("1.2.840.10008.1.20.2", "1.2.840.10008.5.1.4.31", "1.2.840.10008.5.1.1.9", "1.2.840.10008.1.2", "x"):
        assert service_of(uid) is Service.NONE


def test_contexts_are_answered_apart() -> None:
    verdict = negotiate(
        (
            Context(1, "1.2.840.10008.5.1.4.1.1.2", ("not a uid", "1.2.840.10008.1.2.4.90", IMPLICIT)),
            Context(3, "1.2.840.10008.5.1.4.1.2.2.1", ("1.2.840.10008.1.2.4.90",)),
            Context(5, "1.2.840.10008.5.1.4.1.2.2.1", (EXPLICIT, IMPLICIT)),
        ),
        {"1.2.840.10008.5.1.4.1.1.2": (True, False), "1.2.840.10008.5.1.4.1.2.2.1": (True, True)},
    )
    assert [(c.id, c.transfer_syntax) for c in verdict.accepted] == [(1, "1.2.840.10008.1.2.4.90"), (5, EXPLICIT)]
    assert [(c.id, reason) for c, reason in verdict.rejected] == [(3, 4)]
    assert verdict.roles == {"1.2.840.10008.5.1.4.1.1.2": (True, False), "1.2.840.10008.5.1.4.1.2.2.1": (True, False)}


# --- identifiers -----------------------------------------------------------------------------------------------------


def _raw(syntax: str = EXPLICIT, **values: object) -> bytes:
    data_set = Dataset()
    for keyword, value in values.items():
        setattr(data_set, keyword, value)
    stream = pydicom.filebase.DicomBytesIO()
    stream.is_implicit_VR, stream.is_little_endian = syntax == IMPLICIT, syntax != BIG
    write_dataset(stream, data_set, data_set.get("SpecificCharacterSet", "ISO_IR 6"))
    return stream.getvalue()


def _matches(syntax: str = EXPLICIT, **values: object) -> dict[str, tuple[str, tuple[str, ...]]]:
    values.setdefault("QueryRetrieveLevel", "IMAGE")
    request = find_request(_raw(syntax, **values), syntax, FindOptions())
    return {m.keyword: (m.op, m.values) for m in request.query.matches}


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG])
def test_matching_by_value_representation(syntax: str) -> None:
    assert _matches(
        syntax,
        PatientName="Doe*",
        PatientID="A?1",
        StudyDate="20200101-20201231",
        StudyTime="-1200",
        AccessionNumber="",
        StudyDescription="*",
        StudyInstanceUID=["1.2", "1.3"],
        SeriesInstanceUID="1.4",
        Modality=["CT", "MR"],
        SeriesNumber="3 ",
        PatientBirthDate="19700101",
        ReferringPhysicianName="A^B",
    ) == {
        "PatientName": ("wild", ("Doe*",)),
        "PatientID": ("wild", ("A?1",)),
        "StudyDate": ("range", ("20200101", "20201231")),
        "StudyTime": ("range", ("", "1200")),
        "StudyInstanceUID": ("in", ("1.2", "1.3")),
        "SeriesInstanceUID": ("eq", ("1.4",)),
        "Modality": ("in", ("CT", "MR")),
        "SeriesNumber": ("eq", ("3",)),
        "PatientBirthDate": ("eq", ("19700101",)),
        "ReferringPhysicianName": ("eq", ("A^B",)),
    }


@pytest.mark.parametrize(
    ("terms", "name"),
    [("ISO_IR 100", "Müller^Jörg"), ("ISO_IR 192", "山田^太郎"), ("\\ISO 2022 IR 87", "Yamada^T=山田^太郎"),
     ("ISO_IR 144", "Люкceмбypг"), ("GB18030", "王^小东"), ("ISO_IR 101", "Dvořák^Jiří")],
)  # fmt: skip
def test_names_are_read_in_the_set_of_the_request(terms: str, name: str) -> None:
    raw = _raw(SpecificCharacterSet=terms.split("\\"), QueryRetrieveLevel="STUDY", PatientName=name)
    request = find_request(raw, EXPLICIT, FindOptions(limit=9, names="exact"))
    assert request.query.matches[0].values == (name,) and request.query.limit == 10
    answer = RowWriter(request, EXPLICIT, retrieve_ae="DGIS").encode({"PatientName": name})
    data_set = pydicom.dcmread(BytesIO(answer), force=True)
    assert str(data_set.PatientName) == name
    written = data_set.SpecificCharacterSet
    assert (written if isinstance(written, str) else "\\".join(written)) == terms


def test_every_answer_names_its_set() -> None:
    request = find_request(_raw(QueryRetrieveLevel="STUDY", PatientName=""), EXPLICIT, FindOptions())
    writer = RowWriter(request, EXPLICIT, retrieve_ae="DGIS")
    for name, wanted in (("A^B", "ISO_IR 100"), ("Müller", "ISO_IR 192")):
        answer = pydicom.dcmread(BytesIO(writer.encode({"PatientName": name})), force=True)
        assert answer.SpecificCharacterSet == wanted and answer.PatientName == name


def test_deflated_identifiers_are_read_and_written() -> None:
    import zlib

    engine = zlib.compressobj(wbits=-15)
    raw = engine.compress(_raw(QueryRetrieveLevel="STUDY", PatientID="P")) + engine.flush()
    request = find_request(raw, DEFLATED, FindOptions())
    assert request.query.matches[0].values == ("P",)
    answer = RowWriter(request, DEFLATED, retrieve_ae="DGIS").encode({"PatientID": "P"})
    assert b"P" in zlib.decompress(answer, -15)
    bomb = zlib.compressobj(wbits=-15)
    with pytest.raises(IdentifierError):
        elements(bomb.compress(bytes(50_000_000)) + bomb.flush(), DEFLATED)


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG, DEFLATED])
@given(raw=st.binary(min_size=1, max_size=120))
def test_any_bytes_are_an_identifier_or_an_identifier_error(syntax: str, raw: bytes) -> None:
    for read_it in (lambda: find_request(raw, syntax, FindOptions()), lambda: locate_request(raw, syntax)):
        try:
            read_it()
        except IdentifierError as error:
            assert error.status >> 12 in (0xA, 0xC)


def test_a_retrieve_needs_its_unique_key() -> None:
    with pytest.raises(IdentifierError) as error:
        locate_request(_raw(QueryRetrieveLevel="SERIES", StudyInstanceUID="1.2"), EXPLICIT)
    assert error.value.offending == (0x0020000E,)
    located = locate_request(_raw(QueryRetrieveLevel="IMAGE", SOPInstanceUID=["1.2", "1.3"], PatientID="x"), EXPLICIT)
    assert located.instances == ("1.2", "1.3") and located.patients == ()


def test_a_long_failed_list_is_cut_where_a_length_ends() -> None:
    uids = [f"1.2.826.0.1.3680043.9.9999.{i:030d}" for i in range(5000)]
    data_set = pydicom.dcmread(BytesIO(failed_uids(uids, EXPLICIT)), force=True)
    got = list(data_set.FailedSOPInstanceUIDList)
    assert got == uids[: len(got)] and len(got) > 1000


def test_an_unknown_term_is_passed_over() -> None:
    charset = Charset.of(b"NO SUCH SET")
    assert charset.terms == () and charset.decode(b"M\xfcller", name=True)


# --- AE table --------------------------------------------------------------------------------------------------------


def test_the_table_is_reloaded_and_survives_nonsense(tmp_path: Path) -> None:
    table = AeTable(tmp_path / "ae.toml", unknown=UnknownAe(frozenset({"echo"}), ("10.0.0.0/8",)))
    assert table.entries() == () and table.caller("X", "10.1.1.1").rights == {"echo"}
    assert table.caller("X", "192.0.2.1").rights == frozenset()
    networks = ("192.0.2.0/24",)
    viewer = AeEntry(title="VIEWER", host="h", port=104, rights=("find", "move"), networks=networks, issuer="A")
    table.put(viewer)
    caller = table.caller(" VIEWER ", "192.0.2.7")
    assert caller.rights == {"find", "move"} and caller.issuer == "A" and caller.known
    assert table.caller("VIEWER", "10.1.1.1").rights == frozenset()  # spoofed: less than a stranger may
    destination = table.destination("VIEWER")
    assert destination is not None and (destination.host, destination.port) == ("h", 104)
    time.sleep(0.01)
    table.path.write_text("[[ae]]\ntitle = 3\n")
    assert table.entries() == (viewer,)  # the last good one
    with pytest.raises(AeTableError, match=r"ae\.toml: ae\.0\.title"):
        read(table.path)
    write(table.path, (viewer,))
    assert table.remove("VIEWER") and not table.remove("VIEWER")
    assert table.entries() == () and table.destination("VIEWER") is None
    assert [p.name for p in tmp_path.iterdir()] == ["ae.toml"]


@pytest.mark.parametrize("title", ["", "   ", "back\\slash", "x" * 17, "Ä"])
def test_titles_that_cannot_be(title: str) -> None:
    with pytest.raises(ValueError):
        AeEntry(title=title)


def test_an_ipv4_peer_on_a_dual_stack_socket_is_itself(tmp_path: Path) -> None:
    write(tmp_path / "ae.toml", (AeEntry(title="A", networks=("127.0.0.0/8",), rights=("find",)),))
    assert AeTable(tmp_path / "ae.toml").caller("A", "::ffff:127.0.0.1").known


def test_the_ae_table_needs_no_pynetdicom() -> None:
    """`dgis ae list` starts fast, and the private names stay in one room."""
    program = "import dgis.dimse.ae, sys; sys.exit('pynetdicom' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_only_the_runtime_imports_pynetdicom() -> None:
    room = Path(dimse.__file__).parent
    outside = [path for path in room.rglob("*.py") if path.parent.name != "runtime"]
    assert len(outside) > 10
    for path in outside:
        assert not re.search(r"^\s*(from|import) pynetdicom", path.read_text(), re.M), path
