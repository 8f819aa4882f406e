"""Many stores at one storage element: as one batch over the best door, what that does not answer over the next door.

A batch costs the far side and us a fraction of as many single calls; its answers are what single calls would have had.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass

from storage_provider.channel import Channel, Put, Stored
from storage_provider.errors import Corrupt, DoorURL, LocalFault, StorageError, Unreachable, Unsupported
from storage_provider.transfer.route import Doors, Route

Outcome = tuple[Put, Stored | StorageError]

# A door that answers put after put is noted as working this often
_NOTE_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A put that goes by the next door, and what the doors before it said."""

    put: Put
    passed: StorageError


def local_fault(put: Put) -> LocalFault | None:
    """Say why a file cannot be stored; None when it is there and long enough."""
    try:
        length = put.path.stat().st_size
    except OSError as error:
        return LocalFault(f"cannot read the file to store: {error.strerror}", key=put.spec.key)
    if length < put.offset + put.spec.size:
        return LocalFault("the file to store is shorter than the object", key=put.spec.key)
    return None


class StoreMany:
    """One batch; used by one thread. `outcomes` yields every put once, in any order.

    `puts` is read on only while a door answers: what was not read when it failed goes by the next door.
    """

    def __init__(
        self, puts: Iterable[Put], doors: Doors, *, route: Route, open_channel: Callable[[str], Channel]
    ) -> None:
        self._source = iter(puts)
        self._doors, self._route, self._open = doors, route, open_channel
        self._faulty: deque[Outcome] = deque()
        self._used_up = False

    def outcomes(self) -> Generator[Outcome, None, None]:
        """Pass over the doors until `puts` are used up, or until a pass in which no door answered anything."""
        answered = True
        while answered and not self._used_up:
            answered = yield from self._pass()
        why = "the storage element has not answered the stores before" if self._doors.urls else "it has no doors"
        while (put := self.take()) is not None:
            yield put, Unreachable(why, key=put.spec.key)
        yield from self._faulty

    def take(self) -> Put | None:
        """Return the next put for a door; one whose file is at fault gets its outcome here."""
        for put in self._source:
            fault = local_fault(put)
            if fault is None:
                return put
            self._faulty.append((put, fault))
        self._used_up = True
        return None

    def _pass(self) -> Generator[Outcome, None, bool]:
        """Try the doors in the route's order; returns whether any answered."""
        waiting: deque[_Waiting] = deque()
        answered = False
        for url in self._route.order(self._doors):
            door = _ByDoor(self, self._doors, url, self._route, waiting)
            yield from door.outcomes(self._open)
            waiting, answered = door.left, answered or door.answered
            while self._faulty:
                yield self._faulty.popleft()
            if self._used_up and not waiting:
                break
        for each in waiting:
            yield each.put, each.passed
        return answered


class _ByDoor:
    """The share of one door: first what the doors before it left (`first`), then new ones while it answers."""

    def __init__(self, batch: StoreMany, doors: Doors, url: str, route: Route, first: deque[_Waiting]) -> None:
        self._batch, self._doors, self._url, self._route = batch, doors, url, route
        self._first = first
        self._passed: dict[int, StorageError] = {}
        self._out: dict[int, tuple[Put, float]] = {}
        self._noted = float("-inf")
        self._open_for_new = True
        self.left: deque[_Waiting] = deque()
        self.answered = False

    def outcomes(self, open_channel: Callable[[str], Channel]) -> Generator[Outcome, None, None]:
        """Yield what is final; `left` then holds the others."""
        began = self._route.clock()
        try:
            channel = open_channel(self._url)
        except DoorURL as error:
            self._route.failed(self._doors, self._url, error.detail, began=began)
            self.left.extend(_Waiting(each.put, _worse(each.passed, error)) for each in self._first)
            return
        lost: StorageError = Unreachable("the door gave no answer to a put", door=self._url)
        stored = channel.put_many(self._feed())
        try:
            for put, result in stored:
                yield from self._judged(put, result)
        except StorageError as error:
            lost = error
        finally:
            if isinstance(stored, Generator):
                stored.close()
        for put, _ in list(self._out.values()):
            yield from self._judged(put, lost)

    def _feed(self) -> Iterator[Put]:
        while self._first:
            waiting = self._first.popleft()
            self._passed[id(waiting.put)] = waiting.passed
            yield self._sent(waiting.put)
        while self._open_for_new and (put := self._batch.take()) is not None:
            yield self._sent(put)

    def _sent(self, put: Put) -> Put:
        self._out[id(put)] = put, self._route.clock()
        return put

    def _judged(self, put: Put, result: Stored | StorageError) -> Iterator[Outcome]:
        """Yield an outcome that is final, else keep the put for the next door; tell the route what it says of this."""
        _, began = self._out.pop(id(put))
        passed = self._passed.pop(id(put), None)
        if isinstance(result, Unreachable | DoorURL | Unsupported):
            self._open_for_new = False
            if not isinstance(result, Unsupported):
                self._route.failed(self._doors, self._url, result.detail, began=began)
            self.left.append(_Waiting(put, _worse(passed, result)))
            return
        if not isinstance(result, LocalFault):
            self._note(began)
        yield put, _checked(put, result)

    def _note(self, began: float) -> None:
        self.answered = True
        now = self._route.clock()
        if now - self._noted >= _NOTE_SECONDS:
            self._noted = now
            self._route.worked(self._doors, self._url, began=began)


def _worse(passed: StorageError | None, error: StorageError) -> StorageError:
    """Choose what to tell when no door takes a put: that one does not answer says most."""
    return error if passed is None or isinstance(error, Unreachable) else passed


def _checked(put: Put, result: Stored | StorageError) -> Stored | StorageError:
    if isinstance(result, Stored) and (result.key, result.size, result.sha256) != (
        put.spec.key,
        put.spec.size,
        put.spec.sha256,
    ):
        return Corrupt("the far side stored something else", key=put.spec.key)
    return result
