"""What an identifier asks to match (PS3.4 C.2.2.2), without a socket."""

from __future__ import annotations

from datetime import date
from io import BytesIO

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from catalog.keys import LEVELS, supported
from dgis.dimse.answer import RowWriter
from dgis.dimse.charset import Charset
from dgis.dimse.identifier import FindOptions, FindRequest, find_request
from dgis.dimse.negotiation import Extensions
from dgis.dimse.values import Element, IdentifierError, match_of

IMPLICIT, EXPLICIT, BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
ASCII = Charset(())


def encoded(syntax: str = EXPLICIT, **values: object) -> bytes:
    data_set = Dataset()
    for keyword, value in values.items():
        setattr(data_set, keyword, value)
    stream = DicomBytesIO()
    stream.is_implicit_VR, stream.is_little_endian = syntax == IMPLICIT, syntax != BIG
    write_dataset(stream, data_set)
    return stream.getvalue()


def asked(syntax: str = EXPLICIT, options: FindOptions | None = None, **values: object) -> FindRequest:
    values.setdefault("QueryRetrieveLevel", "IMAGE")
    return find_request(encoded(syntax, **values), syntax, options or FindOptions())


def one(vr: str, text: str) -> tuple[str, tuple[str, ...]] | None:
    match = match_of(Element(0x00100010, vr, text.encode()), "X", ASCII)
    return None if match is None else (match.op, match.values)


@pytest.mark.parametrize(("vr", "text", "wanted"), [
    ("DA", "20200101", ("eq", ("20200101",))),
    ("DA", "20200101-", ("range", ("20200101", ""))),
    ("DA", "-20200101", ("range", ("", "20200101"))),
    ("DA", "2020.01.01-2020.02.01", ("range", ("20200101", "20200201"))),
    ("DA", "-", None), ("DA", "*", None), ("DA", "", None),
    ("TM", "0800-1200", ("range", ("0800", "1200"))),
    ("TM", "08:00:00-12:00", ("range", ("080000", "1200"))),
    ("TM", "101530.25", ("eq", ("101530.25",))),
    ("DT", "20200101-20210101", ("range", ("20200101", "20210101"))),
    ("DT", "2020-2021", ("range", ("2020", "2021"))),
    ("DT", "20200101120000.5+0100", ("eq", ("20200101120000.5",))),
    ("DT", "20200101120000-0500-20200102120000-0500", ("range", ("20200101120000", "20200102120000"))),
    ("DT", "20200101120000+0100-", ("range", ("20200101120000", ""))),
    ("DT", "-20200101120000-0500", ("range", ("", "20200101120000"))),
    ("PN", "Doe*", ("wild", ("Doe*",))), ("PN", "***", None), ("PN", "D?e", ("wild", ("D?e",))),
    ("LO", "A*\\B?", ("wild", ("A*", "B?"))), ("LO", "A\\*", None), ("CS", "CT\\MR", ("in", ("CT", "MR"))),
    ("LT", "a\\b", ("eq", ("a\\b",))), ("IS", "1\\2", ("in", ("1", "2"))), ("AS", "053*", ("eq", ("053*",))),
    ("UI", "1.2\\1.3\\1.2", ("in", ("1.2", "1.3"))), ("UI", "*", None), ("UI", "\0", None),
])  # fmt: skip
def test_one_value(vr: str, text: str, wanted: tuple[str, tuple[str, ...]] | None) -> None:
    assert one(vr, text) == wanted


@pytest.mark.parametrize("text", ["1.2*", "1.2.?", "x" * 300])
def test_no_wildcards_in_uids(text: str) -> None:
    with pytest.raises(IdentifierError) as error:
        one("UI", text)
    assert error.value.status == 0xA900 and error.value.offending == (0x00100010,)


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG])
@given(numbers=st.lists(st.integers(0, 65535), max_size=4))
def test_binary_numbers_in_every_byte_order(syntax: str, numbers: list[int]) -> None:
    matches = asked(syntax, Rows=numbers or None).query.matches
    assert [value for match in matches for value in match.values] == [str(number) for number in numbers]


