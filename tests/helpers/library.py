"""A small archive for viewers to ask: nine studies of three modalities, and one of compressed images."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pydicom
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from tests.helpers.dicomfiles import synth

COMPRESSED_STUDY = "1.2.826.0.1.3680043.10.1445.1"
_BUNDLED = (
    "MR_small_RLE.dcm",
    "MR_small_jp2klossless.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
    "SC_rgb_jpeg_gdcm.dcm",
    "SC_rgb_jpeg_dcmtk.dcm",
)


def make(folder: Path) -> dict[str, Dataset]:
    """Write the files below ``folder``; return them by SOP Instance UID."""
    synth(
        folder / "synthetic",
        *("--studies", "9", "--series", "2", "--instances", "3", "--rows", "32", "--cols", "32"),
        *("--modality", "CT,MR,US", "--charset", "latin1,latin2,utf8", "--syntax", "explicit,implicit,rle"),
    )
    (folder / "compressed").mkdir()
    for number, name in enumerate(_BUNDLED, 1):
        _compressed(name, number).save_as(folder / "compressed" / f"{number}.dcm", enforce_file_format=True)
    return read(folder.rglob("*.dcm"))


def _compressed(name: str, number: int) -> Dataset:
    found = get_testdata_file(name, download=False)
    assert isinstance(found, str), f"pydicom has no {name}"
    data_set = pydicom.dcmread(found)
    data_set.StudyInstanceUID = COMPRESSED_STUDY
    data_set.SeriesInstanceUID = f"{COMPRESSED_STUDY}.{data_set.Modality == 'MR' and 1 or 2}"
    data_set.SOPInstanceUID = f"{data_set.SeriesInstanceUID}.{number}"
    data_set.file_meta.MediaStorageSOPInstanceUID = data_set.SOPInstanceUID
    data_set.PatientID, data_set.PatientName = "COMPRESSED", "Packed^Image"
    data_set.StudyDate, data_set.InstanceNumber = "20200101", number
    data_set.InstitutionName, data_set.AccessionNumber = "Packing", "PACKED"  # of one study, the same in all
    return data_set


def read(paths: Iterable[Path]) -> dict[str, Dataset]:
    """The instances of these files by SOP Instance UID."""
    found = [pydicom.dcmread(path) for path in sorted(paths)]
    return {str(data_set.SOPInstanceUID): data_set for data_set in found}


def syntax(data_set: Dataset) -> str:
    return str(data_set.file_meta.TransferSyntaxUID)


def same_pixels(got: Dataset, stored: Dataset) -> bool:
    """Whether both decode to the same picture and say the same of the patient."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pixels = np.array_equal(got.pixel_array, stored.pixel_array)
    return pixels and str(got.PatientName) == str(stored.PatientName) and got.SOPClassUID == stored.SOPClassUID
