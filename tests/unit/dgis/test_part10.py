"""The file meta information is deterministic and readable by others."""

from __future__ import annotations

import io
import struct

import pydicom
import pytest
from pydicom.data import get_testdata_file

from dgis import part10

CT = "1.2.840.10008.5.1.4.1.1.2"
LE = "1.2.840.10008.1.2.1"


def test_pydicom_reads_what_we_write() -> None:
    raw = part10.file_meta(CT, "1.2.3", LE) + struct.pack("<HH2sH", 0x0010, 0x0020, b"LO", 4) + b"PID1"
    data_set = pydicom.dcmread(io.BytesIO(raw))
    assert data_set.file_meta.MediaStorageSOPClassUID == CT
    assert data_set.file_meta.MediaStorageSOPInstanceUID == "1.2.3"
    assert data_set.file_meta.TransferSyntaxUID == LE
    assert data_set.PatientID == "PID1"


def test_same_inputs_same_bytes_and_offset_is_its_length() -> None:
    raw = part10.file_meta(CT, "1.2.34", LE)
    assert raw == part10.file_meta(CT, "1.2.34", LE)
    assert part10.data_set_offset(io.BytesIO(raw + b"rest")) == (len(raw), LE)


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "JPEG2000.dcm", "rtplan.dcm"])
def test_offset_of_real_files(name: str) -> None:
    path = get_testdata_file(name)
    assert isinstance(path, str)
    with open(path, "rb") as stream:
        offset, syntax = part10.data_set_offset(stream)
        stream.seek(offset)
        assert stream.read(2) == b"\x08\x00"
    assert syntax == pydicom.dcmread(path).file_meta.TransferSyntaxUID


def test_a_wrong_group_length_does_not_mislead() -> None:
    raw = bytearray(part10.file_meta(CT, "1.2.34", LE))
    raw[140:144] = struct.pack("<L", 9999)
    assert part10.data_set_offset(io.BytesIO(bytes(raw) + b"\x08\x00rest....")) == (len(raw), LE)


@pytest.mark.parametrize("raw", [b"", b"DICM", bytes(200), part10.file_meta(CT, "1.2", LE)[:150], part10.PREAMBLE])
def test_what_is_no_part10_file_is_refused(raw: bytes) -> None:
    with pytest.raises(part10.Part10Error):
        part10.data_set_offset(io.BytesIO(raw))


def test_a_uid_that_is_not_ascii_is_refused() -> None:
    with pytest.raises(part10.Part10Error):
        part10.file_meta(CT, "1.2.\u00e9", LE)
