"""C-MOVE and C-GET to receivers that do not take what is stored: every real compressed image, by real clients."""

from __future__ import annotations

import io
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pydicom
import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, build_context, build_role, evt
from pynetdicom.sop_class import (
    CTImageStorage,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

from catalog.wire import Located
from dgis import part10
from dgis.dimse.limits import PeerAddress, Timeouts
from dgis.dimse.outgoing import Adapter, Outgoing
from dgis.dimse.runtime.entity import GridAE
from dgis.dimse.scu import StoreSender
from dgis.transcode.convert import Job
from tests.helpers.dicomfiles import NEEDS_REAL, compressed
from tests.helpers.grid import free_port
from tests.unit.dgis.dimse.conftest import Edge
from tests.unit.dgis.dimse.doubles import data_bytes, make_file

GET, MOVE = StudyRootQueryRetrieveInformationModelGet, StudyRootQueryRetrieveInformationModelMove
EXPLICIT, IMPLICIT, BIG = pydicom.uid.ExplicitVRLittleEndian, pydicom.uid.ImplicitVRLittleEndian, "1.2.840.10008.1.2.2"
JPEG2000, MPEG4 = pydicom.uid.JPEG2000Lossless, "1.2.840.10008.1.2.4.102"
KEY = ("-k", "0008,0052=STUDY", "-k", "0020,000D=1.2.3.1")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _compressed(edge: Edge) -> dict[str, Path]:
    """Put every decodable real image into the study; return them by SOP Instance UID."""
    for one in compressed():
        located = edge.retrieve.add(one.path)
        edge.retrieve.files[located.instance_uid] = (_in_study(located), *edge.retrieve.files[located.instance_uid][1:])
    return {one.instance_uid: one.path for one in compressed()}


def _in_study(located: Located) -> Located:
    return located.model_copy(update={"study_uid": "1.2.3.1"})


def _check(got: dict[str, Dataset], expected: dict[str, Path], syntaxes: set[str]) -> None:
    assert set(got) == set(expected) and len(got) >= 25
    for uid, data_set in got.items():
        assert data_set.file_meta.TransferSyntaxUID in syntaxes
        assert np.array_equal(data_set.pixel_array, pydicom.dcmread(expected[uid]).pixel_array), expected[uid].name


def _read(folder: Path) -> dict[str, Dataset]:
    found = [pydicom.dcmread(path) for path in folder.iterdir()]
    return {str(data_set.SOPInstanceUID): data_set for data_set in found}


@NEEDS_REAL
@pytest.mark.parametrize(("option", "syntax"), [("+xe", EXPLICIT), ("+xb", BIG)])
def test_getscu_gets_every_compressed_image(edge: Edge, dcmtk: Any, tmp_path: Path, option: str, syntax: str) -> None:
    expected = _compressed(edge)
    out = tmp_path / "out"
    out.mkdir()
    result = dcmtk("getscu", "-v", "-S", option, "-aec", "DGIS", "-od", out, *KEY, "127.0.0.1", edge.port)
    assert result.returncode == 0, result.stderr
    _check(_read(out), expected, {syntax})
    assert list((tmp_path / "scratch0").iterdir()) == []


@NEEDS_REAL
@pytest.mark.parametrize(("option", "syntax"), [("+x=", EXPLICIT), ("+xi", IMPLICIT)])
def test_movescu_gets_every_compressed_image(edge: Edge, dcmtk: Any, tmp_path: Path, option: str, syntax: str) -> None:
    """The listener is movescu's own and exists only during the retrieve, as a viewer's does."""
    expected = _compressed(edge)
    out, port = tmp_path / "out", free_port()
    out.mkdir()
    edge.destination("MOVESCU", port)
    args = ("-S", option, "-aet", "MOVESCU", "-aem", "MOVESCU", "-aec", "DGIS", "+P", port, "-od", out, *KEY)
    result = dcmtk("movescu", *args, "127.0.0.1", edge.port)
    assert result.returncode == 0, result.stderr
    _check(_read(out), expected, {syntax})


def _study(**values: Any) -> Dataset:
    data_set = Dataset()
    data_set.QueryRetrieveLevel, data_set.StudyInstanceUID = "STUDY", "1.2.3.1"
    return data_set


def _get(edge: Edge, contexts: list[Any]) -> tuple[list[Any], list[tuple[str, bytes]]]:
    got: list[tuple[str, bytes]] = []

    def store(event: Any) -> int:
        got.append((event.context.transfer_syntax, event.request.DataSet.getvalue()))
        return 0

    ae = AE("VIEWER")
    ae.requested_contexts = [build_context(GET), *contexts]
    roles = [build_role(uid, scp_role=True) for uid in {c.abstract_syntax for c in contexts}]
    association = ae.associate(
        "127.0.0.1", edge.port, ae_title="DGIS", ext_neg=roles, evt_handlers=[(evt.EVT_C_STORE, store)]
    )
    assert association.is_established
    answers = list(association.send_c_get(_study(), GET))
    association.release()
    return answers, got


@NEEDS_REAL
@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG])
def test_a_get_with_one_syntax_only_gets_every_compressed_image(edge: Edge, tmp_path: Path, syntax: str) -> None:
    expected = _compressed(edge)
    classes = sorted({located.sop_class_uid for located, *_ in edge.retrieve.files.values()})
    answers, got = _get(edge, [build_context(uid, [syntax]) for uid in classes])
    assert answers[-1][0].Status == 0, answers[-1][0].ErrorComment
    read = {}
    for used, raw in got:
        path = tmp_path / "one.dcm"
        path.write_bytes(part10.file_meta("1.2", "1.2.3", used) + raw)
        data_set = pydicom.dcmread(path)
        read[str(data_set.SOPInstanceUID)] = data_set
    _check(read, expected, {syntax})


