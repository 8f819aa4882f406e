"""What `dgis import` finds and how it reads files that old archives hold."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.fileset import FileSet
from pydicom.filewriter import dcmwrite
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dgis.medium import NotAnInstance, find_files, open_instance

CT = "1.2.840.10008.5.1.4.1.1.2"
SYNTAXES = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)


def found_in(path: Path) -> list[Path]:
    problems: list[str] = []
    found = list(find_files([path], lambda _, why: problems.append(why)))
    assert problems == []
    return found


def _instance(uid: str = "1.2.3.4") -> Dataset:
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = CT, uid
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3", "1.2.3.1"
    ds.PatientID, ds.PatientName, ds.StudyID, ds.Modality = "P1", "A^B", "1", "CT"
    ds.StudyDate, ds.StudyTime, ds.SeriesNumber, ds.InstanceNumber, ds.AccessionNumber = "20240101", "10", 1, 1, "A"
    return ds


def _part10(path: Path, uid: str = "1.2.3.4", syntax: str = ExplicitVRLittleEndian) -> Path:
    ds = _instance(uid)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = CT, uid
    dcmwrite(path, ds, enforce_file_format=True)
    return path


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_part_10_file_says_all_itself(tmp_path: Path, syntax: str) -> None:
    found = open_instance(_part10(tmp_path / "a", syntax=syntax))
    assert (found.sop_class_uid, found.instance_uid, found.transfer_syntax) == (CT, "1.2.3.4", syntax)
    assert (tmp_path / "a").read_bytes()[found.data_set_offset :][:4] in (b"\x08\x00\x16\x00", b"\x00\x08\x00\x16")


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_bare_data_set_is_recognised(tmp_path: Path, syntax: str) -> None:
    """Files without preamble and meta information: the syntax is told from the first element."""
    whole = _part10(tmp_path / "whole", syntax=syntax)
    offset = open_instance(whole).data_set_offset
    (tmp_path / "bare").write_bytes(whole.read_bytes()[offset:])
    found = open_instance(tmp_path / "bare")
    assert (found.data_set_offset, found.transfer_syntax, found.instance_uid) == (0, syntax, "1.2.3.4")


def test_meta_information_without_preamble(tmp_path: Path) -> None:
    (tmp_path / "no-preamble").write_bytes(_part10(tmp_path / "whole").read_bytes()[132:])
    found = open_instance(tmp_path / "no-preamble")
    assert found.transfer_syntax == ExplicitVRLittleEndian
    assert found.instance_uid == "1.2.3.4"


@pytest.mark.parametrize("content", [b"", b"hello world, this is text", b"\x89PNG\r\n\x1a\n" + b"\0" * 300])
def test_what_is_no_dicom_is_refused_with_a_reason(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(NotAnInstance, match="not a DICOM file"):
        open_instance(tmp_path / "x")


def test_a_cut_meta_information_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cut").write_bytes(_part10(tmp_path / "whole").read_bytes()[:180])
    with pytest.raises(NotAnInstance):
        open_instance(tmp_path / "cut")


def _medium(folder: Path) -> Path:
    medium = FileSet()
    for number in range(3):
        ds = _instance(f"1.2.3.4.{number}")
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = CT, ds.SOPInstanceUID
        medium.add(ds)
    medium.write(folder)
    return folder / "DICOMDIR"


def test_a_dicomdir_names_its_files(tmp_path: Path) -> None:
    found = [open_instance(path).instance_uid for path in found_in(_medium(tmp_path / "cd"))]
    assert sorted(found) == ["1.2.3.4.0", "1.2.3.4.1", "1.2.3.4.2"]


def test_a_folder_gives_every_file_but_the_dicomdir(tmp_path: Path) -> None:
    _medium(tmp_path / "cd")
    assert len(list(found_in(tmp_path))) == 3


def test_media_copied_to_lower_case_are_found(tmp_path: Path) -> None:
    directory = _medium(tmp_path / "cd")
    for path in sorted(tmp_path.rglob("*"), key=lambda p: -len(p.parts)):
        if path != directory and path.parent != tmp_path:
            path.rename(path.with_name(path.name.lower()))
    assert len([path for path in found_in(directory) if path.exists()]) == 3


def test_a_dicomdir_that_leaves_its_medium_is_refused(tmp_path: Path) -> None:
    directory = _medium(tmp_path / "cd")
    content = directory.read_bytes()
    name = next(path for path in (tmp_path / "cd").iterdir() if path.is_dir()).name.encode()
    assert name in content
    directory.write_bytes(content.replace(name, b"..".ljust(len(name)), 1))
    problems: list[str] = []
    found = list(find_files([directory], lambda _, why: problems.append(why)))
    assert len(problems) == 1 and "outside" in problems[0]
    assert len(found) == 2, "the other records are followed"


def test_a_cut_dicomdir_is_named_and_a_fifo_is_no_instance(tmp_path: Path) -> None:
    directory = _medium(tmp_path / "cd")
    directory.write_bytes(directory.read_bytes()[:420])
    problems: list[str] = []
    list(find_files([directory], lambda _, why: problems.append(why)))
    assert problems
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NotAnInstance, match="regular"):
        open_instance(tmp_path / "pipe")
