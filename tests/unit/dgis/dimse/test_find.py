"""C-FIND with real peers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE
from pynetdicom.sop_class import (
    PatientRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelFind,
)

from catalog.wire import Row
from dgis.dimse.ae import AeEntry
from dgis.dimse.handlers.rows import Pumps
from dgis.errors import SearchRefused
from tests.unit.dgis.dimse.conftest import Edge

ROWS: list[Row] = [
    {"StudyInstanceUID": "1.2.1", "PatientName": "Doe^Jane", "ModalitiesInStudy": ["CT", "SR"],
     "NumberOfStudyRelatedInstances": 3, "StudyDate": "20200101", "InstanceAvailability": "ONLINE"},
    {"StudyInstanceUID": "1.2.2", "PatientName": "Müller^Jörg", "ModalitiesInStudy": ["MR"],
     "NumberOfStudyRelatedInstances": 10, "StudyDate": None, "InstanceAvailability": "OFFLINE"},
]  # fmt: skip


def _query(**values: Any) -> Dataset:
    data_set = Dataset()
    for keyword, value in values.items():
        setattr(data_set, keyword, value)
    return data_set


def _find(edge: Edge, query: Dataset, *, model: str = StudyRootQueryRetrieveInformationModelFind, syntax: Any = None):  # type: ignore[no-untyped-def]
    ae = AE("VIEWER")
    ae.add_requested_context(model, syntax)
    association = ae.associate("127.0.0.1", edge.port, ae_title="DGIS")
    assert association.is_established
    answers = list(association.send_c_find(query, model))
    association.release()
    return answers


def test_study_level_answers_one_identifier_per_entity(edge: Edge) -> None:
    edge.search.rows = ROWS
    query = _query(
        QueryRetrieveLevel="STUDY", PatientName="*", StudyDate="20190101-", ModalitiesInStudy=["CT", "MR"],
        StudyInstanceUID="", NumberOfStudyRelatedInstances="", AccessionNumber="", SpecificCharacterSet="ISO_IR 100",
    )  # fmt: skip
    answers = _find(edge, query)
    assert [status.Status for status, _ in answers] == [0xFF00, 0xFF00, 0x0000]
    first, second = answers[0][1], answers[1][1]
    assert first.QueryRetrieveLevel == "STUDY" and first.RetrieveAETitle == "DGIS"
    assert first.InstanceAvailability == "ONLINE" and second.InstanceAvailability == "OFFLINE"
    assert first.ModalitiesInStudy == ["CT", "SR"] and first.NumberOfStudyRelatedInstances == 3
    assert first.AccessionNumber == "" and second.StudyDate == ""
    assert second.SpecificCharacterSet == "ISO_IR 100" and str(second.PatientName) == "Müller^Jörg"
    asked, acting_for = edge.search.asked[0]
    assert acting_for == "ae:VIEWER@a" and asked.level == "STUDY"
    assert {(m.keyword, m.op, m.values) for m in asked.matches} == {
        ("StudyDate", "range", ("20190101", "")),
        ("ModalitiesInStudy", "in", ("CT", "MR")),
    }


@pytest.mark.parametrize("level", ["PATIENT", "STUDY", "SERIES", "IMAGE"])
@pytest.mark.parametrize(
    "model", [PatientRootQueryRetrieveInformationModelFind, StudyRootQueryRetrieveInformationModelFind]
)
def test_every_level_in_both_models(edge: Edge, level: str, model: str) -> None:
    edge.search.rows = [{"PatientID": "P", "SOPInstanceUID": "1.9"}]
    answers = _find(edge, _query(QueryRetrieveLevel=level, PatientID=""), model=model)
    assert [status.Status for status, _ in answers] == [0xFF00, 0]
    assert answers[0][1].PatientID == "P"


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"])
def test_answers_are_in_the_context_syntax(edge: Edge, syntax: str) -> None:
    edge.search.rows = [{"SOPInstanceUID": "1.9", "Rows": 512, "PatientName": "A^B"}]
    answers = _find(edge, _query(QueryRetrieveLevel="IMAGE", Rows=None, PatientName=""), syntax=syntax)
    assert answers[0][1].Rows == 512 and answers[0][1].SOPInstanceUID == "1.9"


def test_utf8_when_the_requestor_cannot_read_its_own_set(edge: Edge) -> None:
    edge.search.rows = [{"PatientName": "Łukasz", "StudyInstanceUID": "1"}]
    answers = _find(edge, _query(QueryRetrieveLevel="STUDY", PatientName="", SpecificCharacterSet="ISO_IR 100"))
    assert answers[0][1].SpecificCharacterSet == "ISO_IR 192" and str(answers[0][1].PatientName) == "Łukasz"


def test_unknown_keys_come_back_empty_with_ff01(edge: Edge) -> None:
    edge.search.rows = [{"StudyInstanceUID": "1"}]
    query = _query(QueryRetrieveLevel="STUDY", ContrastBolusAgent="x")
    query.add_new(0x00091010, "LO", "")
    query.RequestAttributesSequence = [Dataset()]
    answers = _find(edge, query)
    assert [status.Status for status, _ in answers] == [0xFF01, 0]
    assert answers[0][1].ContrastBolusAgent == ""
    assert (0x0009, 0x1010) in answers[0][1]


@pytest.mark.parametrize("level", ["", "STUDIES"])
def test_bad_level_is_a900_with_the_offending_element(edge: Edge, level: str) -> None:
    (status, _), *rest = _find(edge, _query(QueryRetrieveLevel=level, PatientID=""))
    assert status.Status == 0xA900 and status.OffendingElement == 0x00080052 and rest == []
    assert edge.search.asked == []


def test_an_over_long_value_is_refused(edge: Edge) -> None:
    (status, _), *_ = _find(edge, _query(QueryRetrieveLevel="STUDY", PatientID="x" * 5000))
    assert status.Status == 0xA900 and status.OffendingElement == 0x00100020


def test_incomplete_is_c001_after_the_rows(edge: Edge) -> None:
    edge.search.rows, edge.search.incomplete = ROWS, True
    answers = _find(edge, _query(QueryRetrieveLevel="STUDY", PatientName=""))
    assert [status.Status for status, _ in answers] == [0xFF00, 0xFF00, 0xC001]
    assert "catalog" in answers[-1][0].ErrorComment


def test_a_query_the_catalog_refuses_or_breaks_on(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(error: Exception) -> None:
        def find(query: Any, *, acting_for: str | None) -> Any:
            raise error
            yield

        monkeypatch.setattr(edge.search, "find", find)

    fail(SearchRefused("SECRET"))
    assert [s.Status for s, _ in _find(edge, _query(QueryRetrieveLevel="STUDY"))] == [0xC000]
    fail(RuntimeError("SECRET"))
    assert [s.Status for s, _ in _find(edge, _query(QueryRetrieveLevel="STUDY"))] == [0x0110]
    edge.echo()


def test_the_limit_says_so(make_edge: Callable[..., Edge]) -> None:
    edge = make_edge(find_limit=2)
    edge.search.rows = [{"StudyInstanceUID": str(i)} for i in range(2)]
    query = _query(QueryRetrieveLevel="STUDY", StudyInstanceUID="")
    assert [s.Status for s, _ in _find(edge, query)] == [0xFF00, 0xFF00, 0]
    edge.search.rows = [{"StudyInstanceUID": str(i)} for i in range(9)]
    answers = _find(edge, query)
    assert [s.Status for s, _ in answers] == [0xFF00, 0xFF00, 0xA700]
    assert "2" in answers[-1][0].ErrorComment


def test_cancel_is_answered_at_once_even_when_the_catalog_hangs(edge: Edge) -> None:
    edge.search.rows = ROWS
    edge.search.block = threading.Event()
    model = StudyRootQueryRetrieveInformationModelFind
    ae = AE("VIEWER")
    ae.add_requested_context(model)
    association = ae.associate("127.0.0.1", edge.port, ae_title="DGIS")
    answers = association.send_c_find(_query(QueryRetrieveLevel="STUDY", PatientName=""), model, msg_id=5)
    assert next(answers)[0].Status == 0xFF00
    started = time.monotonic()
    association.send_c_cancel(5, query_model=model)
    assert next(answers)[0].Status == 0xFE00
    assert time.monotonic() - started < 1.0
    edge.search.block.set()
    edge.search.block = None
    assert [s.Status for s, _ in association.send_c_find(_query(QueryRetrieveLevel="STUDY"), model)] == [
        0xFF00, 0xFF00, 0,
    ]  # fmt: skip
    association.release()


def test_a_peer_that_vanishes_stops_the_query(edge: Edge) -> None:
    edge.search.rows = [{"StudyInstanceUID": str(i)} for i in range(100_000)]
    model = StudyRootQueryRetrieveInformationModelFind
    ae = AE("VIEWER")
    ae.add_requested_context(model)
    association = ae.associate("127.0.0.1", edge.port, ae_title="DGIS")
    next(association.send_c_find(_query(QueryRetrieveLevel="STUDY"), model))
    association.abort()
    deadline = time.monotonic() + 3
    while not edge.search.closed:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_findscu(edge: Edge, dcmtk: Any, tmp_path: Path) -> None:
    edge.search.rows = ROWS
    result = dcmtk(
        "findscu", "-S", "-aec", "DGIS", "-k", "0008,0052=STUDY", "-k", "PatientName=", "-k", "StudyInstanceUID",
        "-X", "-od", tmp_path, "127.0.0.1", edge.port,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    found = [pydicom.dcmread(path, force=True) for path in sorted(tmp_path.glob("rsp*.dcm"))]
    assert [str(d.PatientName) for d in found] == ["Doe^Jane", "Müller^Jörg"]
    assert found[1].SpecificCharacterSet == "ISO_IR 192"


def test_after_a_cancel_the_association_is_free_although_the_catalog_hangs(edge: Edge) -> None:
    edge.search.rows = ROWS
    hanging = edge.search.block = threading.Event()
    model = StudyRootQueryRetrieveInformationModelFind
    ae = AE("VIEWER")
    ae.add_requested_context(model)
    association = ae.associate("127.0.0.1", edge.port, ae_title="DGIS")
    answers = association.send_c_find(_query(QueryRetrieveLevel="STUDY"), model, msg_id=5)
    assert next(answers)[0].Status == 0xFF00
    started = time.monotonic()
    association.send_c_cancel(5, query_model=model)
    assert next(answers)[0].Status == 0xFE00
    edge.search.block = None
    query = _query(QueryRetrieveLevel="STUDY")
    assert [s.Status for s, _ in association.send_c_find(query, model)] == [0xFF00, 0xFF00, 0]
    association.release()
    assert time.monotonic() - started < 1.0
    assert edge.search.closed == 1, "the first query still waits for the catalog"
    hanging.set()
    deadline = time.monotonic() + 2
    while edge.search.closed < 2:
        assert time.monotonic() < deadline, "the query that was given up is closed at its next row"
        time.sleep(0.01)


def test_what_an_ae_reads_and_how_much_is_in_the_table(edge: Edge) -> None:
    edge.table.put(AeEntry(title="VIEWER", rights=("find",), find_limit=1, charset="ISO_IR 100"))
    edge.search.rows = [{"StudyInstanceUID": "1", "PatientName": "Łukasz"}, {"StudyInstanceUID": "2"}]
    answers = _find(edge, _query(QueryRetrieveLevel="STUDY", PatientName="", SpecificCharacterSet="ISO_IR 192"))
    assert [s.Status for s, _ in answers] == [0xFF00, 0xA700]
    assert answers[0][1].SpecificCharacterSet == "ISO_IR 100" and str(answers[0][1].PatientName) == "?ukasz"
    assert edge.replaced == [1]


def test_unsupported_keys_are_named(edge: Edge) -> None:
    edge.search.rows = [{"StudyInstanceUID": "1"}]
    query = _query(QueryRetrieveLevel="STUDY", ContrastBolusAgent="secret")
    query.add_new(0x00091010, "LO", "secret")
    (status, _), _ = _find(edge, query)
    assert status.ErrorComment == "not supported: 00091010, ContrastBolusAgent"


def test_many_answers_arrive_whole_and_in_order(edge: Edge) -> None:
    edge.search.rows = [{"StudyInstanceUID": f"1.2.{i}", "PatientName": "Doe^" + "x" * (i % 60)} for i in range(5000)]
    answers = _find(edge, _query(QueryRetrieveLevel="STUDY", StudyInstanceUID="", PatientName=""))
    assert [answer.StudyInstanceUID for _, answer in answers[:-1]] == [f"1.2.{i}" for i in range(5000)]


def test_no_more_queries_than_may_wait(edge: Edge) -> None:
    ended = threading.Event()

    def endless() -> Any:
        while not ended.wait(0.01):
            yield {}

    pumps = Pumps(2)
    running = [pumps.start(endless()), pumps.start(endless())]
    assert all(running) and pumps.start(iter(())) is None
    for pump in running:
        assert pump is not None
        pump.stop()
        assert pump.take() == []
    deadline = time.monotonic() + 2
    while pumps.start(iter(())) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    ended.set()