def test_the_original_goes_out_when_it_is_accepted(edge: Edge, tmp_path: Path) -> None:
    stored = [make_file(tmp_path / "in"), make_file(tmp_path / "in", syntax=BIG)]
    for path in stored:
        edge.retrieve.add(path)
    answers, got = _get(edge, [build_context(CTImageStorage, s) for s in (EXPLICIT, IMPLICIT, BIG)])
    assert answers[-1][0].Status == 0
    assert got == [(EXPLICIT, data_bytes(stored[0])), (BIG, data_bytes(stored[1]))]


def test_one_context_with_many_syntaxes_still_gets_everything(edge: Edge, tmp_path: Path) -> None:
    """A viewer that puts all it knows into one context: the acceptor must not choose a compressed one (nothing stored
    uncompressed could be sent in it)."""
    edge.retrieve.add(make_file(tmp_path / "in"))
    edge.retrieve.add(make_file(tmp_path / "in", syntax=BIG))
    answers, got = _get(edge, [build_context(CTImageStorage, [JPEG2000, MPEG4, IMPLICIT, EXPLICIT])])
    assert answers[-1][0].Status == 0 and [syntax for syntax, _ in got] == [IMPLICIT, IMPLICIT]


def _codestream() -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)).save(
        out, "JPEG2000", irreversible=False, no_jp2=True
    )
    return out.getvalue()


def _jpeg2000(folder: Path, codestream: bytes) -> Path:
    path = make_file(
        folder, Rows=64, Columns=64, SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2", BitsAllocated=8,
        BitsStored=8, HighBit=7, PixelRepresentation=0,
    )  # fmt: skip
    data_set = pydicom.dcmread(path)
    data_set["PixelData"].VR = "OB"
    data_set.PixelData = pydicom.encaps.encapsulate([codestream])
    data_set["PixelData"].is_undefined_length = True
    data_set.file_meta.TransferSyntaxUID = JPEG2000
    data_set.save_as(path, enforce_file_format=True)
    return path


def test_one_compressed_syntax_before_uncompressed_ones_is_a_wish(edge: Edge, tmp_path: Path) -> None:
    """DCMTK's "prefer JPEG 2000": the original comes byte for byte."""
    original = _jpeg2000(tmp_path / "in", _codestream())
    edge.retrieve.add(original)
    answers, got = _get(edge, [build_context(CTImageStorage, [JPEG2000, EXPLICIT, IMPLICIT])])
    assert answers[-1][0].Status == 0
    assert got == [(JPEG2000, data_bytes(original))]


def test_what_cannot_be_converted_is_one_failed_sub_operation_with_its_reason(edge: Edge, tmp_path: Path) -> None:
    good = [_jpeg2000(tmp_path / "in", _codestream()) for _ in range(2)]
    corrupt = _jpeg2000(tmp_path / "in", _codestream()[:60] + b"garbage" * 20)
    film = make_file(tmp_path / "in", syntax=EXPLICIT)
    for path in (good[0], corrupt, film, good[1]):
        edge.retrieve.add(path)
    bad, odd = pydicom.dcmread(corrupt).SOPInstanceUID, pydicom.dcmread(film).SOPInstanceUID
    held = edge.retrieve.files[odd]
    edge.retrieve.files[odd] = (held[0].model_copy(update={"transfer_syntax_uid": MPEG4}), *held[1:])
    answers, got = _get(edge, [build_context(CTImageStorage, [EXPLICIT])])
    status, identifier = answers[-1]
    assert status.Status == 0xB000 and status.NumberOfCompletedSuboperations == 2
    assert status.NumberOfFailedSuboperations == 2
    assert set(identifier.FailedSOPInstanceUIDList) == {bad, odd}
    assert status.ErrorComment.startswith("some not delivered: the codestream cannot be decoded")
    assert len(got) == 2 and sorted(edge.retrieve.released) == sorted(edge.retrieve.files)


def _workers() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if p.is_running() and "dgis.transcode" in p.cmdline()]


