"""Where an object's bytes go that come in at offsets: a staged file (small, or of unknown size), or a resumable upload.

Both are `writing.Target`s; the third one, a part, is in parts.py.
"""

from __future__ import annotations

import os
from contextlib import suppress

from storage_provider.channel import ObjectSpec, Stored
from storage_provider.disk import create, disk_errors
from storage_provider.errors import Corrupt, Refused
from storage_provider.keys import parse_key
from storage_provider.landing import Landing
from storage_provider.ranges import Ranges
from storage_provider.space import Room
from storage_provider.store import Store
from storage_provider.uploads import Uploads


class StagedTarget:
    """An object in a file of the store's stage: gone when it is not committed. `size` None: as long as it comes."""

    def __init__(self, store: Store, key: str, size: int | None) -> None:
        self._store = store
        self._key = key
        self._sha256 = parse_key(key)
        self._size = size
        self._room = Room(store.ledger, size or 0)
        self._path = store.place()
        try:
            with disk_errors(key):
                self.landing = Landing(create(self._path), rewrite=size is None, key=key)
        except BaseException:
            self._room.give_back()
            raise

    def reserve(self, end: int) -> None:
        """See Target."""
        if self._size is not None and end > self._size:
            raise Refused("more bytes than announced", key=self._key)
        self._room.reach(end)

    def sync(self) -> None:
        """Nothing: what is staged is thrown away at the next start."""

    def commit(self) -> tuple[Stored, bool]:
        """See Target."""
        try:
            size = self.landing.front
            if self._size not in (None, size) or size != self.landing.end:
                raise Refused("fewer bytes than announced", key=self._key)
            if self.landing.digest() != self._sha256:
                raise Corrupt("the bytes sent do not have the key's SHA-256", key=self._key)
            with disk_errors(self._key):
                # The folders first: syncing the file then syncs them too on a journalling file system
                self._store.prepare(self._key)
                if self.landing.torn:
                    os.ftruncate(self.landing.fd, size)
                os.fsync(self.landing.fd)
        except BaseException:
            self.drop()
            raise
        os.close(self.landing.fd)
        self._room.fit(size)
        try:
            return self._store.adopt(self._path, self._key, size)
        except BaseException:
            self._remove()
            raise

    def keep(self) -> None:
        """See Target: nothing can be kept."""
        self.drop()

    def drop(self) -> None:
        """See Target."""
        os.close(self.landing.fd)
        self._remove()
        self._room.give_back()

    def _remove(self) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self._path)


class Whole:
    """A small object that comes into memory as a whole before it is stored; ends with `commit` or `drop`.

    No file, no digest on the way, nothing to resume: half of what a StagedTarget costs. NoSpace when there is no room.
    """

    def __init__(self, store: Store, key: str, size: int) -> None:
        self.key = key
        self.size = size
        self._store = store
        store.ledger.promise(size)

    def commit(self, data: memoryview) -> tuple[Stored, bool]:
        """Verify, write, sync and rename: (what is there, whether it is new). Corrupt, Refused for another size."""
        if len(data) != self.size:
            self.drop()
            raise Refused("fewer bytes than announced", key=self.key)
        return self._store.put(self.key, data)

    def drop(self) -> None:
        """Give the room back."""
        self._store.ledger.release(self.size)


class UploadTarget:
    """A large object of known size in a resumable upload of its owner."""

    def __init__(self, uploads: Uploads, spec: ObjectSpec, owner: str) -> None:
        self._uploads = uploads
        self._spec = spec
        self._owner = owner
        self._ident, _ = uploads.begin(spec, owner)
        with disk_errors(spec.key):
            fd, before = uploads.open_missing(self._ident, owner)
        self.landing = Landing(fd, received=before.received, key=spec.key)
        self._lost = False

    def reserve(self, end: int) -> None:
        """See Target."""
        if end > self._spec.size:
            raise Refused("more bytes than announced", key=self._spec.key)

    def sync(self) -> None:
        """See Target."""
        came = self._synced()
        self._uploads.note(self._ident, self._owner, came)

    def commit(self) -> tuple[Stored, bool]:
        """See Target."""
        came, digest = Ranges(), None
        try:
            came = self._synced()
            digest = self.landing.digest() if self.landing.front == self._spec.size else None
        except BaseException:
            os.close(self.landing.fd)
            self._uploads.settle(self._ident, self._owner, came)
            raise
        os.close(self.landing.fd)
        return self._uploads.commit(self._ident, self._owner, digest=digest, synced=came), True

    def keep(self) -> None:
        """See Target."""
        came = Ranges()
        try:
            came = self._synced()
        finally:
            os.close(self.landing.fd)
            self._uploads.settle(self._ident, self._owner, came)

    def drop(self) -> None:
        """See Target."""
        os.close(self.landing.fd)
        self._uploads.give_up(self._ident, self._owner)

    def _synced(self) -> Ranges:
        """Make durable what came and return it: nothing for ever once the disk failed, which says it once only."""
        came = self.landing.received
        if self._lost:
            return Ranges()
        try:
            with disk_errors(self._spec.key):
                os.fdatasync(self.landing.fd)
        except BaseException:
            self._lost = True
            raise
        return came
