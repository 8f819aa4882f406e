"""Find and open the DICOM files of a folder or a medium, for ``dgis import``. Reads only; knows neither spool nor grid.

Old archives hold files without preamble, without file meta information (PS3.10 7.1), with a wrong transfer syntax in
it: what can be told from the bytes is told, what cannot is refused with a reason, one file at a time.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from pydicom.valuerep import VR

from catalog.errors import HeaderError
from catalog.header import extract
from dgis.part10 import PREAMBLE, FileMeta, Part10Error, read_meta

IMPLICIT_LE = "1.2.840.10008.1.2"
EXPLICIT_LE = "1.2.840.10008.1.2.1"
EXPLICIT_BE = "1.2.840.10008.1.2.2"
MEDIA_STORAGE_DIRECTORY = "1.2.840.10008.1.3.10"
_HEAD = 1 << 16
_KNOWN_VRS = frozenset(vr.value.encode() for vr in VR if len(vr.value) == 2)
_UNREADABLE = (
    InvalidDicomError, AttributeError, NotImplementedError, ValueError, EOFError, OSError, KeyError, RecursionError,
    TypeError,
)  # fmt: skip
_FIRST_GROUPS = (0x0002, 0x0004, 0x0008, 0x0009, 0x0010)


class NotAnInstance(ValueError):
    """The file cannot be filed as a SOP instance; the text says why, without any of its content."""


@dataclass(frozen=True, slots=True)
class FileInstance:
    """Where the data set of a file starts and what C-STORE would say of it."""

    path: Path
    data_set_offset: int
    sop_class_uid: str
    instance_uid: str
    transfer_syntax: str


def find_files(paths: Iterable[Path], problem: Callable[[Path, str], None]) -> Iterator[Path]:
    """Every candidate file: a file itself, all files below a folder, the files that a DICOMDIR names (PS3.3 F.3).

    Symbolic links to folders are not followed. A DICOMDIR inside a folder is passed over: its files are found anyhow.
    `problem` hears of a DICOMDIR, or a record of one, that cannot be followed; the others are.
    """
    for path in paths:
        if path.is_dir():
            yield from _below(path)
        elif _is_directory_file(path):
            yield from _referenced(path, problem)
        else:
            yield path


def open_instance(path: Path) -> FileInstance:
    """Tell what ``path`` holds. Raises NotAnInstance, or OSError when it cannot be read."""
    if not path.is_file():
        raise NotAnInstance("not a regular file" if path.exists() else "there is no such file")
    with path.open("rb") as stream:
        offset, meta = _read_head(stream)
        if meta.sop_class_uid == MEDIA_STORAGE_DIRECTORY:
            raise NotAnInstance("a DICOMDIR: name it as an argument to import what it lists")
        stream.seek(offset)
        syntax = meta.transfer_syntax or _guess_syntax(stream)
        stream.seek(offset)
        try:
            header = extract(stream, syntax)
        except HeaderError as error:
            raise NotAnInstance(f"no data set can be read from it: {error}") from None
    sop_class = header.sop_class_uid or meta.sop_class_uid
    instance = header.instance_uid or meta.instance_uid
    if not sop_class or not instance:
        raise NotAnInstance("it names no SOP Class UID or no SOP Instance UID")
    return FileInstance(path, offset, sop_class, instance, syntax)


def _below(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if name.upper() != "DICOMDIR":
                yield Path(place, name)


def _is_directory_file(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return read_meta(stream).sop_class_uid == MEDIA_STORAGE_DIRECTORY
    except (OSError, Part10Error):
        return False


def _referenced(directory: Path, problem: Callable[[Path, str], None]) -> Iterator[Path]:
    """The files of a DICOMDIR, by Referenced File ID (0004,1500); names are matched without regard to case, because
    media are often copied to file systems that changed it."""
    try:
        records = list(dcmread(directory).DirectoryRecordSequence)
    except _UNREADABLE:
        problem(directory, "it cannot be read as a DICOMDIR; import the folder that it lies in instead")
        return
    named = 0
    for record in records:
        try:
            parts = record.get("ReferencedFileID")
            if parts:
                named += 1
                yield _resolve(directory.parent, [parts] if isinstance(parts, str) else list(parts))
        except (NotAnInstance, *_UNREADABLE) as error:
            problem(directory, str(error) if isinstance(error, NotAnInstance) else "a record cannot be read")
    if not named:
        problem(directory, "it names no file; import the folder that it lies in instead")


def _resolve(root: Path, names: list[str]) -> Path:
    place = root
    for name in (str(one).strip() for one in names):  # padding is no part of a File ID (PS3.10 8.2)
        if name in ("", ".", "..") or "/" in name or "\x00" in name:
            raise NotAnInstance("the DICOMDIR names a file outside of the medium")
        exact = place / name
        place = exact if exact.exists() else _other_case(place, name)
    return place


def _other_case(folder: Path, name: str) -> Path:
    try:
        entries = [entry for entry in folder.iterdir() if entry.name.lower().rstrip(".") == name.lower()]
    except OSError:
        entries = []
    return entries[0] if entries else folder / name


def _read_head(stream: BinaryIO) -> tuple[int, FileMeta]:
    """(offset of the data set, its meta information, empty where there is none)."""
    head = stream.read(_HEAD)
    if head[128:132] == b"DICM":
        try:
            meta = read_meta(io.BytesIO(head))
        except Part10Error as error:
            raise NotAnInstance(str(error)) from None
        return meta.data_set_offset, meta
    if head[:2] == b"\x02\x00":  # meta information without a preamble
        try:
            meta = read_meta(io.BytesIO(PREAMBLE + head))
        except Part10Error as error:
            raise NotAnInstance(str(error)) from None
        return meta.data_set_offset - len(PREAMBLE), meta
    start = 0
    if int.from_bytes(head[:2], "little") not in _FIRST_GROUPS and int.from_bytes(head[:2], "big") not in _FIRST_GROUPS:
        raise NotAnInstance("not a DICOM file")
    return start, FileMeta(start, "", "", "")


def _guess_syntax(stream: BinaryIO) -> str:
    """Uncompressed syntaxes only: a compressed data set without meta information cannot be told apart."""
    head = stream.read(6)
    if head[4:6] not in _KNOWN_VRS:
        return IMPLICIT_LE
    return EXPLICIT_BE if int.from_bytes(head[:2], "big") in _FIRST_GROUPS else EXPLICIT_LE
