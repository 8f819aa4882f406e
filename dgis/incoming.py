"""One object on its way into the spool: streamed to disk and digested, then checked, sealed and committed."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import zstandard

from catalog.errors import HeaderError
from catalog.header import HEAD, ExtractedHeader, extract, extract_plain
from dgis import part10
from dgis.digests import ObjectDigests
from dgis.disk import spool_error
from dgis.errors import DATA_SET_MISMATCH, BadDataSet, SpoolError
from dgis.record import Arrival, SpoolRecord, trailer

_FLUSH_BYTES = 256 * 1024
_FLUSH_PARTS = 512
# From this size on a piece is written from where it lies. Copying it costs more than the system call it would save:
# 128 KiB in a new `bytes` are 32 page faults.
_DIRECT_BYTES = 32 * 1024
_PADDING = " \0\t\r\n"
_ZSTD_LEVEL = 3
# Odd UIDs are kept (hex digests, one number, 70 characters); these are attacks on whoever makes a file name of one.
_NO_UID = re.compile(r"[/\\\x00-\x1f\x7f]")
_compressors = threading.local()


@dataclass(frozen=True, slots=True)
class SpoolEntry:
    """One committed object in the inbox; `name` sorts by arrival."""

    name: str
    path: Path
    record: SpoolRecord


Publish = Callable[[SpoolRecord], SpoolEntry]


class Room(Protocol):
    """Says whether the spool may grow; `take` raises SpoolFull."""

    def take(self, count: int) -> None:
        """Account for `count` bytes more."""

    def give_back(self, count: int) -> None:
        """Account for `count` bytes that were removed again."""


class Incoming:
    """The receiving end of one C-STORE. Not thread-safe: one object belongs to one association.

    Call `write` for every piece of the data set, then `commit` once, or `abort` at any time before. After an exception
    from `write` or `commit` nothing of the object is left in the spool.
    """

    def __init__(self, arrival: Arrival, path: str, *, room: Room, publish: Publish) -> None:
        """Stage at `path`; `publish` moves the sealed file into the inbox and makes the move durable."""
        self.arrival = arrival
        self._path = path
        self._room = room
        self._publish = publish
        self._taken = 0
        meta = _file_meta(arrival)
        self._data_offset = len(meta)
        self._digests = ObjectDigests(meta)
        self._parts: list[bytes | memoryview] = [meta]
        self._pending = len(meta)
        self._head = bytearray()
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise spool_error(error, "cannot stage an object") from error

    @property
    def size(self) -> int:
        """Bytes of the object so far, file meta information included."""
        return self._digests.size

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes of the data set, exactly as received; the caller may reuse the buffer at once.

        Raises SpoolFull or SpoolError; the object is then gone.
        """
        count = len(data)
        self._digests.update(data)
        if len(self._head) < HEAD:
            self._head += data[: HEAD - len(self._head)]
        self._pending += count
        try:
            if count >= _DIRECT_BYTES:
                self._parts.append(memoryview(data))
                self._flush()
                return
            self._parts.append(bytes(data))
            if self._pending >= _FLUSH_BYTES or len(self._parts) >= _FLUSH_PARTS:
                self._flush()
        except OSError as error:
            self.abort()
            raise spool_error(error, "cannot write to the spool") from error
        except BaseException:
            self.abort()
            raise

    def commit(self) -> SpoolEntry:
        """Check the data set, seal the file and move it into the inbox; on return it survives power loss.

        Raises BadDataSet when the data set cannot be filed, SpoolFull or SpoolError when the disk refuses.
        """
        try:
            record = self._record(self._header())
            self._parts.append(trailer(record))
            self._pending += len(self._parts[-1])
            self._flush()
            os.fsync(self._fd)
            entry = self._publish(record)
            self._close()
            return entry
        except OSError as error:
            self.abort()
            raise spool_error(error, "cannot commit to the spool") from error
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Forget the object; safe at any time, also after `commit` (then it does nothing)."""
        if self._fd < 0:
            return
        self._close()
        self._parts.clear()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        self._room.give_back(self._taken)

    def _flush(self) -> None:
        parts, self._parts = self._parts, []
        pending, self._pending = self._pending, 0
        if self._fd < 0:
            raise SpoolError("the object was already committed or aborted")
        if not pending:
            return
        self._room.take(pending)
        self._taken += pending
        written = os.writev(self._fd, parts)
        if written < pending:
            rest = memoryview(b"".join(parts))[written:]
            while rest:
                rest = rest[os.write(self._fd, rest) :]

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        os.close(fd)

    def _header(self) -> ExtractedHeader:
        syntax, length = _strip(self.arrival.transfer_syntax), self.size - self._data_offset
        return extract_plain(bytes(self._head), syntax, length=length) or self._odd_header(syntax, length)

    def _odd_header(self, syntax: str, length: int) -> ExtractedHeader:
        # The staged file is still in the page cache; FileIO moves the descriptor's offset, so it is put back.
        self._flush()
        try:
            with open(self._fd, "rb", buffering=0, closefd=False) as staged:
                staged.seek(self._data_offset)
                return extract(staged, syntax, length=length)
        except HeaderError as error:
            raise BadDataSet(f"the data set cannot be parsed: {error}") from error
        finally:
            os.lseek(self._fd, self.size, os.SEEK_SET)

    def _record(self, header: ExtractedHeader) -> SpoolRecord:
        sop_class, instance = _check_identity(self.arrival, header)
        offset = header.pixel_offset_in_dataset
        return SpoolRecord.model_construct(  # all of it is ours: see `trailer`
            version=1,
            instance_uid=instance,
            sop_class_uid=sop_class,
            transfer_syntax_uid=_strip(self.arrival.transfer_syntax),
            data_sha256=self._digests.data_sha256,
            sha256=self._digests.sha256,
            size=self._digests.size,
            chunks=self._digests.chunks,
            data_offset=self._data_offset,
            header_syntax=header.syntax,
            header_complete=header.complete,
            header_zstd=base64.b64encode(_compressor().compress(header.raw)).decode(),
            pixel_offset=None if offset is None else offset + self._data_offset,
            received_at=datetime.now(UTC),
            source_ae=self.arrival.calling_ae,
            called_ae=self.arrival.called_ae,
            issuer=self.arrival.issuer,
            acting_for=self.arrival.acting_for,
            association_id=self.arrival.association_id,
        )


def _file_meta(arrival: Arrival) -> bytes:
    try:
        return part10.file_meta(
            _strip(arrival.sop_class_uid), _strip(arrival.instance_uid), _strip(arrival.transfer_syntax)
        )
    except part10.Part10Error as error:
        raise BadDataSet(f"the command cannot be filed: {error}", status=DATA_SET_MISMATCH) from error


def _check_identity(arrival: Arrival, header: ExtractedHeader) -> tuple[str, str]:
    """Return (SOP class UID, SOP instance UID) after comparing data set and command (PS3.7 9.1.1.1)."""
    sop_class, instance = _strip(arrival.sop_class_uid), _strip(arrival.instance_uid)
    if not instance:
        raise BadDataSet("the command names no SOP Instance UID", status=DATA_SET_MISMATCH)
    for name, uid in (("Study", header.study_uid), ("Series", header.series_uid)):
        if not _strip(uid or ""):
            raise BadDataSet(f"the data set has no {name} Instance UID", status=DATA_SET_MISMATCH)
    for uid in (instance, header.study_uid or "", header.series_uid or ""):
        if _NO_UID.search(_strip(uid)):
            raise BadDataSet("a UID holds a path separator or control character", status=DATA_SET_MISMATCH)
    if header.cut:
        raise BadDataSet("the data set is cut short: it ends within an element")
    inside = _strip(header.instance_uid or "")
    if inside and inside != instance:
        raise BadDataSet("SOP Instance UID of data set and command differ", status=DATA_SET_MISMATCH)
    return sop_class, instance


def _strip(uid: str) -> str:
    return uid.strip(_PADDING)


def _compressor() -> zstandard.ZstdCompressor:
    """Return this thread's compressor; one object must not be used by two threads."""
    made = getattr(_compressors, "zstd", None)
    if made is None:
        made = _compressors.zstd = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)
    return made
