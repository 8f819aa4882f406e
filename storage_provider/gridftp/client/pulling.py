"""Third-party copies: we tell one server to listen and another to send; the bytes never come here.

Both get the same throw-away credential for the data channel between them (DCSC P), so it is private and mutually
authenticated, and nobody's key is delegated.
"""

from __future__ import annotations

import contextlib
import select
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace

from storage_provider.channel import ObjectSpec, Stored
from storage_provider.errors import Corrupt, DoorURL, NoSpace, StorageError, Unreachable, Unsupported
from storage_provider.gridftp.client.door import Door
from storage_provider.gridftp.client.hearing import Hearing
from storage_provider.gridftp.client.link import DataIdentity
from storage_provider.gridftp.client.putting import StalePart, discard, stored_now
from storage_provider.gridftp.client.session import Opening, Session
from storage_provider.gridftp.client.sessions import STALE_SECONDS, Sessions
from storage_provider.gridftp.client.staging import Staging
from storage_provider.gridftp.markers import format_spans
from storage_provider.ranges import Ranges
from storage_provider.wire import SINGLE_PUT_BYTES

# Both servers' certificates are judged again this often
_JUDGE_SECONDS = 1.0
# How long the other end may take to say why, when one end only saw the connection break
_REASON_SECONDS = 1.0
# Sources whose sessions are kept
_MOST_SOURCES = 8


class SourceFault(Exception):
    """A source cannot give the object; another one may."""

    def __init__(self, error: StorageError) -> None:
        super().__init__(str(error))
        self.error = error


class Pairs:
    """Sessions in pairs: one at this door, one at a source, with a data credential that only these two get."""

    def __init__(self, opening: Opening) -> None:
        self._opening = opening
        self._lock = threading.Lock()
        self._known: dict[str, tuple[Sessions, Sessions]] = {}

    @contextmanager
    def lent(self, source: Door, permit: str | None, *, fresh: bool) -> Iterator[tuple[Session, Session]]:
        """Lend (sender, target); raises SourceFault when the source cannot be had."""
        targets, senders = self._of(source)
        with targets.lent(fresh=fresh) as target, _blamed(senders.lent(fresh=fresh)) as sender:
            if sender.identity is not target.identity:
                target.control.broken = sender.control.broken = True
                raise target.control.lost("the sessions of a copy were made at different times")
            _shown(sender, permit)
            yield sender, target

    def targets(self, source: Door) -> Sessions:
        """Return the sessions at this door that go with a source."""
        return self._of(source)[0]

    def close(self) -> None:
        """Close the sessions."""
        with self._lock:
            known, self._known = self._known, {}
        for pair in known.values():
            for sessions in pair:
                sessions.close()

    def _of(self, source: Door) -> tuple[Sessions, Sessions]:
        with self._lock:
            pair = self._known.pop(source.url, None)
            if pair is None:
                identity = DataIdentity(ours=source.own and self._opening.door.own)
                opening = replace(self._opening, door=source, permit=None)
                pair = Sessions(self._opening, identity), Sessions(opening, identity)
            self._known[source.url] = pair  # the last one used is the last one to go
            old = self._known.pop(next(iter(self._known))) if len(self._known) > _MOST_SOURCES else ()
        for sessions in old:
            sessions.close()
        return pair


@contextmanager
def _blamed(lent: AbstractContextManager[Session]) -> Iterator[Session]:
    """Lend a source's session; that there is none is the source's fault."""
    with ExitStack() as stack:
        try:
            session = stack.enter_context(lent)
        except StorageError as error:
            raise SourceFault(error) from error
        yield session


def _shown(sender: Session, permit: str | None) -> None:
    try:
        sender.show(permit)
    except StorageError as error:
        raise SourceFault(error) from error