@given(low=st.dates(), high=st.dates(), opened=st.sampled_from(["", "low", "high"]), spaces=st.booleans())
def test_date_ranges(low: date, high: date, opened: str, spaces: bool) -> None:
    digits = [str(day).replace("-", "") for day in (low, high)]
    ends = ["" if opened == side else text for side, text in zip(("low", "high"), digits, strict=True)]
    assert one("DA", (" - " if spaces else "-").join(ends)) == ("range", tuple(ends))


@given(vr=st.sampled_from(["PN", "LO", "CS", "SH", "DA", "TM", "DT", "UI", "IS", "US", "LT", "SQ", "UN", "AE"]),
       value=st.binary(max_size=60), little=st.booleans())  # fmt: skip
def test_any_value_is_a_match_or_universal_or_refused(vr: str, value: bytes, little: bool) -> None:
    try:
        match = match_of(Element(0x00100010, vr, value), "X", ASCII)
    except IdentifierError as error:
        assert error.offending == (0x00100010,)
        return
    assert match is None or (match.values and (match.op != "range" or len(match.values) == 2))


def _item(**values: object) -> Dataset:
    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG])
@pytest.mark.parametrize("undefined", [False, True])
def test_sequences_are_matched_and_returned(syntax: str, undefined: bool) -> None:
    data_set = _item(QueryRetrieveLevel="SERIES", RequestAttributesSequence=[
        _item(ScheduledProcedureStepID="S*", RequestedProcedureID="", ReasonForTheRequestedProcedure="")])
    data_set["RequestAttributesSequence"].is_undefined_length = undefined
    stream = DicomBytesIO()
    stream.is_implicit_VR, stream.is_little_endian = syntax == IMPLICIT, syntax != BIG
    write_dataset(stream, data_set)
    request = find_request(stream.getvalue(), syntax, FindOptions())
    name = "RequestAttributesSequence."
    assert [(m.keyword, m.op, m.values) for m in request.query.matches] == [
        (name + "ScheduledProcedureStepID", "wild", ("S*",))]
    assert request.unsupported == (name + "ReasonForTheRequestedProcedure",)
    writer = RowWriter(request, syntax, retrieve_ae="X")
    raw = writer.encode({name + "ScheduledProcedureStepID": "S1", name + "RequestedProcedureID": "R1"})
    answer = pydicom.filereader.read_dataset(BytesIO(raw), syntax == IMPLICIT, syntax != BIG)
    [item] = answer.RequestAttributesSequence
    assert (item.ScheduledProcedureStepID, item.RequestedProcedureID) == ("S1", "R1")
    assert item.ReasonForTheRequestedProcedure == ""
    empty = pydicom.filereader.read_dataset(BytesIO(writer.encode({})), syntax == IMPLICIT, syntax != BIG)
    assert len(empty.RequestAttributesSequence) == 0


def test_a_sequence_without_item_asks_for_all_of_it() -> None:
    request = asked(QueryRetrieveLevel="STUDY", IssuerOfAccessionNumberSequence=[], ProcedureCodeSequence=[])
    assert {key for key in request.query.keys if "." in key} == {
        f"IssuerOfAccessionNumberSequence.{name}"
        for name in ("LocalNamespaceEntityID", "UniversalEntityID", "UniversalEntityIDType")}
    assert request.unsupported == ("ProcedureCodeSequence",)


def test_date_and_time_are_one_moment_only_when_negotiated() -> None:
    values = {"QueryRetrieveLevel": "STUDY", "StudyDate": "20200101-20200102", "StudyTime": "1000-", "PatientID": "A"}
    apart = asked(**values)
    assert [m.keyword for m in apart.query.matches] == ["StudyDate", "StudyTime", "PatientID"]
    joined = asked(EXPLICIT, FindOptions(extensions=Extensions(date_time=True)), **values)
    assert [(m.keyword, m.values) for m in joined.query.matches] == [
        ("StudyDate+StudyTime", ("202001011000", "20200102")), ("PatientID", ("A",))]


