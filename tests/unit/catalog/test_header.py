"""The header room: what is cut out of a data set, what becomes of it, and that nothing a sender makes stops it."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.filereader import read_file_meta_info

from catalog.elements import EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE
from catalog.errors import HeaderError
from catalog.header import HEAD, HEADER_CAP, ExtractedHeader, columns, extract, extract_plain
from catalog.keys import HEADER_KEYS
from tests.helpers.catalogrecords import encoded

SYNTH = Path(__file__).resolve().parents[2] / "helpers" / "synth.py"
DATA = Path(os.environ.get("DGIS_TEST_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))
DEFLATED = "1.2.840.10008.1.2.1.99"
PIXELS = bytes.fromhex("e07f1000") + b"OW\0\0\x08\0\0\0" + bytes(8)


def synth(out: Path, *arguments: str) -> list[Path]:
    subprocess.run(
        [sys.executable, str(SYNTH), "--rows", "16", "--cols", "16", *arguments, str(out)],
        check=True,
        capture_output=True,
    )
    return sorted(out.rglob("*.dcm"))


def opened(path: Path) -> tuple[io.BytesIO, str]:
    """Skip the file meta information by hand: (the data set's bytes, transfer syntax)."""
    whole = path.read_bytes()
    if whole[128:132] != b"DICM":
        raise ValueError("no Part 10 file")
    length = int.from_bytes(whole[140:144], "little")
    meta = read_file_meta_info(path)
    return io.BytesIO(whole[144 + length :]), str(meta.TransferSyntaxUID)


def agrees_with_pydicom(path: Path) -> list[str]:
    """Name the keywords whose column is not what pydicom reads."""
    stream, syntax = opened(path)
    found = extract(stream, syntax)
    parsed = columns(found.raw, found.syntax)
    levels = {"PATIENT": parsed.patient, "STUDY": parsed.study, "SERIES": parsed.series, "IMAGE": parsed.instance}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data_set = pydicom.dcmread(path, stop_before_pixels=True)
        wrong = []
        for key in HEADER_KEYS:
            value = data_set.get(key.keyword) if len(key.path) == 1 else None
            if value is None or str(value) == "":
                continue
            text = "\\".join(map(str, value)) if isinstance(value, pydicom.multival.MultiValue) else str(value)
            if key.keyword.endswith("Date"):
                text = text.replace(".", "")  # ACR-NEMA wrote 1997.04.24 and 14:04:38; the column is DICOM's form
            elif key.keyword.endswith("Time"):
                text = text.replace(":", "")
            ours = levels[key.level][key.column]
            if str(ours) != text.strip(" ") and (key.kind != "number" or ours is None or int(str(ours)) != value):
                wrong.append(key.keyword)
    return wrong


def test_every_charset_becomes_unicode(tmp_path: Path) -> None:
    files = synth(tmp_path, "--studies", "33", "--instances", "1")
    assert len(files) == 33
    assert {path.name: found for path in files if (found := agrees_with_pydicom(path))} == {}


def test_every_syntax_and_modality(tmp_path: Path) -> None:
    files = synth(
        tmp_path,
        "--studies",
        "35",
        "--instances",
        "1",
        "--modality",
        "CT,MR,CR,US,SC,SR,PDF",
        "--syntax",
        "explicit,implicit,big,deflated,rle",
    )
    assert len({opened(path)[1] for path in files}) == 5
    assert {path: found for path in files if (found := agrees_with_pydicom(path))} == {}
    for path in files:
        stream, transfer_syntax = opened(path)
        found = extract(stream, transfer_syntax)
        assert found.complete
        if found.pixel_offset_in_dataset is not None:
            stream.seek(found.pixel_offset_in_dataset)
            assert stream.read(4) in (b"\xe0\x7f\x10\0", b"\x7f\xe0\0\x10")


def test_non_conformant_files_never_stop_it(tmp_path: Path) -> None:
    unreadable = set()
    for path in synth(tmp_path, "--odd", "all"):
        stream, syntax = io.BytesIO(path.read_bytes()), EXPLICIT_LE
        if path.read_bytes()[128:132] == b"DICM":
            stream, syntax = opened(path)
        try:
            found = extract(stream, syntax)
        except HeaderError:
            unreadable.add(path.stem)
            continue
        columns(found.raw, found.syntax)
        if path.stem == "deep_sequence":
            assert (found.complete, found.pixel_offset_in_dataset is not None) == (False, True)
            assert found.instance_uid is not None
        if path.stem == "czech_without_charset":
            assert columns(found.raw, found.syntax).patient["patient_name"] == "Žížal^Šárk"
    assert {"empty_file", "not_dicom"} <= unreadable <= {"empty_file", "not_dicom", "no_preamble"}


@pytest.mark.skipif(not DATA.exists(), reason="no directory of real images (DGIS_TEST_DATA)")
def test_real_images_agree_with_pydicom() -> None:
    seen, wrong = 0, {}
    for path in sorted(DATA.rglob("*"))[::6]:
        try:
            stream, _ = opened(path)
        except (ValueError, OSError, AttributeError, pydicom.errors.InvalidDicomError):
            continue
        if path.name.startswith(("badVR", "chrX")) or not stream.getvalue():  # they differ on purpose or by padding
            continue
        seen += 1
        found = agrees_with_pydicom(path)
        if found:
            wrong[path.name] = found
    assert wrong == {}
    assert seen > 100


def test_what_does_not_fit_is_left_out_and_the_rest_goes_in() -> None:
    data = encoded(
        SOPClassUID="1.2",
        SOPInstanceUID="1.2.3",
        PatientComments="x" * 70_000,
        PatientName="Doe",
        StudyInstanceUID="1",
        SeriesInstanceUID="2",
        ImageComments="y" * 60_000,
        StudyComments="z" * 10_000,
    )
    found = extract(io.BytesIO(data + PIXELS), EXPLICIT_LE)
    assert (found.complete, found.pixel_offset_in_dataset) == (False, len(data))
    assert len(found.raw) <= HEADER_CAP
    parsed = columns(found.raw, found.syntax)
    assert (parsed.patient["patient_name"], parsed.patient["patient_comments"]) == ("Doe", None)
    assert (parsed.study["study_comments"], parsed.instance["image_comments"]) == ("z" * 10_000, None)
    assert (found.study_uid, found.series_uid, found.instance_uid) == ("1", "2", "1.2.3")


def test_group_of_elements_after_a_huge_private_one_is_read() -> None:
    private = bytes.fromhex("09001010") + b"OB\0\0" + (5_000_000).to_bytes(4, "little") + bytes(5_000_000)
    start = encoded(SOPInstanceUID="1.2.3")
    found = extract(io.BytesIO(start + private + encoded(PatientName="Doe") + PIXELS), EXPLICIT_LE)
    assert found.raw == start + encoded(PatientName="Doe")
    assert found.complete is False


def test_encoded_elements_are_kept_byte_for_byte() -> None:
    data = encoded(SOPInstanceUID="1.2.3", PatientName="Doe^Jane^^ ", StudyInstanceUID="1.2\0\0")
    for syntax, body in ((EXPLICIT_LE, data), (IMPLICIT_LE, encoded(IMPLICIT_LE, SOPInstanceUID="1.2.3"))):
        stream = io.BytesIO(b"skipped" + body + b"trailer of another kind")
        stream.seek(7)
        assert extract(stream, syntax, length=len(body)).raw == body


def test_mislabelled_implicit_and_explicit_are_read_as_they_are() -> None:
    implicit, explicit = encoded(IMPLICIT_LE, SOPInstanceUID="1.2.3"), encoded(SOPInstanceUID="1.2.3")
    assert (
        extract(io.BytesIO(implicit), EXPLICIT_LE).syntax,
        extract(io.BytesIO(implicit), EXPLICIT_LE).instance_uid,
    ) == (IMPLICIT_LE, "1.2.3")
    assert extract(io.BytesIO(explicit), IMPLICIT_LE).instance_uid == "1.2.3"


def test_sequences_of_every_length_encoding_are_stepped_over() -> None:
    item = bytes.fromhex("feff00e0") + b"\x08\0\0\0" + bytes.fromhex("08000001") + b"SH\0\0"
    ends = bytes.fromhex("feff0de000000000feffdde000000000")
    open_item = bytes.fromhex("feff00e0ffffffff")
    sequence = bytes.fromhex("08003211") + b"SQ\0\0\xff\xff\xff\xff"
    unknown = (
        bytes.fromhex("08003311")
        + b"UN\0\0\xff\xff\xff\xff"
        + open_item
        + bytes.fromhex("080000010200000041420800")[:10]
        + ends
    )
    after = encoded(PatientID="7")
    for body in (
        sequence + item + bytes.fromhex("feffdde000000000"),
        sequence + open_item + ends,
        sequence + open_item + sequence + open_item + ends + ends,
        unknown,
    ):
        found = extract(io.BytesIO(body + after), EXPLICIT_LE)
        assert columns(found.raw, found.syntax).patient["patient_id"] == "7"
        assert found.complete


def test_ids_inside_sequences() -> None:
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    step, issuer = Dataset(), Dataset()
    step.RequestedProcedureID, step.ScheduledProcedureStepID = "RP1", "SPS1"
    issuer.LocalNamespaceEntityID = "HOSPITAL"
    for syntax in (EXPLICIT_LE, IMPLICIT_LE):
        raw = encoded(
            syntax,
            RequestAttributesSequence=Sequence([step, Dataset()]),
            IssuerOfAccessionNumberSequence=Sequence([issuer]),
            AccessionNumber="A1",
        )
        parsed = columns(raw, syntax)
        assert (parsed.series["requested_procedure_id"], parsed.series["scheduled_step_id"]) == ("RP1", "SPS1")
        assert (parsed.study["accession_issuer"], parsed.study["accession_number"]) == ("HOSPITAL", "A1")


def test_a_deflate_bomb_is_cut() -> None:
    engine = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    huge = bytes.fromhex("09001010") + b"OB\0\0" + (200_000_000).to_bytes(4, "little") + bytes(200_000_000)
    bomb = engine.compress(encoded(SOPInstanceUID="1.2.3") + huge) + engine.flush()
    found = extract(io.BytesIO(bomb), DEFLATED)
    assert (found.instance_uid, found.complete, found.syntax) == ("1.2.3", False, EXPLICIT_LE)


def test_endless_tiny_elements_are_given_up() -> None:
    tiny = bytes.fromhex("09001010") + b"SH\0\0"
    found = extract(io.BytesIO(encoded(SOPInstanceUID="1.2.3") + tiny * 600_000 + PIXELS), EXPLICIT_LE)
    assert (found.complete, found.pixel_offset_in_dataset) == (False, None)


GOOD = encoded(
    SpecificCharacterSet="ISO_IR 192",
    SOPClassUID="1.2",
    SOPInstanceUID="1.2.3",
    PatientName="Šťastná^Běla",
    StudyInstanceUID="1",
    SeriesInstanceUID="2",
    Rows=512,
    NumberOfFrames="3",
    OtherPatientIDs=["1", "2"],
)


def test_truncated_anywhere() -> None:
    for cut in range(1, len(GOOD)):
        try:
            found = extract(io.BytesIO(GOOD[:cut]), EXPLICIT_LE)
        except HeaderError:
            assert cut < 20
            continue
        columns(found.raw, found.syntax)
        assert GOOD.startswith(found.raw)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=400), syntax=st.sampled_from([EXPLICIT_LE, IMPLICIT_LE, EXPLICIT_BE, DEFLATED, "9.9"]))
