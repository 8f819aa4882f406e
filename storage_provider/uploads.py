"""Resumable uploads on disk: one folder each, the bytes in place and a journal of the ranges that are safe.

    ROOT/uploads/ID/data          the bytes, allocated in full at the beginning (so disk full shows at once)
    ROOT/uploads/ID/journal.json  rewritten by rename after the bytes were synced
An upload belongs to (owner, key): the same owner's next try finds it, nobody else can touch it. What a journal cannot
vouch for after a kill is missing again; a folder without a readable journal is thrown away at start.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from storage_provider.channel import ObjectSpec, Stored
from storage_provider.checksum import CHUNK_BYTES, blocks, sha256_of
from storage_provider.disk import create, disk_errors, fsync_dir, replace_file, sync, write_at
from storage_provider.errors import Busy, Conflict, Corrupt, NotFound, StorageError
from storage_provider.ranges import Ranges
from storage_provider.store import Store
from storage_provider.upload import Upload
from storage_provider.wire import Journal

EXPIRY_SECONDS = 24 * 3600.0


@dataclass(slots=True)
class _Entry:
    owner: str
    upload: Upload
    touched: float
    front: _Front | None = None
    held: bool = False  # by a writer of any order, also when nothing is missing and so nothing is claimed

    def refuse_held(self) -> None:
        if self.held:
            raise Busy("another session is sending this object")


@dataclass(slots=True)
class _Front:
    """The digest of an upload's first `at` bytes, carried on from range to range as they are written."""

    digest: hashlib._Hash
    at: int = 0


