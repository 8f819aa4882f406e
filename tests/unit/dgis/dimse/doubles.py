"""Hand-written doubles of the use cases; they keep the contracts of `dgis.dimse.services` and really write files."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset

from catalog.wire import Located, LocateRequest, ObjectRef, Query, Row
from dgis import part10
from dgis.errors import BadDataSet, RetrieveUnavailable, SearchIncomplete, SpoolFull
from dgis.record import Arrival


class IncomingDouble:
    """Writes meta and data set to a file; commit renames it."""

    def __init__(self, ingest: IngestDouble, arrival: Arrival, stage: Path) -> None:
        self._ingest, self.arrival, self._stage = ingest, arrival, stage
        self._file = stage.open("wb")
        self._file.write(part10.file_meta(arrival.sop_class_uid, arrival.instance_uid, arrival.transfer_syntax))
        self._size = 0

    def write(self, data: memoryview) -> None:
        assert isinstance(data, memoryview)  # of the receive buffer: to be used before this returns
        self._size += len(data)
        if self._ingest.limit is not None and self._size > self._ingest.limit:
            self.abort()
            raise SpoolFull("full")
        self._file.write(data)

    def commit(self) -> Path:
        self._file.close()
        if self._size < 8:
            self.abort()
            raise BadDataSet("the data set cannot be parsed")
        instance = pydicom.dcmread(self._stage, force=True, specific_tags=["SOPInstanceUID"]).get("SOPInstanceUID")
        if instance is not None and instance != self.arrival.instance_uid:
            self.abort()
            raise BadDataSet("SOP Instance UID differs from the command", status=0xA900)
        target = self._ingest.folder / f"{next(self._ingest.numbers):06d}.dcm"
        self._stage.rename(target)
        self._ingest.done.append((self.arrival, target))
        return target

    def abort(self) -> None:
        self._file.close()
        self._stage.unlink(missing_ok=True)


class IngestDouble:
    """Stages in folder/stage, commits into folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "stage").mkdir(parents=True, exist_ok=True)
        self.numbers = itertools.count()
        self.done: list[tuple[Arrival, Path]] = []
        self.limit: int | None = None
        self.settled: list[str] = []
        self.forgotten: list[str] = []
        self.settle_seconds = 0.0

    def begin(self, arrival: Arrival) -> IncomingDouble:
        return IncomingDouble(self, arrival, self.folder / "stage" / str(next(self.numbers)))

    def settle(self, association_id: str, *, timeout: float = 2.0) -> bool:
        time.sleep(min(self.settle_seconds, timeout))
        self.settled.append(association_id)
        return True

    def forget(self, association_id: str) -> None:
        self.forgotten.append(association_id)

    def staged(self) -> list[Path]:
        return list((self.folder / "stage").iterdir())

    def data_set(self, path: Path) -> bytes:
        with path.open("rb") as stream:
            offset, _ = part10.data_set_offset(stream)
            stream.seek(offset)
            return stream.read()


@dataclass
class SearchDouble:
    """Answers fixed rows; remembers what it was asked."""

    rows: list[Row] = field(default_factory=list)
    incomplete: bool = False
    block: threading.Event | None = None
    asked: list[tuple[Query, str | None]] = field(default_factory=list)
    closed: int = 0

    def find(self, query: Query, *, acting_for: str | None) -> Iterator[Row]:
        self.asked.append((query, acting_for))
        try:
            rows = self.rows if query.limit is None else self.rows[: query.limit]
            for row in rows:
                yield row
                if self.block is not None:
                    self.block.wait(10)
            if self.incomplete:
                raise SearchIncomplete("site b did not answer")
        finally:
            self.closed += 1


@dataclass(frozen=True)
class PlanDouble:
    instances: tuple[Located, ...]


@dataclass
class FetchedDouble:
    located: Located
    path: Path
    data_offset: int
    data_length: int
    released: list[str]

    def release(self) -> None:
        self.released.append(self.located.instance_uid)


@dataclass
class FailedDouble:
    located: Located
    reason: str