def test_any_bytes(data: bytes, syntax: str) -> None:
    try:
        found = extract(io.BytesIO(data), syntax)
    except HeaderError:
        return
    columns(found.raw, found.syntax)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=8))
def test_any_damage(damage: list[tuple[int, int]]) -> None:
    data = bytearray(GOOD)
    for at, value in damage:
        data[at] = value
    try:
        found = extract(io.BytesIO(bytes(data)), EXPLICIT_LE)
    except HeaderError:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parsed = columns(found.raw, found.syntax)
    for level in (parsed.patient, parsed.study, parsed.series, parsed.instance):
        for value in level.values():
            assert not (isinstance(value, str) and "\0" in value)
            str(value).encode()


# --- the quick way, which a receiver tries first ---------------------------------------------------------------------


def _both_ways(data: bytes, syntax: str) -> tuple[ExtractedHeader | None, ExtractedHeader | None]:
    """What the quick way says, and what the careful one does (None for no data set)."""
    quick = extract_plain(data[:HEAD], syntax, length=len(data))
    try:
        return quick, extract(io.BytesIO(data), syntax, length=len(data))
    except HeaderError:
        return quick, None


def test_the_quick_way_says_the_same_or_nothing(tmp_path: Path) -> None:
    arguments = ("--modality", "CT,MR,CR,US,SC,SR,PDF", "--syntax", "explicit,implicit,big,deflated,rle")
    files = synth(tmp_path / "a", "--studies", "35", "--instances", "1", *arguments)
    files += synth(tmp_path / "b", "--odd", "all")
    if DATA.exists():
        files += [path for path in sorted(DATA.rglob("*")) if path.is_file()][::3]
    quick_ones = 0
    for path in files:
        try:
            stream, syntax = opened(path)
        except (ValueError, OSError, AttributeError, pydicom.errors.InvalidDicomError):
            continue
        data = stream.getvalue()
        for end in (len(data), len(data) - 2, len(data) // 2, 700, 8):  # and where a transfer was cut
            quick, careful = _both_ways(data[:end], syntax)
            assert quick is None or quick == careful, (path, end)
            quick_ones += quick is not None and end == len(data)
    assert quick_ones >= 21, "the quick way is for ordinary images, and there are some"


_VRS = st.sampled_from([b"UI", b"LO", b"US", b"OW", b"SQ", b"UN", b"UT", b"XX", b"\0\0", b"ox"])
_TAGS = st.sampled_from(
    [0x00020010, 0x00080018, 0x00080016, 0x0020000D, 0x0020000E, 0x00091001, 0x7FDF0010, 0x7FE00010, 0x7FE00001]
    + [0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD, 0x00000000]
)
_LENGTHS = st.sampled_from([0, 2, 8, 300, 0xFFFF, 0xFFFFFFFF])


@given(st.lists(st.tuples(_TAGS, _VRS, _LENGTHS, st.integers(0, 12)), max_size=8), st.booleans(), st.binary(max_size=9))
@settings(max_examples=400, deadline=None)
def test_the_quick_way_agrees_on_whatever_a_sender_makes(
    elements: list[tuple[int, bytes, int, int]], explicit: bool, tail: bytes
) -> None:
    data = b""
    for tag, vr, length, given_bytes in elements:
        data += (tag >> 16).to_bytes(2, "little") + (tag & 0xFFFF).to_bytes(2, "little")
        if not explicit:
            data += length.to_bytes(4, "little")
        elif vr in (b"OW", b"SQ", b"UN", b"UT"):
            data += vr + b"\0\0" + length.to_bytes(4, "little")
        else:
            data += vr + min(length, 0xFFFF).to_bytes(2, "little")
        data += bytes(range(1, given_bytes + 1)) if given_bytes != length else bytes(length)
    quick, careful = _both_ways(data + tail, EXPLICIT_LE if explicit else IMPLICIT_LE)
    assert quick is None or quick == careful


def test_the_quick_way_leaves_what_is_too_large_to_the_careful_one() -> None:
    big = b"\x09\0\x01\x10UT\0\0" + HEADER_CAP.to_bytes(4, "little") + bytes(HEADER_CAP)
    assert extract_plain((big + PIXELS)[:HEAD], EXPLICIT_LE, length=len(big + PIXELS)) is None
    fits = b"\x09\0\x01\x10UT\0\0" + (HEADER_CAP - 12).to_bytes(4, "little") + bytes(HEADER_CAP - 12)
    quick, careful = _both_ways(fits + PIXELS, EXPLICIT_LE)
    assert quick is not None and quick == careful and len(quick.raw) == HEADER_CAP


@given(st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=4), st.integers(0, 60))
@settings(max_examples=300, deadline=None)
def test_the_short_way_to_the_columns_agrees_with_the_long_one(changed: list[tuple[int, int]], cut: int) -> None:
    for syntax in (EXPLICIT_LE, IMPLICIT_LE):
        raw = bytearray(encoded(
            syntax, SpecificCharacterSet="ISO_IR 100", PatientName="Müller^J=", PatientID="1", StudyInstanceUID="1.2",
            SeriesInstanceUID="1.2.3", StudyDate="2024.01.31", Rows=7, NumberOfFrames="3", InstanceNumber="+07",
            RequestAttributesSequence=[_step("A"), _step("B")],
        ))  # fmt: skip
        for at, byte in changed:
            raw[at % len(raw)] = byte
        data = bytes(raw[: len(raw) - cut])
        quick = columns(data, syntax)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("catalog.header.plain", lambda *given, **named: None)
            assert quick == columns(data, syntax)
    assert columns(encoded(EXPLICIT_LE, Rows=7, PatientID="1"), EXPLICIT_LE).instance["rows"] == 7


def _step(step_id: str) -> pydicom.Dataset:
    item = pydicom.Dataset()
    item.ScheduledProcedureStepID = step_id
    return item