class Uploads:
    """The uploads of one store; thread-safe; blocking."""

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._root = store.root / "uploads"
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        for folder in self._root.iterdir():
            self._reload(folder)

    def __len__(self) -> int:
        return len(self._entries)

    def begin(self, spec: ObjectSpec, owner: str) -> tuple[str, Upload]:
        """Begin an upload or take it up again: (id, state). NoSpace when there is no room for it.

        An earlier upload of the same key with another size or other chunks is given up for this one.
        """
        self.expire()
        ident = _ident(owner, spec.key)
        with self._lock:
            entry = self._entries.get(ident)
            if entry is not None and entry.upload.spec != spec:
                entry = self._meet(ident, entry, spec)
            if entry is None:
                entry = _Entry(owner, Upload(spec), self._clock())
                self._create(ident, entry)
                self._entries[ident] = entry
            return ident, entry.upload

    def status(self, ident: str, owner: str) -> Upload:
        """Return an upload's state."""
        with self._lock:
            return self._entry(ident, owner).upload

    def open_range(self, ident: str, owner: str, start: int, stop: int) -> RangeWriter:
        """Claim a range for writing; end it with `close`."""
        with self._lock:
            entry = self._entry(ident, owner)
            entry.refuse_held()
            entry.upload = entry.upload.claim(start, stop)
            entry.touched = self._clock()
            known = entry.upload.known(start, stop)
            front = entry.front if entry.front is not None and entry.front.at == start else None
            if start == 0:
                front = _Front(hashlib.sha256())
            if front is not None:
                entry.front = None  # this writer has it until its range has landed
        try:
            with disk_errors(entry.upload.spec.key):
                fd = os.open(self._root / ident / "data", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except BaseException:
            self.land(ident, owner, start, start, stop, front=front)
            raise
        return RangeWriter(self, ident=ident, owner=owner, span=(start, stop), known=known, fd=fd, front=front)

    def land(self, ident: str, owner: str, start: int, reached: int, stop: int, front: _Front | None = None) -> Upload:
        """End a claim whose bytes up to `reached` are synced, hashed by `front` if it says so; journal it."""
        with self._lock:
            entry = self._entry(ident, owner)
            entry.upload = entry.upload.land(start, reached, stop)
            if front is not None and front.at == reached:
                entry.front = front
            self._journal(ident, entry, entry.upload.received)
            return entry.upload

    def find(self, key: str, owner: str) -> Upload | None:
        """Return the owner's upload of an object, when there is one."""
        with self._lock:
            entry = self._entries.get(_ident(owner, key))
            return entry.upload if entry is not None else None

    def open_missing(self, ident: str, owner: str) -> tuple[int, Upload]:
        """Claim all that is missing, for one writer of any order: (descriptor, state before).

        Until it ends with `settle`, `commit` or `give_up` nobody else may write to, commit or abort the upload: Busy.
        """
        with self._lock:
            entry = self._entry(ident, owner)
            entry.refuse_held()
            before = claimed = entry.upload
            if before.state != "receiving":
                raise Busy("the upload is being verified")
            for start, stop in before.missing:
                claimed = claimed.claim(start, stop)
            fd = os.open(self._root / ident / "data", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            entry.upload, entry.touched, entry.held = claimed, self._clock(), True
        return fd, before

    def note(self, ident: str, owner: str, synced: Ranges) -> None:
        """Journal what of an upload under way is synced by now; the claims stay."""
        with self._lock:
            entry = self._entry(ident, owner)
            entry.touched = self._clock()
            self._journal(ident, entry, Ranges.of((*entry.upload.received, *synced)))

    def settle(self, ident: str, owner: str, synced: Ranges) -> Upload:
        """End the claims of `open_missing`: what is synced of them counts as received; journal it."""
        with self._lock:
            entry = self._entry(ident, owner)
            self._settle(ident, entry, synced)
            return entry.upload

    def give_up(self, ident: str, owner: str) -> None:
        """End the claims of `open_missing` and the upload with them."""
        with self._lock:
            entry = self._entry(ident, owner)
            entry.held = False
            self._drop(ident, entry.upload.settle(Ranges()).abort())

    def commit(self, ident: str, owner: str, *, digest: str | None = None, synced: Ranges | None = None) -> Stored:
        """Verify the bytes on disk and make them the object; Corrupt makes the bad chunks missing again.

        `digest` is that of the bytes as they were written, when a writer hashed them all; else they are read again.
        `synced` settles first, for who has the upload by `open_missing`: nobody can come between.
        """
        with self._lock:
            entry = self._entry(ident, owner)
            if synced is not None:
                self._settle(ident, entry, synced)
            entry.refuse_held()
            entry.upload = entry.upload.verify()
            front, entry.front = entry.front, None
        if digest is None and front is not None and front.at == entry.upload.spec.size:
            digest = front.digest.hexdigest()
        spec, data = entry.upload.spec, self._root / ident / "data"
        try:
            with disk_errors(spec.key):
                good = (digest or sha256_of(data)) == spec.sha256
                bad = () if good else _bad_chunks(data, spec)
                if good:
                    sync(data)
        except BaseException:
            with self._lock:  # what the disk cannot read or sync is missing again
                entry.upload = entry.upload.reject(())
                with suppress(StorageError):
                    self._journal(ident, entry, entry.upload.received)
            raise
        return self._adopt(ident, entry, data) if good else self._reject(ident, entry, bad)

    def abort(self, ident: str, owner: str) -> None:
        """Give an upload up and free its room."""
        with self._lock:
            entry = self._entry(ident, owner)
            entry.refuse_held()
            self._drop(ident, entry.upload.abort())

    def expire(self) -> None:
        """Give up uploads that nobody touched for a day."""
        limit = self._clock() - EXPIRY_SECONDS
        with self._lock:
            for ident, entry in list(self._entries.items()):
                idle = entry.upload.state == "receiving" and not entry.upload.claimed and not entry.held
                if entry.touched < limit and idle:
                    self._drop(ident, entry.upload)

    def _adopt(self, ident: str, entry: _Entry, data: Path) -> Stored:
        spec = entry.upload.spec
        try:
            stored, _ = self._store.adopt(data, spec.key, spec.size)
        finally:
            # The entry goes last: as long as it is there (verifying) nobody begins an upload in the same folder
            shutil.rmtree(self._root / ident, ignore_errors=True)
            with self._lock:
                entry.upload = entry.upload.accept()
                del self._entries[ident]
        return stored

    def _settle(self, ident: str, entry: _Entry, synced: Ranges) -> None:
        entry.held = False
        entry.upload = entry.upload.settle(synced)
        self._journal(ident, entry, entry.upload.received)

    def _reject(self, ident: str, entry: _Entry, bad: tuple[int, ...]) -> Stored:
        with self._lock:
            entry.upload = entry.upload.reject(bad)
            if bad:
                self._journal(ident, entry, entry.upload.received)
            else:
                self._drop(ident, entry.upload)
        raise Corrupt("the uploaded bytes do not have the key's SHA-256", key=entry.upload.spec.key, bad_chunks=bad)

    def _entry(self, ident: str, owner: str) -> _Entry:
        entry = self._entries.get(ident)
        if entry is None or entry.owner != owner:
            raise NotFound("no such upload")
        return entry

    def _create(self, ident: str, entry: _Entry) -> None:
        spec, folder = entry.upload.spec, self._root / ident
        self._store.ledger.promise(spec.size)
        try:
            with disk_errors(spec.key):
                folder.mkdir(mode=0o700)
        except BaseException:
            self._store.ledger.release(spec.size)
            raise
        try:
            with disk_errors(spec.key):
                fd = create(folder / "data")
                try:
                    if spec.size:
                        os.posix_fallocate(fd, 0, spec.size)
                finally:
                    os.close(fd)
                self._journal(ident, entry, entry.upload.received)
                fsync_dir(folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            self._store.ledger.release(spec.size)
            raise

    def _meet(self, ident: str, entry: _Entry, spec: ObjectSpec) -> _Entry | None:
        """Keep an upload that only lacks, or has, chunk digests (begun at another door); give up any other."""
        have = entry.upload.spec
        if have.size == spec.size and not (have.chunks and spec.chunks):
            if spec.chunks:
                entry.upload = replace(entry.upload, spec=spec)
            return entry
        entry.refuse_held()
        self._drop(ident, entry.upload.abort())
        return None

    def _journal(self, ident: str, entry: _Entry, received: Ranges) -> None:
        spec = entry.upload.spec
        journal = Journal(key=spec.key, size=spec.size, chunks=spec.chunks, owner=entry.owner, received=received.spans)
        with disk_errors(spec.key):
            replace_file(self._root / ident / "journal.json", journal.model_dump_json().encode())

    def _drop(self, ident: str, upload: Upload) -> None:
        del self._entries[ident]
        shutil.rmtree(self._root / ident, ignore_errors=True)
        self._store.ledger.release(upload.spec.size)

    def _reload(self, folder: Path) -> None:
        try:
            raw = (folder / "journal.json").read_bytes()
            journal = Journal.model_validate_json(raw)
            spec = ObjectSpec(journal.key, journal.size, journal.key[-64:], journal.chunks)
            upload = Upload(spec, Ranges.of(journal.received))
            touched = (folder / "journal.json").stat().st_mtime
            usable = (folder / "data").stat().st_size == spec.size and folder.name == _ident(journal.owner, spec.key)
        except (OSError, ValidationError, StorageError):
            usable = False
        if not usable:
            shutil.rmtree(folder, ignore_errors=True)
            return
        self._store.ledger.promise(spec.size, allocated=True)
        self._entries[folder.name] = _Entry(journal.owner, upload, touched)


class RangeWriter:
    """One range on its way into an upload; thread-safe: a request that was given up closes it while a thread writes."""

    def __init__(
        self,
        uploads: Uploads,
        *,
        ident: str,
        owner: str,
        span: tuple[int, int],
        known: Ranges,
        fd: int,
        front: _Front | None,
    ) -> None:
        self._uploads = uploads
        self._ident = ident
        self._owner = owner
        self._start, self._stop = span
        self._known = known
        self._fd = fd
        self._lock = threading.Lock()
        self._front = front
        self._reached = self._start

    def write(self, data: bytes | memoryview) -> None:
        """Write the next bytes; Conflict when they differ from those that came before, or after `close`."""
        with self._lock:
            self._write(data)

    def _write(self, data: bytes | memoryview) -> None:
        if self._fd < 0:
            raise Conflict("this range was ended")
        view = memoryview(data)
        end = self._reached + len(view)
        if end > self._stop:
            raise Conflict("more bytes than the range has")
        with disk_errors(""):
            for start, stop in self._known.intersect(self._reached, end):
                if os.pread(self._fd, stop - start, start) != view[start - self._reached : stop - self._reached]:
                    raise Conflict("the bytes differ from those received before for the same range")
            for start, stop in self._known.missing(self._reached, end):
                write_at(self._fd, view[start - self._reached : stop - self._reached], start)
        if self._front is not None:
            self._front.digest.update(view)
            self._front.at = end
        self._reached = end

    def close(self) -> Upload:
        """Sync what came, even when the range is not whole, and journal it; the upload's new state."""
        with self._lock:
            return self._close()

    def _close(self) -> Upload:
        if self._fd < 0:
            raise Conflict("this range was ended")
        try:
            with disk_errors(""):
                os.fdatasync(self._fd)
        except StorageError:
            self._reached = self._start
            raise
        finally:
            fd, self._fd = self._fd, -1
            os.close(fd)
            span = (self._start, self._reached, self._stop)
            upload = self._uploads.land(self._ident, self._owner, *span, front=self._front)
        return upload


def _ident(owner: str, key: str) -> str:
    return hashlib.sha256(f"{owner}\0{key}".encode()).hexdigest()[:32]


def _bad_chunks(data: Path, spec: ObjectSpec) -> tuple[int, ...]:
    if not spec.chunks:
        return ()
    fd = os.open(data, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = [hashlib.sha256(b).hexdigest() for b in blocks(fd, offset=0, length=spec.size, block=CHUNK_BYTES)]
    finally:
        os.close(fd)
    return tuple(n for n, (have, want) in enumerate(zip(found, spec.chunks, strict=True)) if have != want)
