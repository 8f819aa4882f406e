"""Small objects of one retrieve as they come from storage elements, a lane for each set of copies.

A lane asks for everything that lies at one storage element in one batch and holds what has come, verified, in memory.
It is the quick way only: what it cannot give is `None` here, and brought the thorough way (`sources.Sources.bring`)
instead. A lane whose connection broke is begun again behind that object, and given up after a few times in a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from catalog.wire import Located
from storage_provider.checksum import CHUNK_BYTES
from storage_provider.errors import StorageError, Unreachable
from storage_provider.transfer.engine import Doors, Source

LANE_BYTES = 8 * 1024 * 1024
"""Verified bytes that one lane holds for whoever sends them."""

LANES_AT_ONCE = 32
"""Lanes of all retrieves of a process: what they hold together stays below 400 MiB."""

_MAX_LANES = 4
_MAX_BREAKS = 3
_STALL_SECONDS = 10.0

Blocks = tuple[bytes, ...]


class Batch(Protocol):
    """Objects on their way (`storage_provider.transfer.reading.Reading`)."""

    @property
    def se(self) -> str:
        """The storage element that they come from."""

    @property
    def silent(self) -> float:
        """Seconds without a byte."""

    def take(self, timeout: float) -> Blocks | StorageError | None:
        """Return the next object, why there is none, or None when it has not come in time."""

    def give_up(self) -> None:
        """Close, and leave the door alone for a while: it is too slow."""

    def close(self) -> None:
        """Stop, without waiting."""


Begin = Callable[[Sequence[Source]], Batch | None]
"""Begin a batch at the first storage element of the first source; None when none of them answered lately."""


class Lane:
    """The objects of one storage element, taken in order. For one thread."""

    def __init__(self, begin: Begin, sources: Sequence[Source]) -> None:
        self._begin = begin
        self._sources = sources
        self._next = 0
        self._batch: Batch | None = None
        self._breaks = 0
        self._over = False

    def start(self) -> None:
        """Begin to read ahead."""
        self._ready()

    def take(self, timeout: float) -> tuple[str, Blocks] | StorageError | None:
        """Return (storage element, the next object), why the lane has not got it, or None when it has not come yet."""
        batch = self._ready()
        if batch is None:
            self._next += 1
            return Unreachable("no storage element with a copy answered lately")
        answer = batch.take(timeout)
        if answer is None:
            if batch.silent < _STALL_SECONDS:
                return None
            batch.give_up()
            answer = Unreachable("too slow")
        self._next += 1
        if isinstance(answer, StorageError):
            if isinstance(answer, Unreachable):
                self._broke()
            return answer
        self._breaks = 0
        return batch.se, answer

    def close(self) -> None:
        """Stop reading."""
        self._over = True
        if self._batch is not None:
            self._batch.close()
            self._batch = None

    def _ready(self) -> Batch | None:
        if self._batch is None and not self._over and self._next < len(self._sources):
            self._batch = self._begin(self._sources[self._next :])
            if self._batch is None:
                self._broke()
        return self._batch

    def _broke(self) -> None:
        self._breaks += 1
        self._over = self._over or self._breaks >= _MAX_BREAKS
        if self._batch is not None:
            self._batch.close()
            self._batch = None


class Places(Protocol):
    """How many more lanes there may be in this process (a `threading.BoundedSemaphore`)."""

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        """Take a place; False when there is none."""

    def release(self, n: int = 1) -> None:
        """Give places back."""


class Lanes:
    """The lanes of one retrieve. For one thread."""

    def __init__(self, begin: Begin, wanted: Iterable[tuple[Located, Source | None]], places: Places) -> None:
        """Sort the objects of a plan, in its order, into lanes; a source of None, and a large object, has none.

        A lane for which there is no place is not made: its objects come the thorough way, by the disk.
        """
        self._places = places
        grouped: dict[tuple[Doors, ...], list[Source]] = {}
        keys: dict[str, tuple[Doors, ...]] = {}
        for located, source in wanted:
            if source is None or source.size > CHUNK_BYTES or located.instance_uid in keys:
                continue
            if source.doors in grouped or (len(grouped) < _MAX_LANES and places.acquire(blocking=False)):
                grouped.setdefault(source.doors, []).append(source)
                keys[located.instance_uid] = source.doors
        self._lanes = {doors: Lane(begin, sources) for doors, sources in grouped.items()}
        self._lane_of = {uid: self._lanes[doors] for uid, doors in keys.items()}
        try:
            for lane in self._lanes.values():
                lane.start()
        except BaseException:
            self.close()
            raise

    def pop(self, located: Located) -> Lane | None:
        """Return the lane by which an instance comes, if any; asked once for each, in the order of the plan."""
        return self._lane_of.pop(located.instance_uid, None)

    def close(self) -> None:
        """Stop all. Safe to repeat."""
        lanes, self._lanes = self._lanes, {}
        for lane in lanes.values():
            lane.close()
        if lanes:
            self._places.release(len(lanes))
