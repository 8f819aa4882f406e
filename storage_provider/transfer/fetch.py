"""One fetch under way: attempts in threads of their own, one coordinator that waits, judges and never hangs.

The coordinator (the caller's thread) wakes at least ten times a second: it starts runs, gives up attempts that make too
little progress, hears `cancelled`, and hashes the gapless beginning meanwhile. An attempt that was given up may sit in
a network wait until the channel's own timeout, but can no longer write a byte: each write checks `live` under a lock.
"""

from __future__ import annotations

import hashlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from storage_provider.channel import Channel
from storage_provider.errors import (
    Cancelled,
    Corrupt,
    DoorURL,
    Faulty,
    LocalFault,
    NoSpace,
    NotFound,
    StorageError,
    Unreachable,
)
from storage_provider.transfer.landing import Landing
from storage_provider.transfer.plan import Limits, Piece, Plan, Run, pieces_of
from storage_provider.transfer.route import Doors, Route

POLL_SECONDS = 0.1
PAUSE_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Source:
    """Where an object is said to be, and what it must be."""

    doors: tuple[Doors, ...]
    key: str
    size: int
    sha256: str
    chunks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Blame:
    """What a replica did wrong during a fetch; `chunk` is the bad chunk's index when the digest was wrong."""

    se: str
    key: str
    kind: Literal["corrupt", "missing", "refused", "unreachable"]
    detail: str
    chunk: int | None = None


@dataclass(frozen=True, slots=True)
class Patience:
    """Give an attempt up that brings less than `stall_bytes` in `stall_seconds`."""

    stall_seconds: float = 10.0
    stall_bytes: int = 32 * 1024


@dataclass(frozen=True, slots=True)
class Caller:
    """What the caller of a fetch wants to say and hear meanwhile."""

    acting_for: str | None
    cancelled: Callable[[], bool]
    progress: Callable[[int], None]


@dataclass(slots=True)
class _Attempt:
    run: Run
    doors: Doors
    url: str
    began: float
    marked_at: float
    heard_at: float
    marked: int = 0
    received: int = 0
    live: bool = True
    lock: threading.Lock = field(default_factory=threading.Lock)


class _GivenUp(Exception):
    """The coordinator does not want this attempt's bytes any more."""