class Pulling:
    """The pull of one object to the door of a channel."""

    def __init__(self, pairs: Pairs, staging: Staging, spec: ObjectSpec, acting_for: str | None) -> None:
        self._pairs = pairs
        self._staging = staging
        self._spec = spec
        self._acting_for = acting_for

    def run(self, source_doors: Sequence[str], permit: str | None) -> Stored:
        """Copy from the first source that can give the object; raises what the last one answered."""
        sources = _gsiftp(source_doors)
        if not sources:
            raise Unsupported("a GridFTP server fetches from gsiftp doors only", key=self._spec.key)
        last: StorageError | None = None
        for source in sources:
            try:
                return self._from(source, permit)
            except StalePart:
                last = Corrupt("earlier calls keep leaving wrong bytes", door=source.url, key=self._spec.key)
            except SourceFault as fault:
                last = fault.error
            except NoSpace:
                discard(self._pairs.targets(source), self._staging, self._spec.key)
                raise
            except Corrupt as error:  # a source that has rotted; another one may be sound
                last = error
        assert last is not None
        raise last

    def _from(self, source: Door, permit: str | None) -> Stored:
        """Copy from one source; once more with new sessions when kept ones turned out to be closed."""
        began = time.monotonic()
        try:
            return self._between(source, permit, fresh=False)
        except StalePart:
            pass
        except (SourceFault, Unreachable) as fault:
            error = fault.error if isinstance(fault, SourceFault) else fault
            if not isinstance(error, Unreachable) or time.monotonic() - began > STALE_SECONDS:
                raise
        return self._between(source, permit, fresh=True)

    def _between(self, source: Door, permit: str | None, *, fresh: bool) -> Stored:
        with self._pairs.lent(source, permit, fresh=fresh) as (sender, target):
            target.acting(self._acting_for)
            if not self._staging.verified(target, [self._spec])[0]:
                self._staging.prepare(target)
                self._put(sender, target)
            return stored_now(self._spec)

    def _put(self, sender: Session, target: Session) -> None:
        spec = self._spec
        have = self._staging.have(target, spec) if spec.size > SINGLE_PUT_BYTES else Ranges()
        if have.covers(0, spec.size):
            have = Ranges()
        try:
            self._copy(sender, target, have)
            self._staging.commit(target, spec)
        except Corrupt as error:
            if have:
                raise StalePart from error
            raise

    def _copy(self, sender: Session, target: Session, have: Ranges) -> None:
        spec, key = self._spec, self._spec.key
        rest = [f"REST {format_spans(have.spans)}"] if have else []
        target.mode("E")
        endpoint = target.passive_address()
        try:
            sender.acting(self._acting_for)
            sender.mode("E")
            sender.port(endpoint)
            for command in rest:
                sender.control.ask(command, key=key)
        except StorageError as error:
            raise SourceFault(error) from error
        for command in [f"ALLO {spec.size}", *rest]:
            target.control.ask(command, key=key)
        target.control.send(f"STOR {self._staging.path(key)}")
        sender.control.send(f"RETR {sender.door.object(key)}")
        _Both(sender, target, spec).follow()


class _Both:
    """The two ends of a running copy."""

    def __init__(self, sender: Session, target: Session, spec: ObjectSpec) -> None:
        self._sender = sender
        self._target = target
        self._out = Hearing(sender.control, spec.key, sending=False)
        self._in = Hearing(target.control, spec.key, sending=False)
        self._patience = target.control.timeouts.verifying(spec.size)

    def follow(self) -> None:
        """Wait until both say that all is done; markers count as progress."""
        try:
            while not (self._out.ended and self._in.ended):
                self._wait(self._patience)
                self._hear_sender()
                self._in()
        except SourceFault:
            self._give_up()
            raise
        except StorageError as error:
            self._give_up()
            raise self._better(error) from error

    def _give_up(self) -> None:
        """Have both sessions closed: the ends may still wait for one another."""
        for session in (self._sender, self._target):
            session.control.broken = True

    def _hear_sender(self) -> None:
        try:
            self._out()
        except StorageError as error:
            raise SourceFault(error) from error

    def _better(self, error: StorageError) -> StorageError:
        """Prefer a reason over a broken connection: the other end may know why it broke."""
        if isinstance(error, Unreachable):
            with contextlib.suppress(Unreachable):
                self._wait(_REASON_SECONDS)
            self._hear_sender()
        return error

    def _wait(self, seconds: float) -> None:
        """Wait until one of the two has said something."""
        ends = [(self._sender, self._out), (self._target, self._in)]
        waiting = [session.control for session, hearing in ends if not hearing.ended]
        until = time.monotonic() + seconds
        poll = select.poll()
        for control in waiting:
            poll.register(control, select.POLLIN)
        while True:
            self._judge_again()
            left = until - time.monotonic()
            if any(control.ready() for control in waiting) or poll.poll(max(0.0, min(left, _JUDGE_SECONDS)) * 1000):
                return
            if left <= 0:
                raise Unreachable(f"the copy made no progress within {seconds:.0f} s", door=self._target.door.url)

    def _judge_again(self) -> None:
        """Raise Denied when we refuse the target by now, SourceFault when it is the source."""
        self._target.control.judge_again()
        try:
            self._sender.control.judge_again()
        except StorageError as error:
            raise SourceFault(error) from error


def _gsiftp(doors: Sequence[str]) -> list[Door]:
    found = []
    for door in doors:
        with contextlib.suppress(DoorURL):
            found.append(Door.parse(door))
    return found
