"""One object of 1.2 GB goes in and comes out; no process of the grid grows with it."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from dgis.demo.images import data_set_sha256
from tests.helpers import dcmtk
from tests.helpers.grid import Grid

pytestmark = [dcmtk.NEEDS, pytest.mark.xdist_group("big-object"), pytest.mark.timeout(400)]

MULTIFRAME_GRAYSCALE_BYTE = "1.2.840.10008.5.1.4.1.1.7.2"
FRAMES, ROWS, COLUMNS = 1200, 1000, 1000
LIMIT_MIB = 150


def make_multiframe(path: Path) -> str:
    """Write a valid object of 1200 frames of 1 MB, streamed; returns its SOP Instance UID."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = MULTIFRAME_GRAYSCALE_BYTE
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid(None)
    ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(None), generate_uid(None)
    ds.PatientID, ds.PatientName, ds.Modality = "BIG1", "Big^Object", "OT"
    ds.NumberOfFrames, ds.Rows, ds.Columns, ds.SamplesPerPixel = FRAMES, ROWS, COLUMNS, 1
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation, ds.PhotometricInterpretation = 7, 0, "MONOCHROME2"
    dcmwrite(path, ds, enforce_file_format=True)
    with path.open("ab") as stream:
        stream.write(struct.pack("<HH2s2xL", 0x7FE0, 0x0010, b"OB", FRAMES * ROWS * COLUMNS))
        for frame in range(FRAMES):
            stream.write(hashlib.sha256(str(frame).encode()).digest() * (ROWS * COLUMNS // 32))
    return str(ds.StudyInstanceUID)


def test_1200_mb_in_and_out_in_flat_memory(tmp_path: Path) -> None:
    source, out = tmp_path / "big.dcm", tmp_path / "out"
    out.mkdir()
    study = make_multiframe(source)
    assert source.stat().st_size > 1_200_000_000
    with Grid(tmp_path / "grid") as grid:
        sent = dcmtk.run("storescu", "-aec", "DGIS", "127.0.0.1", str(grid.port), source, timeout=180)
        assert sent.returncode == 0, sent.stdout + sent.stderr
        grid.wait_drained(180)
        got = dcmtk.run(
            "getscu",
            "-S",
            "+B",
            "-aec",
            "DGIS",
            "-od",
            out,
            "-k",
            "QueryRetrieveLevel=STUDY",
            "-k",
            f"StudyInstanceUID={study}",
            "127.0.0.1",
            str(grid.port),
            timeout=180,
        )
        assert got.returncode == 0, got.stdout + got.stderr
        peaks = grid.peak_rss_mib()
    (received,) = out.iterdir()
    assert data_set_sha256(received) == data_set_sha256(source)
    print("peak RSS, MiB:", {name: round(value) for name, value in peaks.items()})
    assert {name: value for name, value in peaks.items() if value >= LIMIT_MIB} == {}