class Fetch:
    """The state of one fetch; `run` once."""

    def __init__(
        self, source: Source, landing: Landing, *, route: Route, open_channel: Callable[[str], Channel], limits: Limits
    ) -> None:
        self._source = source
        self._landing = landing
        self._route = route
        self._open = open_channel
        self._se = tuple(doors for doors in source.doors if doors.urls)
        doubtful = {number for number, doors in enumerate(self._se) if route.rests(doors)}
        pieces = pieces_of(source.size, source.sha256, source.chunks)
        self._plan = Plan(pieces, [len(doors.urls) for doors in self._se], limits, doubtful=doubtful)
        self._pieces = pieces
        self._lock = threading.Lock()
        self._over: queue.SimpleQueue[tuple[_Attempt, Exception | None]] = queue.SimpleQueue()
        self._attempts: dict[int, _Attempt] = {}
        self._errors: list[StorageError] = []
        self._paused_until = 0.0
        self._left: dict[str, set[str]] = {}
        self.served: dict[str, int] = {}
        self.blames: list[Blame] = []

    def run(self, caller: Caller, patience: Patience) -> None:
        """Bring every piece and verify the whole; raise what stands in the way when no replica is left to ask."""
        try:
            while not self._complete():
                if caller.cancelled():
                    raise Cancelled("fetch cancelled", key=self._source.key)
                self._start(caller)
                self._hear(busy=self._hash())
                self._judge(patience)
                caller.progress(sum(self.served.values()))
            self._drain()
        finally:
            for attempt in list(self._attempts.values()):
                self._give_up(attempt)
        if len(self._pieces) > 1 and self._landing.sha256 != self._source.sha256:
            raise Corrupt("every chunk is right and the whole is not: size, SHA-256 and chunks do not belong together")

    def _complete(self) -> bool:
        with self._lock:
            done = self._plan.done
        return done and not self._hash()

    def _hash(self) -> bool:
        """Hash a bit of the gapless beginning of a chunked object (a single piece was hashed on arrival)."""
        if len(self._pieces) == 1:
            return False
        with self._lock:
            frontier = self._plan.frontier
        upto = self._source.size if frontier == len(self._pieces) else self._pieces[frontier].offset
        return self._landing.advance(upto)

    def _start(self, caller: Caller) -> None:
        if time.monotonic() < self._paused_until:
            return
        while True:
            with self._lock:
                run = self._plan.next_run()
                stuck = run is None and self._plan.stuck
            if stuck:
                raise self._verdict()
            if run is None:
                return
            doors = self._se[run.source]
            now = time.monotonic()
            attempt = _Attempt(run, doors, self._route.order(doors)[0], self._route.clock(), now, now)
            self._attempts[run.number] = attempt
            threading.Thread(target=self._work, args=(attempt, caller), name="fetch", daemon=True).start()

    def _hear(self, *, busy: bool) -> None:
        """Take what attempts report; wait for it unless there is hashing to do."""
        try:
            attempt, error = self._over.get(block=not busy, timeout=POLL_SECONDS)
        except queue.Empty:
            return
        if self._attempts.pop(attempt.run.number, None) is None:
            return  # given up before
        if error is None:
            self._route.worked(attempt.doors, attempt.url, began=attempt.began)
            with self._lock:
                self._plan.run_ended(attempt.run)
        else:
            self._failed(attempt, error)

    def _failed(self, attempt: _Attempt, error: Exception) -> None:
        if not isinstance(error, StorageError):
            error = Faulty(f"{type(error).__name__} while fetching", door=attempt.url, key=self._source.key)
        if isinstance(error, (LocalFault, NoSpace)) and not error.door:
            raise error
        if isinstance(error, (Unreachable, DoorURL)) and self._by_another_door(attempt, error):
            return
        self._errors.append(error)
        se, key = attempt.doors.se, self._source.key
        with self._lock:
            if isinstance(error, Corrupt):
                piece = self._pieces[error.bad_chunks[0]]
                self._plan.piece_bad(attempt.run, piece)
                self.blames.append(Blame(se, key, "corrupt", error.detail, piece.index))
            elif error.permanent:
                self._plan.source_out(attempt.run)
                kind: Literal["missing", "refused"] = "missing" if isinstance(error, NotFound) else "refused"
                self.blames.append(Blame(se, key, kind, error.detail))
            else:
                self._broke(attempt, error)

    def _by_another_door(self, attempt: _Attempt, error: StorageError) -> bool:
        """Leave a door that did not answer. True when its element has one that this fetch has not left: the element is
        not to blame then, and what was asked is asked again at once, there or elsewhere."""
        doors, left = attempt.doors, self._left.setdefault(attempt.doors.se, set())
        silent = time.monotonic() - attempt.heard_at
        self._route.failed(doors, attempt.url, error.detail, began=attempt.began, silent=silent)
        left.add(attempt.url)
        if left.issuperset(doors.urls):
            left.clear()
            return False
        with self._lock:
            self._plan.run_turned(attempt.run)
        return True

    def _broke(self, attempt: _Attempt, error: StorageError) -> None:
        self._plan.run_broke(attempt.run)
        self.blames.append(Blame(attempt.doors.se, self._source.key, "unreachable", error.detail))
        if not self._plan.running and not self._plan.stuck and self._plan.only_broken:
            self._paused_until = time.monotonic() + PAUSE_SECONDS * min(len(self._errors), 3)

    def _judge(self, patience: Patience) -> None:
        now = time.monotonic()
        for attempt in list(self._attempts.values()):
            # The second door of a host that froze is not worth the same wait as the first
            share = 1 + len(self._left.get(attempt.doors.se, ()))
            if now - attempt.marked_at < patience.stall_seconds / share:
                continue
            if attempt.received - attempt.marked < patience.stall_bytes / share:
                self._give_up(attempt)
                self._failed(attempt, Unreachable("too slow", door=attempt.url, key=self._source.key))
            attempt.marked_at, attempt.marked = now, attempt.received

    def _give_up(self, attempt: _Attempt) -> None:
        with attempt.lock:
            attempt.live = False
        self._attempts.pop(attempt.run.number, None)

    def _drain(self) -> None:
        """Let attempts that brought everything hand their connections back, so that the next fetch reuses them."""
        until = time.monotonic() + POLL_SECONDS
        while self._attempts and time.monotonic() < until:
            self._hear(busy=False)

    def _verdict(self) -> StorageError:
        if not self._errors:
            return NotFound("no replica is known", key=self._source.key)
        passing = [error for error in self._errors if not error.permanent]
        others = [error for error in self._errors if not isinstance(error, NotFound)]
        return (passing or others or self._errors)[-1]

    def _work(self, attempt: _Attempt, caller: Caller) -> None:
        """Run one attempt in its own thread and report how it ended (this is a worker-loop edge)."""
        run, whole = attempt.run, len(attempt.run.pieces) == len(self._pieces)
        outcome: Exception | None = None
        try:
            channel = self._open(attempt.url)
            span = (0, None) if whole else (run.offset, run.length)
            with channel.get(self._source.key, offset=span[0], length=span[1], acting_for=caller.acting_for) as blocks:
                self._receive(attempt, blocks)
        except _GivenUp:
            return
        except Exception as error:  # noqa: BLE001  whatever a channel does, the coordinator must hear of it
            outcome = error
        self._over.put((attempt, outcome))

    def _receive(self, attempt: _Attempt, blocks: Iterator[bytes]) -> None:
        stream = _Stream(blocks)
        for piece in attempt.run.pieces:
            digest, position = hashlib.sha256(), piece.offset
            while position < piece.offset + piece.length:
                data = stream.take(piece.offset + piece.length - position)
                if not data:
                    raise Unreachable("the stream ended early", door=attempt.url, key=self._source.key)
                digest.update(data)
                self._write(attempt, data, position)
                position += len(data)
            self._settle(attempt, piece, digest.hexdigest())
        if stream.take(1):
            raise self._corrupt(attempt, attempt.run.pieces[-1], "more bytes than the object has")

    def _write(self, attempt: _Attempt, data: memoryview, position: int) -> None:
        with attempt.lock:
            if not attempt.live:
                raise _GivenUp
            self._landing.write(data, position)
            attempt.received += len(data)
            attempt.heard_at = time.monotonic()

    def _settle(self, attempt: _Attempt, piece: Piece, sha256: str) -> None:
        if sha256 != piece.sha256:
            raise self._corrupt(attempt, piece, "wrong SHA-256")
        with attempt.lock:
            if not attempt.live:
                raise _GivenUp
            with self._lock:
                self._plan.piece_landed(attempt.run, piece)
                self.served[attempt.doors.se] = self.served.get(attempt.doors.se, 0) + piece.length

    def _corrupt(self, attempt: _Attempt, piece: Piece, detail: str) -> Corrupt:
        return Corrupt(detail, door=attempt.url, key=self._source.key, bad_chunks=(piece.index,))


class _Stream:
    """Cuts an iterator of blocks at piece boundaries without copying."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._rest = memoryview(b"")

    def take(self, limit: int) -> memoryview:
        """Return at most `limit` bytes; empty at the end."""
        while not self._rest:
            block = next(self._blocks, None)
            if block is None:
                return self._rest
            self._rest = memoryview(block)
        data, self._rest = self._rest[:limit], self._rest[limit:]
        return data
