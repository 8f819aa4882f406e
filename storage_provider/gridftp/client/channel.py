"""The gsiftp channel: one door of a storage element over GridFTP, our own server's or a foreign one's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from certs.tls import ReloadingContext
from storage_provider.channel import EVERYTHING, Capabilities, Got, ObjectSpec, Put, Space, Stat, Stored, Want
from storage_provider.errors import NotFound, StorageError, Unreachable, Unsupported
from storage_provider.gridftp.client.asking import list_objects, space_of, stat_of
from storage_provider.gridftp.client.door import Door
from storage_provider.gridftp.client.fanout import Fanned
from storage_provider.gridftp.client.getting import Getting
from storage_provider.gridftp.client.link import DataIdentity, Dial, plainly
from storage_provider.gridftp.client.pulling import Pairs, Pulling
from storage_provider.gridftp.client.session import Opening, Session
from storage_provider.gridftp.client.sessions import STALE_SECONDS, Sessions
from storage_provider.gridftp.client.staging import Staging, checksum_of
from storage_provider.gridftp.client.storing import Storing
from storage_provider.gridftp.settings import DataSettings
from storage_provider.keys import parse_prefix
from storage_provider.timeouts import Timeouts

OWN = EVERYTHING
# GCT has no verb for space; everything else is done with its verbs, the digest by CKSM before the rename.
FOREIGN = replace(EVERYTHING, space=False)

# Sessions of a batch of gets in stream mode
_LANES = 4

T = TypeVar("T")


class GsiftpChannel:
    """A door `gsiftp://HOST:PORT/areas/NAME`, or `gsiftp://HOST:PORT/ABSOLUTE/PATH` at a foreign server; thread-safe.

    Control and data channels are always authenticated and private. `permit` is shown at our own servers.
    """

    def __init__(
        self,
        tls: ReloadingContext,
        door: str,
        *,
        permit: str | None = None,
        timeouts: Timeouts | None = None,
        data: DataSettings | None = None,
        dial: Dial = plainly,
    ) -> None:
        """Parse the door (DoorURL); nothing is connected before it is needed.

        `dial` makes the data connections to passive far sides, for those who must reach them by another way.
        """
        self._door = Door.parse(door)
        opening = Opening(self._door, tls, timeouts or Timeouts(), data or DataSettings(), permit, dial)
        self._sessions = Sessions(opening, DataIdentity(ours=self._door.own))
        self._pairs = Pairs(opening)
        self._staging = Staging(self._door, tls.credential.dn())
        self._storing = Storing(self._sessions, self._staging)

    @property
    def door(self) -> str:
        """The door's URL."""
        return self._door.url

    @property
    def capabilities(self) -> Capabilities:
        """Everything at our own servers; at foreign ones all but space."""
        return OWN if self._door.own else FOREIGN

    def put(self, spec: ObjectSpec, path: Path, *, offset: int = 0, acting_for: str | None = None) -> Stored:
        """Store an object; a large one goes on where an earlier call was cut."""
        return self._storing.one(Put(spec, path, offset, acting_for))

    @contextmanager
    def get(
        self, key: str, *, offset: int = 0, length: int | None = None, acting_for: str | None = None
    ) -> Iterator[Iterator[bytes]]:
        """Hand out the bytes of an object or a range as they arrive."""
        self._door.object(key)
        getting = Getting(self._sessions, [Want(key, offset, length, acting_for)])
        try:
            blocks = getting.open(0)
            try:
                yield blocks
            finally:
                blocks.close()
        finally:
            getting.close()

    def put_many(self, puts: Iterable[Put]) -> Iterator[tuple[Put, Stored | StorageError]]:
        """Store objects, small ones sent ahead of the answers over one data connection."""
        return self._storing.many(puts)

    @contextmanager
    def get_many(self, wants: Sequence[Want]) -> Iterator[Iterator[Got]]:
        """Hand out objects: asked for ahead over one data connection, or in stream mode over a few sessions."""
        data = self._sessions.opening.data
        streams = not self._door.own and not data.active
        lanes = min(_LANES, data.sessions, len(wants)) if streams else 1
        getting = Getting(self._sessions, wants) if lanes < 2 else Fanned(self._sessions, wants, lanes)
        gots = getting.each()
        try:
            yield gots
        finally:
            gots.close()
            getting.close()

    def stat(self, key: str) -> Stat:
        """Ask for size and age."""
        path = self._door.object(key)
        return self._again(lambda session: stat_of(session, key, path))

    def checksum(self, key: str) -> str:
        """Let the far side re-read the object; waits by its size."""
        path = self._door.object(key)

        def ask(session: Session) -> str:
            patience = session.control.timeouts.verifying(stat_of(session, key, path).size)
            session.control.send(f"CKSM SHA256 0 -1 {path}")
            return checksum_of(session, session.control.final(patience), key)

        return self._again(ask)

    def delete(self, key: str) -> None:
        """Delete the object."""
        path, tries = self._door.object(key), 0

        def ask(session: Session) -> None:
            nonlocal tries
            tries += 1
            session.control.ask(f"DELE {path}", key=key)

        try:
            self._again(ask)
        except NotFound:
            if tries < 2:  # the second time the first may have done it
                raise

    def list(self, prefix: str = "") -> Iterator[Stat]:
        """List folder by folder over the control channel."""
        parse_prefix(prefix)
        with self._sessions.lent() as session:
            yield from list_objects(session, prefix)

    def pull(
        self, spec: ObjectSpec, source_doors: Sequence[str], permit: str | None, *, acting_for: str | None = None
    ) -> Stored:
        """Have a source's server send straight to this door's."""
        return Pulling(self._pairs, self._staging, spec, acting_for).run(source_doors, permit)

    def space(self) -> Space:
        """Ask for the space of this door's area."""
        if not self._door.own:
            raise Unsupported("a foreign GridFTP server has no verb for space", door=self.door)
        return self._again(space_of)

    def element(self) -> str | None:
        """Ask an own server for its element's name; None when it does not say (an older one), or is foreign."""
        return self._again(lambda session: session.element) if self._door.own else None

    def close(self) -> None:
        """Close the sessions."""
        self._sessions.close()
        self._pairs.close()

    def _again(self, call: Callable[[Session], T]) -> T:
        """Ask in a session; once more in a new one when a kept connection turned out to be gone."""
        began = time.monotonic()
        session = self._sessions.take()
        try:
            return call(session)
        except Unreachable:
            if not session.reused or time.monotonic() - began > STALE_SECONDS:
                raise
        finally:
            self._sessions.give_back(session)
        with self._sessions.lent(fresh=True) as session:
            return call(session)
