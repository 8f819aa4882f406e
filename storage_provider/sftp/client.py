"""The SFTP channel: a door of our own storage element, or a directory of any SFTP server. Imports no server library."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain, groupby
from pathlib import Path
from typing import TypeVar

from certs.config import IdentityConfig
from certs.credential import Credential
from certs.errors import CredentialError
from certs.trust import Trust
from storage_provider.channel import EVERYTHING, Capabilities, Got, ObjectSpec, Put, Space, Stat, Stored, Want
from storage_provider.errors import Busy, Faulty, LocalFault, NotFound, StorageError, Unreachable, Unsupported
from storage_provider.keys import parse_prefix
from storage_provider.sftp import client_packets as packets
from storage_provider.sftp import client_replies as replies
from storage_provider.sftp.client_door import Door
from storage_provider.sftp.client_errors import Failed
from storage_provider.sftp.client_get import Reader, failing, regular
from storage_provider.sftp.client_list import Entries, entries, listed
from storage_provider.sftp.client_parts import Claims, sweep
from storage_provider.sftp.client_pool import Pool
from storage_provider.sftp.client_put import Putting
from storage_provider.sftp.client_replies import ProtocolError, Reply
from storage_provider.sftp.client_session import Lost, Session, Steps, ask, attempt
from storage_provider.timeouts import Timeouts

# Objects of a batch on their way at the same time, over one connection
TOGETHER = 24
PAUSE_SECONDS = 0.1
# Parts that we left behind at a foreign server are removed after a day; our own servers do it by themselves
STALE_SECONDS = 24 * 3600.0
OWN = replace(EVERYTHING, pull=False)
FOREIGN = replace(EVERYTHING, far_verify=False, checksum=False, pull=False)
T = TypeVar("T")


class SftpChannel:
    """A door `sftp://[USER@]HOST:PORT/areas/NAME` (ours) or `sftp://USER@HOST:PORT/DIR` (any server); thread-safe.

    Our X.509 key logs in; the server's key must belong to a certificate in `identity.ssh_peers` that names the host, or
    stand in `identity.ssh_known_hosts`. What a foreign server cannot verify is read back before it becomes visible.
    """

    def __init__(
        self,
        identity: IdentityConfig,
        trust: Trust,
        door: str,
        *,
        permit: str | None = None,
        timeouts: Timeouts | None = None,
    ) -> None:
        self._door = Door.parse(door)
        self._timeouts = timeouts or Timeouts()
        self._pool = Pool(identity, trust, self._door, self._timeouts, permit=permit)
        self._claims = Claims(_mark(identity))
        self._sweeping = threading.Lock()
        self._swept = self._door.own

    @property
    def door(self) -> str:
        """The door's URL."""
        return self._door.url

    @property
    def capabilities(self) -> Capabilities:
        """What the door's form says: our own element does all but third-party copies."""
        return OWN if self._door.own else FOREIGN

    def put(self, spec: ObjectSpec, path: Path, *, offset: int = 0, acting_for: str | None = None) -> Stored:
        """Store an object; goes on where a lost connection has left it."""
        (_, outcome), *_none = self.put_many([Put(spec, path, offset, acting_for)])
        if isinstance(outcome, StorageError):
            raise outcome
        return outcome

    @contextmanager
    def get(
        self, key: str, *, offset: int = 0, length: int | None = None, acting_for: str | None = None
    ) -> Iterator[Iterator[bytes]]:
        """Hand out the bytes of an object or a range as they arrive."""
        self._door.object(key)
        with ExitStack() as held:
            want = Want(key, offset, length, acting_for)
            yield self._again(lambda fresh: self._begun(held, want, fresh=fresh))

    def put_many(self, puts: Iterable[Put]) -> Iterator[tuple[Put, Stored | StorageError]]:
        """Store objects over one connection, several on their way at once."""
        for party, group in groupby(puts, lambda put: put.acting_for):
            yield from self._put_group(group, party)

    @contextmanager
    def get_many(self, wants: Sequence[Want]) -> Iterator[Iterator[Got]]:
        """Hand out objects in order over one connection, the next ones asked for ahead."""
        with ExitStack() as held:
            yield self._got(held, wants)  # the session goes back when the caller leaves

    def stat(self, key: str) -> Stat:
        """Ask for size and age."""
        path = self._door.object(key)
        attrs = self._ask(packets.lstat(path), key).attrs
        size = regular(attrs)
        if attrs is None or size is None:
            raise NotFound("there is no file under this key", door=self.door, key=key)
        return Stat(key, size, datetime.fromtimestamp(attrs.modified or 0, UTC))

    def checksum(self, key: str) -> str:
        """Let our own element re-read the object; SFTP itself has no such verb."""
        path = self._door.object(key)
        if not self._door.own:
            raise Unsupported("a foreign SFTP server computes no checksums; read the object", door=self.door, key=key)
        patience = self._timeouts.verifying(self.stat(key).size)
        return replies.parse_text(self._ask(packets.checksum(path, patience=patience), key).extended)

    def delete(self, key: str) -> None:
        """Delete the object."""
        path, tries = self._door.object(key), 0

        def call(fresh: bool) -> None:
            nonlocal tries
            tries += 1
            self._run(lambda _session: ask(packets.remove(path)), key, fresh=fresh)

        try:
            self._again(call)
        except NotFound:
            if tries < 2:  # the second time the first may have done it
                raise

    def list(self, prefix: str = "") -> Iterator[Stat]:
        """List folder by folder."""
        parse_prefix(prefix)
        return listed(prefix, lambda folders: self._again(lambda fresh: self._entries(folders, fresh=fresh)))

    def pull(
        self, spec: ObjectSpec, source_doors: Sequence[str], permit: str | None, *, acting_for: str | None = None
    ) -> Stored:
        """Raise Unsupported: SFTP has no third-party copies."""
        raise Unsupported("SFTP has no third-party copies", door=self.door, key=spec.key)

    def space(self) -> Space:
        """Return the space of the area, or of the file system below a foreign directory."""
        volume = replies.parse_volume(self._ask(packets.statvfs(self._door.root), "").extended)
        return Space(total=volume.total, free=volume.available, used=volume.total - volume.free)

    def element(self) -> str | None:
        """Ask an own server for its element's name; None when it does not say (an older one), or is foreign."""
        if not self._door.own:
            return None
        with self._pool.session(fresh=False) as session:
            return session.element

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    # -- getting ----------------------------------------------------------------------------------------------------

    def _begun(self, held: ExitStack, want: Want, *, fresh: bool) -> Iterator[bytes]:
        with ExitStack() as trying:
            session = trying.enter_context(self._pool.session(fresh=fresh))
            self._speak_for(session, want.acting_for)
            reader = Reader(session, [want])
            trying.callback(reader.finish)
            blocks = reader.first()
            held.push(trying.pop_all())
        return blocks

    def _got(self, held: ExitStack, wants: Sequence[Want]) -> Iterator[Got]:
        for party, group in groupby(wants, lambda want: want.acting_for):
            same = list(group)
            try:
                session = self._again(lambda fresh: self._spoken(held, party, fresh=fresh))  # noqa: B023  # called at once
            except StorageError as error:
                yield from failing(same, error)
                continue
            yield from Reader(session, same).each()
            held.close()

    def _spoken(self, held: ExitStack, party: str | None, *, fresh: bool) -> Session:
        """Return a session that has just answered."""
        with ExitStack() as trying:
            session = trying.enter_context(self._pool.session(fresh=fresh))
            self._speak_for(session, party)
            if session.reused:
                self._outcome(session, attempt(packets.lstat(self._door.root)), "")
            held.push(trying.pop_all())
        return session

    # -- putting ----------------------------------------------------------------------------------------------------

    def _put_group(self, puts: Iterable[Put], party: str | None) -> Iterator[tuple[Put, Stored | StorageError]]:
        """Store over one session; what a lost one leaves undone goes on over the next, a few times."""
        source = (Putting(put, self._claims) for put in puts)
        again: list[Putting] = []
        fresh, finished = False, False
        while not finished:
            retry, again = again, []
            if retry:
                time.sleep(PAUSE_SECONDS * 2 ** min(each.tries for each in retry))
            jobs = chain(retry, source)
            try:
                with self._pool.session(fresh=fresh) as session:
                    self._speak_for(session, party)
                    self._sweep(session)
                    for putting, outcome in session.run_many(_started(jobs, session), together=TOGETHER):
                        if isinstance(outcome, Unreachable | Busy) and putting.may_go_on():
                            again.append(putting)
                        else:
                            yield putting.put, _as_stored(outcome)
                    fresh = session.broken is not None
                finished = not again and not fresh
            except StorageError as error:
                if isinstance(error, Lost):
                    fresh, again = True, [*again, *retry]
                    continue
                for putting in chain(again, jobs):
                    yield putting.put, error
                finished = True

    def _sweep(self, session: Session) -> None:
        """Remove what we left at a foreign server a day ago and more; once for a channel, and never the put's fault."""
        if not self._swept and self._sweeping.acquire(blocking=False):
            try:
                self._swept = True
                self._outcome(session, sweep(session, self._claims.mark, older=STALE_SECONDS), "")
            finally:
                self._sweeping.release()

    # -- all --------------------------------------------------------------------------------------------------------

    def _ask(self, call: packets.Call, key: str) -> Reply:
        return self._again(lambda fresh: self._run(lambda _session: ask(call), key, fresh=fresh))

    def _run(self, steps: Callable[[Session], Steps[T]], key: str, *, fresh: bool) -> T:
        with self._pool.session(fresh=fresh) as session:
            self._speak_for(session, None)
            return self._outcome(session, steps(session), key)

    def _entries(self, folders: Sequence[str], *, fresh: bool) -> Sequence[Entries]:
        with self._pool.session(fresh=fresh) as session:
            self._speak_for(session, None)
            jobs = ((folder, entries(f"{self._door.objects}/{folder}".rstrip("/"))) for folder in folders)
            found = dict(session.run_many(jobs, together=TOGETHER))
            for outcome in found.values():
                if isinstance(outcome, Failed):
                    raise outcome.error(door=self.door)
                if isinstance(outcome, Exception):
                    raise outcome
            return [each for folder in folders if not isinstance(each := found[folder], Exception)]

    def _speak_for(self, session: Session, party: str | None) -> None:
        """Tell an own server on whose behalf the next requests are made; other servers cannot be told."""
        if session.party != (party or "") and session.has("acting-for@dgis"):
            self._outcome(session, ask(packets.acting_for(party or "")), "")
            session.party = party or ""

    def _outcome(self, session: Session, steps: Steps[T], key: str) -> T:
        try:
            return session.run(steps)
        except Failed as failed:
            raise failed.error(door=self.door, key=key) from failed
        except ProtocolError as error:
            raise Faulty(str(error), door=self.door, key=key) from error

    def _again(self, call: Callable[[bool], T]) -> T:
        """Call; once more over a new connection when a kept one turns out to be dead."""
        try:
            return call(False)
        except Lost:
            return call(True)


def _started(jobs: Iterable[Putting], session: Session) -> Iterator[tuple[Putting, Steps[Stored]]]:
    return ((putting, putting.steps(session)) for putting in jobs)


def _as_stored(outcome: Stored | Exception) -> Stored | StorageError:
    if isinstance(outcome, Stored | StorageError):
        return outcome
    raise outcome


def _mark(identity: IdentityConfig) -> str:
    """Return what our parts are known by: a hash of our DN, since names end in the logs of others."""
    try:
        dn = Credential(identity.cert, identity.key).dn()
    except CredentialError as error:
        raise LocalFault(str(error)) from error
    return hashlib.sha256(str(dn).encode()).hexdigest()[:16]