def test_a_crashing_and_a_hanging_conversion_do_not_end_the_rest_and_cancel_is_heard(
    edge: Edge, tmp_path: Path
) -> None:
    for _ in range(3):
        edge.retrieve.add(_jpeg2000(tmp_path / "in", _codestream()))
    contexts = [build_context(CTImageStorage, [EXPLICIT])]
    answers, got = _get(edge, contexts)
    assert answers[-1][0].Status == 0 and len(got) == 3
    worker = _workers()[0]
    worker.kill()
    answers, got = _get(edge, contexts)
    assert answers[-1][0].NumberOfCompletedSuboperations + answers[-1][0].NumberOfFailedSuboperations == 3
    assert len(got) >= 2
    answers, got = _get(edge, contexts)
    assert answers[-1][0].Status == 0 and len(got) == 3
    _workers()[0].suspend()  # now one hangs: heartbeats, then C-CANCEL
    final, seconds, pending = _cancelled_get(edge, contexts)
    assert final.Status == 0xFE00 and seconds < 1.0 and pending >= 2
    assert list((tmp_path / "scratch0").iterdir()) == []


def _cancelled_get(edge: Edge, contexts: list[Any]) -> tuple[Dataset, float, int]:
    ae = AE("VIEWER")
    ae.requested_contexts = [build_context(GET), *contexts]
    role = build_role(CTImageStorage, scp_role=True)
    association = ae.associate("127.0.0.1", edge.port, ae_title="DGIS", ext_neg=[role])
    pending, asked = 0, 0.0
    for status, _ in association.send_c_get(_study(), GET, msg_id=7):
        if status.Status != 0xFF00:
            break
        pending += 1
        if pending == 2:
            asked = time.monotonic()
            association.send_c_cancel(7, query_model=GET)
    seconds = time.monotonic() - asked
    association.release()
    return status, seconds, pending


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG])
def test_a_move_destination_that_takes_one_syntax_only(edge: Edge, tmp_path: Path, syntax: str) -> None:
    got: list[tuple[str, bytes]] = []
    proposed: list[list[list[str]]] = []

    def store(event: Any) -> int:
        got.append((event.context.transfer_syntax, event.request.DataSet.getvalue()))
        return 0

    def requested(event: Any) -> None:
        contexts = event.assoc.requestor.primitive.presentation_context_definition_list
        proposed.append([[str(s) for s in c.transfer_syntax] for c in contexts])

    dest = AE("DEST")
    dest.supported_contexts = [build_context(CTImageStorage, [syntax])]
    handlers = [(evt.EVT_C_STORE, store), (evt.EVT_REQUESTED, requested)]
    server = dest.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    edge.destination("DEST", server.socket.getsockname()[1])
    for stored in (EXPLICIT, BIG):
        edge.retrieve.add(make_file(tmp_path / "in", syntax=stored))
    edge.retrieve.add(_jpeg2000(tmp_path / "in", _codestream()))
    ae = AE("VIEWER")
    ae.add_requested_context(MOVE)
    association = ae.associate("127.0.0.1", edge.port, ae_title="DGIS")
    answers = list(association.send_c_move(_study(), "DEST", MOVE))
    association.release()
    server.shutdown()
    assert answers[-1][0].Status == 0 and answers[-1][0].NumberOfCompletedSuboperations == 3
    assert [used for used, _ in got] == [syntax] * 3
    # Each stored syntax alone, then what it can be converted to.
    assert proposed == [[[EXPLICIT], [BIG], [JPEG2000], [IMPLICIT]]]


class _Slowly:
    """A converter that takes longer than the receiver waits."""

    def convert(self, job: Job, *, cancelled: Callable[[], bool]) -> int:
        time.sleep(1.5)
        raw = Path(job.path).read_bytes()[job.offset : job.offset + job.length]
        return Path(job.output).write_bytes(raw)


def test_a_receiver_that_does_not_wait_for_a_conversion_is_asked_again(tmp_path: Path) -> None:
    got: list[str] = []
    ends: list[Any] = []

    def store(event: Any) -> int:
        got.append(event.context.transfer_syntax)
        return 0

    dest = AE("DEST")
    dest.network_timeout = 0.4
    dest.supported_contexts = [build_context(CTImageStorage, [IMPLICIT])]
    handlers = [(evt.EVT_C_STORE, store), (evt.EVT_ABORTED, ends.append)]
    server: Any = dest.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    path = make_file(tmp_path / "in")
    size = path.stat().st_size
    ae = GridAE("DGIS", timeouts=Timeouts(connect=2, acse=2, dimse=5, send=2, close=1))
    sender = StoreSender(
        ae, PeerAddress("DEST", "127.0.0.1", server.socket.getsockname()[1]), [(CTImageStorage, EXPLICIT)],
        originator=None, cancelled=lambda: False, adapter=Adapter(_Slowly(), lambda: tmp_path),
    )  # fmt: skip
    item = Outgoing(CTImageStorage, "1.2.3", EXPLICIT, path, 132, size - 132)
    assert [sender.send(item), sender.send(item)] == [0, 0]
    sender.close()
    server.shutdown()
    assert got == [IMPLICIT] * 2 and ends, "the receiver gave up waiting at least once"
