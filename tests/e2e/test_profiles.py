"""The request shapes of viewers that people use, against a whole grid.

Each profile sends what the viewer's published source sends: its keys, its presentation contexts and roles, its way to
end. pynetdicom only carries the messages. What is expected is read from the files, not from the grid.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pydicom
import pytest
from pydicom import uid as uids
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pynetdicom import AE, build_context, build_role, evt
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import AsynchronousOperationsWindowNegotiation
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import _STORAGE_CLASSES

from dgis.demo.viewer import Viewer, _keep_responses
from tests.helpers import library
from tests.helpers.dicomfiles import images
from tests.helpers.grid import Grid, free_port

pytestmark = pytest.mark.xdist_group("profiles")

PATIENT_FIND = "1.2.840.10008.5.1.4.1.2.1.1"
FIND, MOVE, GET = (f"1.2.840.10008.5.1.4.1.2.2.{n}" for n in (1, 2, 3))
LEI, LEE, BEE = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
CT, MR, US = uids.CTImageStorage, uids.MRImageStorage, uids.UltrasoundMultiFrameImageStorage
IN_USE = [CT, MR, US, uids.SecondaryCaptureImageStorage]


@dataclass
class Archive:
    """A grid that holds ``files`` (by SOP Instance UID)."""

    grid: Grid
    files: dict[str, Dataset]

    def studies(self) -> list[str]:
        return sorted({str(one.StudyInstanceUID) for one in self.files.values()})

    def of(self, **values: str) -> dict[str, Dataset]:
        """The stored instances with these values."""
        return {u: d for u, d in self.files.items() if all(d.get(k) == v for k, v in values.items())}

    def destination(self, title: str) -> int:
        port = free_port()
        self.grid.cli("ae", "add", title, "--host", "127.0.0.1", "--port", str(port))
        return port


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    place = tmp_path_factory.mktemp("profiles")
    files = library.make(place / "images")
    with Grid(place / "grid") as grid:
        sender = Viewer(title="MODALITY", called="DGIS", host="127.0.0.1", port=grid.port)
        latest_first = images(place / "images")[::-1]
        statuses = Counter(status for _, status in sender.store(latest_first))
        assert statuses == {0: len(files)}
        yield Archive(grid, files)


@dataclass
class Client:
    """One application entity; ``received`` is what came by C-STORE, as it crossed the wire."""

    archive: Archive
    title: str
    max_pdu: int = 16384
    received: dict[str, Dataset] = field(default_factory=dict)
    opened: list[float] = field(default_factory=list)

    def store(self, event: evt.Event) -> int:
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = event.context.transfer_syntax
        syntax = uids.UID(meta.TransferSyntaxUID)
        stream = DicomBytesIO(event.request.DataSet.getvalue())
        data_set = pydicom.filereader.read_dataset(stream, syntax.is_implicit_VR, syntax.is_little_endian)
        made = pydicom.FileDataset(stream, data_set, file_meta=meta, is_implicit_VR=syntax.is_implicit_VR)
        self.received[str(event.request.AffectedSOPInstanceUID)] = made
        return 0x0000

    @contextmanager
    def association(
        self, contexts: Sequence[PresentationContext], *, negotiation: Sequence[Any] = (), within: float = 3.0
    ) -> Iterator[Association]:
        ae = AE(self.title)
        ae.maximum_pdu_size = self.max_pdu
        ae.connection_timeout = ae.acse_timeout = within
        ae.requested_contexts = list(contexts)
        association = ae.associate(
            "127.0.0.1", self.archive.grid.port, ae_title="DGIS", ext_neg=list(negotiation),
            evt_handlers=[(evt.EVT_C_STORE, self.store)],
        )  # fmt: skip
        assert association.is_established
        _keep_responses(association)
        try:
            yield association
        finally:
            if association.is_established:
                association.release()

    @contextmanager
    def listener(self, port: int, contexts: Sequence[tuple[str, list[str]]]) -> Iterator[None]:
        """The SCP of a C-MOVE, there for as long as the block runs."""
        ae = AE(self.title)
        ae.maximum_pdu_size = self.max_pdu
        for sop_class, syntaxes in contexts:
            ae.add_supported_context(sop_class, syntaxes)
        handlers = [
            (evt.EVT_C_STORE, self.store),
            (evt.EVT_CONN_OPEN, lambda _: self.opened.append(time.monotonic())),
        ]
        server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)  # type: ignore[arg-type]
        try:
            yield
        finally:
            server.shutdown()


def keys(level: str, charset: str = "", **values: Any) -> Dataset:
    query = Dataset()
    if charset:
        query.SpecificCharacterSet = charset
    query.QueryRetrieveLevel = level
    for keyword, value in values.items():
        setattr(query, keyword, value)
    return query


def find(association: Association, query: Dataset, *, model: str = FIND) -> list[Dataset]:
    """The answers; the final status must be Success, each answer FF00."""
    answers = [(status.Status, answer) for status, answer in association.send_c_find(query, model)]
    assert [status for status, _ in answers] == [0xFF00] * (len(answers) - 1) + [0]
    return [answer for _, answer in answers if answer is not None]


def retrieve(responses: Iterator[tuple[Dataset, Dataset | None]]) -> Dataset:
    """Run to the end; pending counts must go one way and the sum must hold. Returns the final response."""
    total, before = None, 0
    for status, _ in responses:
        if status.Status != 0xFF00:
            return status
        done = status.NumberOfCompletedSuboperations + status.NumberOfFailedSuboperations
        done += status.NumberOfWarningSuboperations
        total = total or done + status.NumberOfRemainingSuboperations
        assert done + status.NumberOfRemainingSuboperations == total and done >= before
        before = done
    raise AssertionError("no final response")


def check(client: Client, expected: dict[str, Dataset], *, syntaxes: set[str] | None = None) -> None:
    """Everything arrived, shows the same picture, in one of these syntaxes."""
    assert set(client.received) == set(expected)
    for uid, got in client.received.items():
        assert syntaxes is None or library.syntax(got) in syntaxes
        assert library.same_pixels(got, expected[uid]), uid
    order = [(one.SeriesInstanceUID, int(one.InstanceNumber)) for one in client.received.values()]
    assert order == sorted(order, key=lambda pair: (first_of(order, pair[0]), pair[1])), "each series by InstanceNumber"


def first_of(order: list[tuple[str, int]], series: str) -> int:
    return next(index for index, (uid, _) in enumerate(order) if uid == series)


def counts(final: Dataset) -> tuple[int, int, int]:
    return (
        final.NumberOfCompletedSuboperations,
        final.NumberOfFailedSuboperations,
        final.NumberOfWarningSuboperations,
    )


# --- Weasis (DicomQrView, RetrieveTask, store-tcs.properties; dcm4che below) ------------------------------------------

WEASIS_KEYS = (
    "PatientName", "PatientID", "PatientSex", "PatientBirthDate", "IssuerOfPatientID", "StudyInstanceUID",
    "StudyDescription", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyID",
    "InstitutionName", "ModalitiesInStudy", "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances",
)  # fmt: skip
IVR_LE_FIRST = [LEI, LEE, BEE]
WEASIS_SYNTAXES = [
    LEI, LEE, uids.JPEGBaseline8Bit, uids.JPEGExtended12Bit, uids.JPEGLosslessSV1, uids.JPEGLSLossless,
    uids.JPEG2000Lossless, uids.JPEG2000, uids.RLELossless,
]  # fmt: skip


def weasis(archive: Archive) -> Client:
    return Client(archive, "WEASIS_AE")


def weasis_query(**search: Any) -> Dataset:
    return keys("STUDY", "ISO_IR 192", **{**dict.fromkeys(WEASIS_KEYS, ""), **search})


@pytest.mark.parametrize(
    ("search", "wanted"),
    [
        ({"StudyDate": "20240105-"}, lambda d: d.StudyDate >= "20240105"),
        ({"StudyDate": "-20240105"}, lambda d: d.StudyDate <= "20240105"),
        ({"StudyDate": "20240103-20240105"}, lambda d: "20240103" <= d.StudyDate <= "20240105"),
        ({"PatientName": "Dvořáková*"}, lambda d: str(d.PatientName).startswith("Dvořáková")),
        ({"PatientName": "*小東*"}, lambda d: "小東" in str(d.PatientName)),
        ({"PatientName": "muller^jorg"}, lambda d: str(d.PatientName) == "Müller^Jörg"),
        ({"AccessionNumber": "A00100000003"}, lambda d: d.AccessionNumber == "A00100000003"),
        ({"InstitutionName": "Nemocnice Žďár*"}, lambda d: d.get("InstitutionName", "").startswith("Nemocnice Žďár")),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_weasis_queries(archive: Archive, search: dict[str, str], wanted: Any) -> None:
    expected = {str(one.StudyInstanceUID): one for one in archive.files.values() if wanted(one)}
    with weasis(archive).association([build_context(FIND, IVR_LE_FIRST)]) as association:
        answers = find(association, weasis_query(**search))
    assert {answer.StudyInstanceUID for answer in answers} == set(expected) and len(answers) == len(expected) > 0
    for answer in answers:
        stored = expected[answer.StudyInstanceUID]
        assert all(keyword in answer for keyword in WEASIS_KEYS)
        assert answer.SpecificCharacterSet == "ISO_IR 192", "always there, and as asked"
        for keyword in ("PatientName", "PatientID", "InstitutionName", "StudyDate", "AccessionNumber"):
            assert str(answer[keyword].value) == str(stored.get(keyword, ""))


@pytest.mark.parametrize("modalities", [["CT", "US"], ["MR", "XA", "PT"], ["XA"], ["MR", "US", "CT", "SC", "OT"]])
def test_weasis_ticks_several_modalities(archive: Archive, modalities: list[str]) -> None:
    in_study: dict[str, set[str]] = {}
    for one in archive.files.values():
        in_study.setdefault(str(one.StudyInstanceUID), set()).add(one.Modality)
    with weasis(archive).association([build_context(FIND, IVR_LE_FIRST)]) as association:
        answers = find(association, weasis_query(ModalitiesInStudy=modalities))
    expected = {study for study, kinds in in_study.items() if kinds & set(modalities)}
    assert {answer.StudyInstanceUID for answer in answers} == expected and len(answers) == len(expected)
    for answer in answers:
        value = answer.ModalitiesInStudy
        assert set([value] if isinstance(value, str) else value) == in_study[answer.StudyInstanceUID]


def test_weasis_cancels_at_its_limit(archive: Archive) -> None:
    """It counts answers, sends C-CANCEL at its limit, then uses the association again."""
    with weasis(archive).association([build_context(FIND, IVR_LE_FIRST)]) as association:
        statuses, began = [], time.monotonic()
        for status, _ in association.send_c_find(weasis_query(), FIND, msg_id=7):
            statuses.append(status.Status)
            if len(statuses) == 3:
                association.send_c_cancel(7, query_model=FIND)
        assert statuses[-1] in (0xFE00, 0x0000), "a cancel may come after the last answer was sent"
        assert set(statuses[:-1]) == {0xFF00} and time.monotonic() - began < 1.0
        assert len(find(association, weasis_query(StudyInstanceUID=archive.studies()[0]))) == 1


def test_weasis_moves_many_studies_to_a_listener_that_exists_only_meanwhile(archive: Archive) -> None:
    client = weasis(archive)
    port = archive.destination(client.title)
    every = [(sop_class, WEASIS_SYNTAXES) for sop_class in IN_USE]
    request = keys("STUDY", StudyInstanceUID=archive.studies())
    contexts = [build_context(MOVE, IVR_LE_FIRST)]
    with client.association(contexts) as association, client.listener(port, every):
        assert client.opened == [], "nobody probed before"
        final = retrieve(association.send_c_move(request, client.title, MOVE))
    assert final.Status == 0 and counts(final) == (len(archive.files), 0, 0)
    check(client, archive.files)
    assert {uid: library.syntax(one) for uid, one in client.received.items()} == {
        uid: library.syntax(one) for uid, one in archive.files.items()
    }, "the listener takes them all: nothing is converted"
    with client.association(contexts) as association:
        began = time.monotonic()
        final = retrieve(association.send_c_move(request, client.title, MOVE))
        assert final.Status == 0xA702 and final.ErrorComment and time.monotonic() - began < 20
        assert final.NumberOfFailedSuboperations == len(archive.files)


def test_weasis_gets_many_studies(archive: Archive) -> None:
    """One context of many syntaxes a SOP class, its role SCP only, an operations window proposed."""
    client = weasis(archive)
    classes = [*IN_USE, *[c for c in sorted(_STORAGE_CLASSES.values()) if c not in IN_USE][: 40 - len(IN_USE)]]
    contexts = [build_context(GET, IVR_LE_FIRST), *(build_context(c, WEASIS_SYNTAXES) for c in classes)]
    window = AsynchronousOperationsWindowNegotiation()
    window.maximum_number_operations_invoked = window.maximum_number_operations_performed = 1
    roles = [build_role(sop_class, scu_role=False, scp_role=True) for sop_class in classes]
    with client.association(contexts, negotiation=[*roles, window]) as association:
        assert len(association.accepted_contexts) == 41
        final = retrieve(association.send_c_get(keys("STUDY", StudyInstanceUID=archive.studies()), GET))
    assert final.Status == 0 and counts(final) == (len(archive.files), 0, 0)
    check(client, archive.files, syntaxes=set(WEASIS_SYNTAXES))


# --- CTK / 3D Slicer (ctkDICOMQuery, ctkDICOMRetrieve; DCMTK's DcmSCU below) ------------------------------------------

CTK_SYNTAXES = [LEE, BEE, LEI]
CTK_PATIENT = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex")
CTK_STUDY = (
    "PatientID", "PatientName", "PatientBirthDate", "StudyID", "StudyInstanceUID", "StudyDescription", "StudyDate",
    "StudyTime", "ModalitiesInStudy", "AccessionNumber", "NumberOfStudyRelatedInstances", "NumberOfStudyRelatedSeries",
)  # fmt: skip
CTK_SERIES = (
    "SeriesNumber", "SeriesDescription", "SeriesInstanceUID", "SeriesDate", "SeriesTime", "Modality",
    "NumberOfSeriesRelatedInstances", "Rows", "Columns",
)  # fmt: skip


def ctk(archive: Archive) -> Client:
    return Client(archive, "SLICER")


def ctk_contexts() -> tuple[list[PresentationContext], list[Any]]:
    """MOVE, GET and 120 storage classes as SCP: 122 contexts of three uncompressed syntaxes."""
    classes = [*IN_USE, *[c for c in sorted(_STORAGE_CLASSES.values()) if c not in IN_USE]][:120]
    contexts = [build_context(sop_class, CTK_SYNTAXES) for sop_class in (MOVE, GET, *classes)]
    return contexts, [build_role(sop_class, scu_role=False, scp_role=True) for sop_class in classes]


def test_ctk_walks_down_from_the_patient_in_study_root(archive: Archive) -> None:
    with ctk(archive).association([build_context(FIND, CTK_SYNTAXES)]) as association:
        asked = keys("PATIENT", "ISO_IR 100", **dict.fromkeys(CTK_PATIENT, ""))
        asked.PatientName = "*Müller*"
        [patient] = find(association, asked)
        assert str(patient.PatientName) == "Müller^Jörg" and patient.QueryRetrieveLevel == "PATIENT"
        asked = keys("STUDY", "ISO_IR 100", **dict.fromkeys(CTK_STUDY, ""))
        asked.PatientID, asked.PatientName, asked.StudyDate = f"*{patient.PatientID}*", "*Müller*", "20231231-20240131"
        asked.ModalitiesInStudy = ["CT", "MR"]
        [study] = find(association, asked)
        stored = archive.of(StudyInstanceUID=study.StudyInstanceUID)
        assert int(study.NumberOfStudyRelatedInstances) == len(stored) == 6
        assert int(study.NumberOfStudyRelatedSeries) == 2
        asked = keys("SERIES", **dict.fromkeys(CTK_SERIES, ""), StudyInstanceUID=study.StudyInstanceUID)
        asked.SeriesDescription = "**"
        series = find(association, asked)
        assert {one.SeriesInstanceUID for one in series} == {one.SeriesInstanceUID for one in stored.values()}
        for one in series:
            assert (int(one.NumberOfSeriesRelatedInstances), one.Rows, one.Columns) == (3, 32, 32)
            image = keys("IMAGE", SOPInstanceUID="", InstanceNumber="", SOPClassUID="")
            image.StudyInstanceUID, image.SeriesInstanceUID = study.StudyInstanceUID, one.SeriesInstanceUID
            assert {i.SOPInstanceUID for i in find(association, image)} == set(
                archive.of(SeriesInstanceUID=one.SeriesInstanceUID)
            )


@pytest.mark.parametrize("level", ["STUDY", "SERIES", "IMAGE"])
@pytest.mark.parametrize("way", ["get", "move"])
def test_ctk_retrieves_with_the_patient_id_at_every_level(archive: Archive, way: str, level: str) -> None:
    """One association of 122 contexts, answered in time, for one retrieve after the other."""
    client = ctk(archive)
    study = archive.of(StudyInstanceUID=library.COMPRESSED_STUDY)
    chosen = [study, archive.of(Modality="US", PatientID="SYN001000004")]
    contexts, roles = ctk_contexts()
    port = archive.destination(client.title)
    expected: dict[str, Dataset] = {}
    began = time.monotonic()
    with client.association(contexts, negotiation=roles) as association:
        assert time.monotonic() - began < 1.0 and len(association.accepted_contexts) == 122
        for group in chosen:
            one = next(iter(group.values()))
            request = keys(level, PatientID=one.PatientID, StudyInstanceUID=one.StudyInstanceUID)
            if level != "STUDY":
                request.SeriesInstanceUID = one.SeriesInstanceUID
            if level == "IMAGE":
                request.SOPInstanceUID = one.SOPInstanceUID
            unique = [e.keyword for e in request if e.keyword not in ("QueryRetrieveLevel", "SpecificCharacterSet")]
            wanted = archive.of(**{keyword: request[keyword].value for keyword in unique})
            expected |= wanted
            if way == "get":
                final = retrieve(association.send_c_get(request, GET))
            else:
                with client.listener(port, [(sop_class, CTK_SYNTAXES) for sop_class in IN_USE]):
                    final = retrieve(association.send_c_move(request, client.title, MOVE))
            assert final.Status == 0 and counts(final) == (len(wanted), 0, 0)
    check(client, expected, syntaxes=set(CTK_SYNTAXES))


def test_ctk_drops_the_association_to_cancel(archive: Archive) -> None:
    """It sends no C-CANCEL: it ends the association in mid-retrieve. The next one finds all as before."""
    client = ctk(archive)
    contexts, roles = ctk_contexts()
    with client.association(contexts, negotiation=roles) as association:
        responses = association.send_c_get(keys("STUDY", StudyInstanceUID=archive.studies()), GET)
        next(responses)
        association.abort()
    again = ctk(archive)
    study = archive.studies()[0]
    with again.association(contexts, negotiation=roles) as association:
        assert retrieve(association.send_c_get(keys("STUDY", StudyInstanceUID=study), GET)).Status == 0
    check(again, archive.of(StudyInstanceUID=study), syntaxes=set(CTK_SYNTAXES))


# --- Horos (DCMTKStudyQueryNode, DCMTKSeriesQueryNode, DCMTKQueryNode) ------------------------------------------------

HOROS_STUDY = (
    "PatientName", "PatientID", "AccessionNumber", "StudyDescription", "PatientBirthDate", "StudyDate", "StudyTime",
    "StudyID", "StudyInstanceUID", "NumberOfStudyRelatedInstances", "ReferringPhysicianName",
    "PerformingPhysicianName", "InstitutionName", "StudyComments", "InterpretationStatusID", "BodyPartExamined",
)  # fmt: skip
HOROS_SERIES = (
    "SeriesDescription", "SeriesDate", "SeriesTime", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber",
    "NumberOfSeriesRelatedInstances", "Modality", "ReferringPhysicianName", "PerformingPhysicianName",
    "InstitutionName", "BodyPartExamined", "StudyComments", "InterpretationStatusID",
)  # fmt: skip
HOROS_SYNTAXES = [
    uids.JPEG2000Lossless, uids.JPEG2000, uids.JPEGBaseline8Bit, uids.JPEGExtended12Bit, uids.JPEGLosslessSV1,
    uids.RLELossless, LEE, LEI,
]  # fmt: skip


@pytest.mark.parametrize("alias", ["Modality", "ModalitiesInStudy"])
def test_horos_lists_studies_and_opens_one(archive: Archive, alias: str) -> None:
    client = Client(archive, "HOROS")
    with client.association([build_context(FIND, [LEE, BEE, LEI])]) as association:
        asked = keys("STUDY", "ISO_IR 100", **dict.fromkeys(HOROS_STUDY, ""), **{alias: "US"})
        answers = find(association, asked)
        expected = {str(one.StudyInstanceUID) for one in archive.files.values() if one.Modality == "US"}
        assert {answer.StudyInstanceUID for answer in answers} == expected and len(answers) == len(expected) == 6
        for answer in answers:
            assert "US" in answer[alias].value and all(keyword in answer for keyword in HOROS_STUDY)
        study = answers[0].StudyInstanceUID
        asked = keys("SERIES", **{**dict.fromkeys(HOROS_SERIES, ""), "StudyInstanceUID": study})
        stored = archive.of(StudyInstanceUID=study)
        assert {one.SeriesInstanceUID: one.Modality for one in find(association, asked)} == {
            str(one.SeriesInstanceUID): one.Modality for one in stored.values()
        }


def test_horos_gets_a_long_list_in_compressed_syntaxes(archive: Archive) -> None:
    """A list far longer than what there is, the originals where it takes them, a decoded image where not."""
    client = Client(archive, "HOROS", max_pdu=131072)
    contexts = [build_context(GET, [LEE, LEI])]
    contexts += [build_context(c, [s]) for c in IN_USE for s in HOROS_SYNTAXES]
    roles = [build_role(c, scu_role=True, scp_role=True) for c in IN_USE]
    unknown = [f"1.2.826.0.1.3680043.10.1445.99.{number}" for number in range(500)]
    with client.association(contexts, negotiation=roles) as association:
        request = keys("STUDY", StudyInstanceUID=[*unknown, *archive.studies()])
        final = retrieve(association.send_c_get(request, GET))
    assert final.Status == 0 and counts(final) == (len(archive.files), 0, 0)
    check(client, archive.files, syntaxes=set(HOROS_SYNTAXES))
    for uid, stored in archive.files.items():
        if library.syntax(stored) in HOROS_SYNTAXES:
            assert library.syntax(client.received[uid]) == library.syntax(stored)


# --- a K-PACS-like viewer: FIND SCU, MOVE SCU with itself as destination, STORE SCP and SCU ---------------------------


def test_an_old_viewer_finds_moves_to_itself_and_sends_back(archive: Archive) -> None:
    """Implicit VR only, its listener always open, each series with a request of its own on one association."""
    client = Client(archive, "KPACS")
    port = archive.destination(client.title)
    find_move = [build_context(sop_class, [LEI]) for sop_class in (FIND, PATIENT_FIND, MOVE)]
    with client.listener(port, [(sop_class, [LEI]) for sop_class in IN_USE]):
        with client.association(find_move) as association:
            [patient] = find(association, keys("PATIENT", PatientName="NOVAK*", PatientID=""), model=PATIENT_FIND)
            study = keys("STUDY", PatientID=patient.PatientID, StudyInstanceUID="", PatientName="", StudyDate="")
            [study] = find(association, study)
            series = find(association, keys("SERIES", StudyInstanceUID=study.StudyInstanceUID, SeriesInstanceUID=""))
            for one in series:
                request = keys(
                    "SERIES", StudyInstanceUID=study.StudyInstanceUID, SeriesInstanceUID=one.SeriesInstanceUID
                )
                final = retrieve(association.send_c_move(request, client.title, MOVE))
                assert final.Status == 0 and counts(final) == (3, 0, 0)
        check(client, archive.of(StudyInstanceUID=study.StudyInstanceUID), syntaxes={LEI})
    contexts, roles = [build_context(CT, [LEI])], [build_role(CT, scu_role=True, scp_role=False)]
    changed = next(one for one in client.received.values() if one.SOPClassUID == CT)
    changed.StudyInstanceUID, changed.SeriesInstanceUID = (
        "1.2.826.0.1.3680043.10.1445.7",
        "1.2.826.0.1.3680043.10.1445.7.1",
    )
    changed.SOPInstanceUID, changed.PatientID = "1.2.826.0.1.3680043.10.1445.7.1.1", "SENTBACK"
    changed.file_meta.MediaStorageSOPClassUID = changed.SOPClassUID
    changed.file_meta.MediaStorageSOPInstanceUID = changed.SOPInstanceUID
    with client.association(contexts, negotiation=roles) as association:
        assert association.send_c_store(changed).Status == 0
    with client.association(find_move) as association:
        [sent] = find(association, keys("STUDY", PatientID="SENTBACK", StudyInstanceUID=""))
        assert sent.StudyInstanceUID == changed.StudyInstanceUID, "findable by release"