@pytest.mark.parametrize(("values", "patient_root", "offending"), [
    ({"QueryRetrieveLevel": "SERIES"}, False, 0x0020000D),
    ({"QueryRetrieveLevel": "SERIES", "StudyInstanceUID": ["1.2", "1.3"]}, False, 0x0020000D),
    ({"QueryRetrieveLevel": "IMAGE", "StudyInstanceUID": "1.2"}, False, 0x0020000E),
    ({"QueryRetrieveLevel": "STUDY"}, True, 0x00100020),
    ({"QueryRetrieveLevel": "STUDY", "PatientID": "A*"}, True, 0x00100020),
])  # fmt: skip
def test_hierarchical_keys(values: dict[str, object], patient_root: bool, offending: int) -> None:
    with pytest.raises(IdentifierError) as error:
        asked(EXPLICIT, FindOptions(strict=True, patient_root=patient_root), **values)
    assert error.value.status == 0xA900 and error.value.offending == (offending,)
    asked(EXPLICIT, FindOptions(patient_root=patient_root), **values)
    relational = Extensions(relational=True)
    asked(EXPLICIT, FindOptions(strict=True, patient_root=patient_root, extensions=relational), **values)
    asked(EXPLICIT, FindOptions(strict=True), QueryRetrieveLevel="SERIES", StudyInstanceUID="1.2")


def test_the_set_of_an_ae_reads_undeclared_queries_and_writes_every_answer() -> None:
    options = FindOptions(charset=Charset.parse("ISO_IR 101"))
    request = asked(EXPLICIT, options, QueryRetrieveLevel="STUDY", PatientName="Dvo\xf8\xe1k")
    assert request.query.matches[0].values == ("Dvořák",) and request.forced
    writer = RowWriter(request, EXPLICIT, retrieve_ae="X")
    answer = pydicom.dcmread(BytesIO(writer.encode({"PatientName": "Dvořák^Пётр"})), force=True)
    assert answer.SpecificCharacterSet == "ISO_IR 101" and str(answer.PatientName) == "Dvořák^????"
    assert writer.replaced == 4
    for wrong in ("", "UTF-8", "ISO_IR 100\\nonsense"):
        with pytest.raises(ValueError):
            Charset.parse(wrong)


def test_undeclared_text_is_read_as_the_catalog_reads_it() -> None:
    assert Charset(()).decode("Novák".encode(), name=True) == "Novák"
    assert Charset(()).decode("Müller".encode("cp1252"), name=True) == "Müller"


def test_elements_sent_as_un_are_what_the_dictionary_says() -> None:
    raw = encoded(QueryRetrieveLevel="IMAGE") + b"\x28\x00\x10\x00UN\0\0\x02\0\0\0\x00\x02"
    request = find_request(raw, EXPLICIT, FindOptions())
    assert request.query.matches[0].values == ("512",) and request.asked[0].vr == "US"


def test_no_level_supports_what_its_identifier_cannot_name() -> None:
    """Every keyword is one element or one inside a sequence."""
    for level in LEVELS:
        for keyword in supported(level):
            assert all(pydicom.datadict.tag_for_keyword(part) for part in keyword.split(".")), keyword


def test_keys_of_lower_levels_are_matched_and_said_not_to_be_answered() -> None:
    request = asked(QueryRetrieveLevel="STUDY", SeriesDescription="t1*", InstanceNumber="3", PatientID="")
    assert {m.keyword for m in request.query.matches} == {"SeriesDescription", "InstanceNumber"}
    assert set(request.unsupported) == {"SeriesDescription", "InstanceNumber"}
    inside = [_item(ScheduledProcedureStepID="S1")]
    request = asked(QueryRetrieveLevel="STUDY", RequestAttributesSequence=inside)
    assert [m.keyword for m in request.query.matches] == ["RequestAttributesSequence.ScheduledProcedureStepID"]
    assert request.unsupported