class RetrieveDouble:
    """Serves Part 10 files of a folder by their UIDs."""

    def __init__(self) -> None:
        self.files: dict[str, tuple[Located, Path, int, int]] = {}
        self.lost: set[str] = set()
        self.asked: list[LocateRequest] = []
        self.released: list[str] = []
        self.unavailable = False
        self.delay = 0.0
        self.trailing = 0
        self.stopped_early = False

    def add(self, path: Path, *, trailing: int = 0) -> Located:
        """Make a file known; `trailing` bytes at its end do not belong to the object."""
        with path.open("rb") as stream:
            offset, syntax = part10.data_set_offset(stream)
        data_set = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        size = path.stat().st_size - trailing
        located = Located(
            instance_uid=data_set.SOPInstanceUID,
            series_uid=data_set.SeriesInstanceUID,
            study_uid=data_set.StudyInstanceUID,
            sop_class_uid=data_set.SOPClassUID,
            transfer_syntax_uid=syntax,
            instance_number=None,
            object=ObjectRef(object_key="v1/00/00/0", size=size, sha256="0" * 64, data_sha256="0" * 64),
            replicas=(),
        )
        self.files[located.instance_uid] = (located, path, offset, size - offset)
        return located

    def plan(self, request: LocateRequest, *, acting_for: str | None) -> PlanDouble:
        self.asked.append(request)
        if self.unavailable:
            raise RetrieveUnavailable("catalog down")
        found = [
            located
            for located, *_ in self.files.values()
            if (not request.studies or located.study_uid in request.studies)
            and (not request.series or located.series_uid in request.series)
            and (not request.instances or located.instance_uid in request.instances)
        ]
        return PlanDouble(tuple(found))

    def fetch(
        self, plan: PlanDouble, *, acting_for: str | None, cancelled: Callable[[], bool]
    ) -> Generator[FetchedDouble | FailedDouble, None, None]:
        taken = 0
        try:
            for located in plan.instances:
                deadline = time.monotonic() + self.delay
                while time.monotonic() < deadline and not cancelled():
                    time.sleep(0.01)
                if cancelled():
                    return
                _, path, offset, length = self.files[located.instance_uid]
                if located.instance_uid in self.lost:
                    yield FailedDouble(located, "no replica")
                else:
                    yield FetchedDouble(located, path, offset, length, self.released)
                taken += 1
        finally:  # whether told by `cancelled` or closed between two
            self.stopped_early = taken < len(plan.instances)


def make_file(folder: Path, **values: object) -> Path:
    """Write a small CT-like Part 10 file; keyword `syntax` and `pixels` are ours, others are elements."""
    folder.mkdir(parents=True, exist_ok=True)
    syntax = str(values.pop("syntax", pydicom.uid.ExplicitVRLittleEndian))
    pixels = int(str(values.pop("pixels", 64)))
    data_set = Dataset()
    data_set.SOPClassUID = pydicom.uid.CTImageStorage
    data_set.SOPInstanceUID = pydicom.uid.generate_uid()
    data_set.StudyInstanceUID = "1.2.3.1"
    data_set.SeriesInstanceUID = "1.2.3.1.1"
    data_set.PatientName = "Test^One"
    data_set.PatientID = "T1"
    data_set.Modality = "CT"
    for keyword, value in values.items():
        setattr(data_set, keyword, value)
    data_set.add_new(0x00091010, "UN", b"private bytes!")
    data_set.add_new(0x7FE00010, "OW", bytes(range(256)) * (pixels // 256 + 1))
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = data_set.SOPClassUID
    meta.MediaStorageSOPInstanceUID = data_set.SOPInstanceUID
    data_set.file_meta = meta
    path = folder / f"{data_set.SOPInstanceUID}.dcm"
    data_set.save_as(path, enforce_file_format=True)
    return path


def data_bytes(path: Path) -> bytes:
    """Return the data set of a Part 10 file."""
    with path.open("rb") as stream:
        offset, _ = part10.data_set_offset(stream)
        stream.seek(offset)
        return stream.read()
