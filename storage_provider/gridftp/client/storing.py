"""Storing through a channel: what is there already is not sent again, what was cut goes on, a batch has one session."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice

from storage_provider.channel import ObjectSpec, Put, Stored
from storage_provider.errors import Busy, Corrupt, LocalFault, NoSpace, NotFound, StorageError, Unreachable
from storage_provider.gridftp.client.putting import (
    SMALL_BYTES,
    Flight,
    Local,
    OutOfStep,
    StalePart,
    discard,
    opened,
    put_one,
    stored_now,
)
from storage_provider.gridftp.client.session import Session
from storage_provider.gridftp.client.sessions import Sessions
from storage_provider.gridftp.client.staging import Staging
from storage_provider.wire import SINGLE_PUT_BYTES

# Sessions that work on a batch, and what each takes at a time
_PARALLEL = 4
_WINDOW = 32
_WINDOW_BYTES = 32 * 1024 * 1024
# Objects of a window that are asked for before it is sent
_SAMPLES = 2
# Tries of one large object after cuts, and pauses between them (seconds, doubling)
_TRIES = 4
_PAUSE = 0.1
# So many puts in a row without an answer: the door is gone, not the objects
_GONE_AFTER = 2

Outcome = tuple[Put, Stored | StorageError]


class Storing:
    """The puts of one channel; thread-safe."""

    def __init__(self, sessions: Sessions, staging: Staging) -> None:
        self._sessions = sessions
        self._staging = staging
        self._exclusive = Exclusive()

    def one(self, put: Put) -> Stored:
        """Store one object; raises StorageErrors."""
        with opened(put) as local, self._claimed(put.spec):
            return _Tries(self._sessions, self._staging, put, local).run()

    def many(self, puts: Iterable[Put]) -> Iterator[Outcome]:
        """Store many; yields each with its outcome.

        A few sessions work at once: a far side that syncs each object to its disk waits for the disk most of the time.
        """
        windows, waiting = _windows(puts), deque[Future[list[Outcome]]]()
        batch = _Batch()
        parallel = min(_PARALLEL, self._sessions.opening.data.sessions)
        pool = ThreadPoolExecutor(parallel, thread_name_prefix="gsiftp-put")
        try:
            while True:
                for window in islice(windows, parallel + 1 - len(waiting)):
                    waiting.append(pool.submit(self._window, window, batch))
                if not waiting:
                    return
                yield from waiting.popleft().result()
        finally:
            batch.stopped = True
            pool.shutdown(wait=True, cancel_futures=True)

    def _window(self, window: list[Put], batch: _Batch) -> list[Outcome]:
        found: list[Outcome] = []
        if not batch.gone:
            for put, outcome in self._together(window):
                found.append((put, outcome))
                if batch.stopped:
                    return found
        done = {id(put) for put, _ in found}
        for put in window:
            if id(put) not in done and not batch.stopped:
                outcome = self._no_more(put, batch.why) if batch.gone else self._alone(put)
                batch.note(outcome)
                found.append((put, outcome))
        return found

    def _together(self, window: list[Put]) -> Iterator[Outcome]:
        """Store what can be stored in one go; what is not yielded must be tried alone."""
        claimed: list[Put] = []
        try:
            claimed = [put for put in window if self._staging.door.own or self._exclusive.claim(put.spec.key)]
            with self._sessions.lent(up=True) as session:
                yield from self._in_session(session, claimed)
        except (StorageError, OutOfStep, StalePart):
            return
        finally:
            if not self._staging.door.own:
                self._exclusive.release(put.spec.key for put in claimed)

    def _in_session(self, session: Session, puts: list[Put]) -> Iterator[Outcome]:
        if not puts:
            return
        session.acting(puts[0].acting_for)
        there = self._there(session, [put.spec for put in puts])
        for put, verified in zip(puts, there, strict=True):
            if verified:
                yield put, stored_now(put.spec)
        small = [
            put for put, verified in zip(puts, there, strict=True) if not verified and put.spec.size <= SMALL_BYTES
        ]
        if not small:
            return
        self._staging.prepare(session)
        if not session.linked(up=True):
            yield from self._first(session, small.pop(0))
        if session.linked(up=True):
            session.mode("E")
            yield from Flight(session, self._staging, small).run()

    def _there(self, session: Session, specs: list[ObjectSpec]) -> list[bool]:
        """Say which objects of a window need not be sent.

        At our own servers two are asked for first: when neither is there, it is hardly a batch that comes again. What
        is there all the same is sent, and found by the server. Asking for each is a tenth of what a small put costs.
        """
        if not self._staging.door.own or len(specs) <= 2 * _SAMPLES:
            return self._staging.verified(session, specs)
        first = self._staging.verified(session, specs[:_SAMPLES])
        if not any(first):
            return [False] * len(specs)
        return [*first, *self._staging.verified(session, specs[_SAMPLES:])]

    def _first(self, session: Session, put: Put) -> Iterator[Outcome]:
        """Store one object the careful way, which makes the data connection for the others."""
        try:
            with opened(put) as local:
                put_one(session, self._staging, put, local)
        except LocalFault as error:
            yield put, error
            return
        yield put, stored_now(put.spec)

    def _alone(self, put: Put) -> Stored | StorageError:
        try:
            return self.one(put)
        except StorageError as error:
            return error

    def _no_more(self, put: Put, why: str) -> Unreachable:
        return Unreachable(why, door=self._staging.door.url, key=put.spec.key)

    @contextmanager
    def _claimed(self, spec: ObjectSpec) -> Iterator[None]:
        """Keep others of this channel from writing the same part at a foreign server at the same time."""
        if self._staging.door.own:
            yield
            return
        patience = self._sessions.opening.timeouts.verifying(spec.size)
        if not self._exclusive.claim(spec.key, patience):
            raise Busy("the object is being stored by another call", door=self._staging.door.url, key=spec.key)
        try:
            yield
        finally:
            self._exclusive.release([spec.key])


class _Batch:
    """What the sessions of one batch tell one another."""

    def __init__(self) -> None:
        self.stopped = False
        self.why = ""
        self._silent = 0

    @property
    def gone(self) -> bool:
        """Whether the door did not answer the last puts: it is gone, not the objects."""
        return self._silent >= _GONE_AFTER

    def note(self, outcome: Stored | StorageError) -> None:
        """Count puts in a row without an answer, and keep why."""
        if isinstance(outcome, Unreachable):
            self._silent, self.why = self._silent + 1, outcome.detail
        else:
            self._silent = 0


class _Tries:
    """One object: the tries that it takes."""

    def __init__(self, sessions: Sessions, staging: Staging, put: Put, local: Local) -> None:
        self._sessions = sessions
        self._staging = staging
        self._put = put
        self._local = local
        self._fresh = False
        self._excused: set[str] = set()
        self._cuts = 0

    def run(self) -> Stored:
        while True:
            session: Session | None = None
            try:
                session = self._sessions.take(up=True, fresh=self._fresh)
                return self._once(session)
            except Unreachable:
                self._after_cut(session)
            except StalePart as stale:
                if not self._excuse("stale part"):
                    raise Corrupt("earlier calls keep leaving wrong bytes", door=self._staging.door.url) from stale
            except NoSpace:
                discard(self._sessions, self._staging, self._put.spec.key)
                raise
            except NotFound:
                if self._staging.door.own or not self._excuse("folders"):
                    raise
                self._staging.forget_folders()
            finally:
                if session is not None:
                    self._sessions.give_back(session)

    def _once(self, session: Session) -> Stored:
        spec = self._put.spec
        session.acting(self._put.acting_for)
        if not self._staging.verified(session, [spec])[0]:
            self._staging.prepare(session)
            put_one(session, self._staging, self._put, self._local)
        return stored_now(spec)

    def _after_cut(self, session: Session | None) -> None:
        """Say whether a cut is worth another try; raises the cut otherwise."""
        if session is not None and session.reused and self._excuse("stale"):
            self._fresh = True  # a kept connection may have been closed while idle
            return
        moved = session is not None and session.moving
        self._cuts += 1
        if self._put.spec.size <= SINGLE_PUT_BYTES or not moved or self._cuts >= _TRIES:
            raise
        time.sleep(_PAUSE * 2**self._cuts)

    def _excuse(self, what: str) -> bool:
        """Say whether a cause may be excused still: each once."""
        if what in self._excused:
            return False
        self._excused.add(what)
        return True


class Exclusive:
    """Keys that are being written."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._keys: set[str] = set()

    def claim(self, key: str, patience: float = 0.0) -> bool:
        """Take a key, waiting at most so many seconds; says whether it was free."""
        with self._changed:
            free = self._changed.wait_for(lambda: key not in self._keys, patience)
            if free:
                self._keys.add(key)
            return free

    def release(self, keys: Iterable[str]) -> None:
        """Give keys back."""
        with self._changed:
            self._keys.difference_update(keys)
            self._changed.notify_all()


def _windows(puts: Iterable[Put]) -> Iterator[list[Put]]:
    """Cut a batch into what is stored in one go: bounded, no key twice, on behalf of one party."""
    window: list[Put] = []
    keys: set[str] = set()
    size = 0
    for put in puts:
        other = window and put.acting_for != window[0].acting_for
        if window and (other or put.spec.key in keys or len(window) >= _WINDOW or size >= _WINDOW_BYTES):
            yield window
            window, keys, size = [], set(), 0
        window.append(put)
        keys.add(put.spec.key)
        size += put.spec.size
    if window:
        yield window
