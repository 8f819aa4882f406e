"""One SFTP session: many requests in flight, of several jobs at once, in one thread.

A job is a generator of steps: it yields a `Call`, which is sent without waiting, or TAKE, which gives the oldest answer
of its calls that is not taken yet. While one job waits, the others go on; so small files fill a long line, too.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice
from typing import Final, Generic, Literal, Protocol, TypeVar

from storage_provider.errors import DoorURL, StorageError, Unreachable
from storage_provider.sftp import client_packets as packets
from storage_provider.sftp import client_replies as replies
from storage_provider.sftp.client_door import Door
from storage_provider.sftp.client_errors import Failed
from storage_provider.sftp.client_packets import Call
from storage_provider.sftp.client_replies import Limits, Piece, ProtocolError, Replies, Reply, Status
from storage_provider.sftp.numbers import Code
from storage_provider.timeouts import Timeouts

# Bytes that a session lets the server send ahead; less than the transport's window
ASKED_BYTES = 4 * 1024 * 1024
# An own server's mark among its extensions (VERSION packet)
OWN_MARK = "dgis@dgis"
WATCH_SECONDS = 1.0
_NOT_OWN = "no dgis storage element answers here; for a foreign server name a directory other than /areas/NAME"
_OWN = "a dgis storage element answers here; its doors are sftp://HOST:PORT/areas/NAME"


class _Take(Enum):
    TAKE = "take"


TAKE: Final = _Take.TAKE
Answer = Reply | Piece
T = TypeVar("T")
K = TypeVar("K")
Steps = Generator[Call | Literal[_Take.TAKE], Answer | None, T]


class Stream(Protocol):
    """The bytes below a session (client_transport.Wire)."""

    def send(self, data: bytes) -> None: ...
    def receive(self, patience: float) -> bytes: ...
    def close(self) -> None: ...


@dataclass(slots=True)
class Ticket:
    """A request in flight: its answers, in order; `done` after the last. Nobody waits for an `idle` one."""

    call: Call
    asks: int
    idle: bool
    answers: deque[Answer] = field(default_factory=deque)
    done: bool = False


@dataclass(slots=True)
class _Job(Generic[T]):
    steps: Steps[T]
    tickets: deque[Ticket] = field(default_factory=deque)
    held: Call | None = None  # waits until less is asked for
    fresh: bool = True


@dataclass(frozen=True, slots=True)
class _Outcome(Generic[T]):
    value: T | Exception


class Session:
    """A logged-in SFTP session; for one thread at a time. Once `broken` (by what) it can only be closed."""

    def __init__(self, stream: Stream, door: Door, timeouts: Timeouts, watch: Callable[[], None]) -> None:
        """Exchange versions. `watch` is called about once a second and raises what must end the session.

        Raises Unreachable, and DoorURL when the far side is not of the kind that the door's path says.
        """
        self.door = door
        self.timeouts = timeouts
        self.broken: StorageError | None = None
        self.reused = False  # kept from an earlier call, and not heard of since
        self.party = ""  # on whose behalf an own server believes that we ask
        self.limits = Limits()
        self.used = self._watched = time.monotonic()
        self._stream = stream
        self._watch = watch
        self._replies = Replies()
        self._tickets: dict[int, Ticket] = {}
        self._number = 0
        self._asked = 0
        self._begin()

    def has(self, extension: str) -> bool:
        """Say whether the server announced an extension."""
        return extension in (self._replies.extensions or {})

    @property
    def element(self) -> str | None:
        """What an own server calls its element ("1 NAME" in its mark); None when it does not say."""
        _, _, name = (self._replies.extensions or {}).get(OWN_MARK, "").partition(" ")
        return name or None

    @property
    def quiet(self) -> bool:
        """Whether every request that somebody waits for is answered."""
        return all(ticket.idle for ticket in self._tickets.values())

    def send(self, call: Call, *, idle: bool = False) -> Ticket:
        """Send a request without waiting for anything but the line; `idle`: its answer will not be missed."""
        self._number = (self._number + 1) & 0xFFFFFFFF
        ticket = self._tickets[self._number] = Ticket(call, call.asks, idle)
        self._asked += call.asks
        self._guarded(lambda: self._stream.send(call.encode(self._number)))
        return ticket

    def receive(self) -> None:
        """Take in what comes, waiting for at least something. Raises Unreachable, or what `watch` raises."""
        self.watch()
        patience = self.timeouts.answer + max((each.call.patience for each in self._tickets.values()), default=0.0)
        data = self._guarded(lambda: self._stream.receive(patience))
        self.used = time.monotonic()
        self.reused = False  # it lives; what happens to it from now on is no reason to try another
        try:
            for answer in self._replies.feed(data):
                self._answered(answer)
        except ProtocolError as error:
            self.broken = Unreachable(f"the server's SFTP is not understood: {error}", door=self.door.url)
            raise self.broken from error

    def watch(self, *, every: float = WATCH_SECONDS) -> None:
        """Look whether the far side may still be spoken to."""
        now = time.monotonic()
        if now - self._watched >= every:
            self._watched = now
            self._guarded(self._watch)

    def room_for(self, call: Call) -> bool:
        """Say whether a read may be sent now, or must wait until others are answered."""
        return not call.asks or not self._asked or self._asked + call.asks <= ASKED_BYTES

    def run(self, steps: Steps[T]) -> T:
        """Run one job; raises what it raises (Failed included)."""
        (_, outcome), *_rest = self.run_many([(None, steps)], together=1)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def run_many(self, jobs: Iterable[tuple[K, Steps[T]]], *, together: int) -> Iterator[tuple[K, T | Exception]]:
        """Run named jobs, `together` at a time; yields each name with what came of it, as they end.

        When the session breaks, each job that has begun yields that error; no more is taken from `jobs`.
        """
        source, running = iter(jobs), dict[int, tuple[K, _Job[T]]]()
        try:
            while True:
                for name, steps in islice(source, together - len(running)):
                    running[id(steps)] = name, _Job(steps)
                if not running:
                    return
                ended = [(mark, outcome) for mark, (_, job) in running.items() if (outcome := self._advance(job))]
                if not ended:
                    self.receive()
                for mark, outcome in ended:
                    name, _ = running.pop(mark)
                    yield name, outcome.value
        except StorageError as error:
            while running:
                _, (name, job) = running.popitem()
                job.steps.close()
                yield name, error
        finally:
            for _, job in running.values():
                job.steps.close()

    def close(self) -> None:
        """End the session at once."""
        self.broken = self.broken or Unreachable("the session is closed", door=self.door.url)
        self._stream.close()

    def _begin(self) -> None:
        self._guarded(lambda: self._stream.send(packets.init()))
        while self._replies.extensions is None:
            self.receive()
        if self.door.own is not self.has(OWN_MARK):
            raise DoorURL(_NOT_OWN if self.door.own else _OWN, door=self.door.url)
        if self.has("limits@openssh.com"):
            try:
                self.limits = replies.parse_limits(self.run(ask(packets.limits())).extended)
            except (Failed, ProtocolError):
                self.limits = Limits()

    def _advance(self, job: _Job[T]) -> _Outcome[T] | None:
        """Let a job go on until it must wait (None) or ends."""
        try:
            while True:
                answer: Answer | None = None
                if job.held is not None:
                    if not self.room_for(job.held):
                        return None
                    job.tickets.append(self.send(job.held))
                    job.held = None
                elif not job.fresh:
                    answer = _oldest(job.tickets)
                    if answer is None:
                        return None
                job.fresh = False
                step = job.steps.send(answer)
                job.held = None if step is TAKE else step
        except StopIteration as end:
            return _Outcome(end.value)
        except (StorageError, Failed) as error:
            if self.broken:
                raise
            return _Outcome(error)

    def _answered(self, answer: Answer) -> None:
        ticket = self._tickets.get(answer.number)
        if ticket is None or (isinstance(answer, Piece) and len(answer.data) > ticket.asks):
            raise ProtocolError("an answer that nothing was asked for")
        ticket.answers.append(answer)
        arrived = len(answer.data) if isinstance(answer, Piece) else ticket.asks
        if isinstance(answer, Reply) or not answer.left:
            ticket.done = True
            arrived = ticket.asks
            del self._tickets[answer.number]
        ticket.asks -= arrived
        self._asked -= arrived

    def _guarded(self, act: Callable[[], T]) -> T:
        try:
            return act()
        except StorageError as error:
            self.broken = error
            raise


class Lost(Unreachable):
    """A session that was kept from an earlier call turned out to be dead; a new one may work."""


def ask(call: Call) -> Steps[Reply]:
    """Make one request of a job that has none in flight; raises Failed unless it went well."""
    yield call
    return checked((yield TAKE))


def attempt(call: Call) -> Steps[None]:
    """Make a request whose failure changes nothing."""
    try:
        yield from ask(call)
    except Failed:
        return


def checked(answer: Answer | None) -> Reply:
    """Return a reply that is no failure; raises Failed."""
    if not isinstance(answer, Reply):
        raise Failed(Status(Code.BAD_MESSAGE, "faulty: data where none was asked for"))
    if answer.status is not None and answer.status.code != Code.OK:
        raise Failed(answer.status)
    return answer


def _oldest(tickets: deque[Ticket]) -> Answer | None:
    """Take the next answer of the oldest request, None when it is not there yet."""
    answers = tickets[0].answers
    answer = answers.popleft() if answers else None
    if tickets[0].done and not answers:
        tickets.popleft()
    return answer
