"""Which real images the demo uses, and the bytes of their data sets."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydicom import config as pydicom_config
from pydicom import data as pydicom_data
from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info

SHOWN_COLLECTIONS = ("dcm_qa_ct_philips", "dcm_qa_nih")
NOT_STORED = ("1.2.840.10008.1.3.10",)  # Media Storage Directory: never sent by C-STORE (PS3.4 Annex B)


@dataclass(frozen=True, slots=True)
class Image:
    """One file to store: what the association must offer for it, and what must come back."""

    path: Path
    sop_class_uid: str
    instance_uid: str
    study_uid: str
    series_uid: str
    transfer_syntax_uid: str
    modality: str
    size: int
    data_sha256: str


def collection(data: Path | None) -> tuple[str, list[Image]]:
    """The images and a word on where they come from: the CT and MR series below ``data``, else pydicom's own files.

    Of a UID that occurs twice the first file counts, so that each image has one right answer.
    """
    found = [data / name for name in SHOWN_COLLECTIONS if data is not None and (data / name).is_dir()]
    files: Iterable[Path] = sorted(_bundled().rglob("*.dcm"))
    origin = "pydicom's bundled files"
    if found:
        files = [*files, *(path for root in found for path in sorted(root.rglob("*")) if path.is_file())]
        origin += " and the CT and MR series of " + ", ".join(root.name for root in found)
    return origin, list(distinct(files))


def _bundled() -> Path:
    """The files that pydicom's wheel carries (its own look-up would go to the network for those that it does not)."""
    return Path(pydicom_data.__file__).parent / "test_files"


def default_data() -> Path | None:
    """``DGIS_TEST_DATA``, else ``../shared/data`` beside the checkout, else None."""
    named = os.environ.get("DGIS_TEST_DATA")
    place = Path(named) if named else Path(__file__).resolve().parents[2].parent / "shared" / "data"
    return place if place.is_dir() else None


def data_set_sha256(path: Path) -> str:
    """SHA-256 of the encoded data set of a Part 10 file, without preamble and file meta (PS3.10 7.1)."""
    with path.open("rb") as stream:
        stream.seek(_data_set_offset(path))
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _data_set_offset(path: Path) -> int:
    meta = read_file_meta_info(path)
    return 132 + 12 + int(meta.FileMetaInformationGroupLength)


def distinct(files: Iterable[Path]) -> Iterator[Image]:
    seen: set[str] = set()
    for path in files:
        image = _read(path)
        if image is not None and image.instance_uid not in seen:
            seen.add(image.instance_uid)
            yield image


def _read(path: Path) -> Image | None:
    """The image, or None for what a Part 10 sender could not send: no file meta, no UIDs, no DICOM."""
    validation = pydicom_config.settings.reading_validation_mode
    pydicom_config.settings.reading_validation_mode = pydicom_config.IGNORE
    try:
        with warnings.catch_warnings(action="ignore"):
            ds = dcmread(path, stop_before_pixels=True)
        sop_class, instance = str(ds.SOPClassUID), str(ds.SOPInstanceUID)
        study, series = str(ds.StudyInstanceUID), str(ds.SeriesInstanceUID)
        syntax = str(ds.file_meta.TransferSyntaxUID)
        sendable = str(ds.file_meta.MediaStorageSOPInstanceUID) == instance and sop_class not in NOT_STORED
        if not (sendable and study and series):
            return None
        modality = str(ds.get("Modality", ""))
        return Image(
            path, sop_class, instance, study, series, syntax, modality, path.stat().st_size, data_set_sha256(path)
        )
    except (InvalidDicomError, AttributeError, NotImplementedError, ValueError, OSError, KeyError):
        return None
    finally:
        pydicom_config.settings.reading_validation_mode = validation
