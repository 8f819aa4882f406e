"""Gets of a batch over several sessions at once, for far sides that take a data connection per file.

In stream mode each file costs some round trips for its connection; a few sessions hide them from one another.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from queue import Empty, Full, Queue

from storage_provider.channel import Got, Want
from storage_provider.errors import StorageError, Unreachable
from storage_provider.gridftp.client.getting import Getting
from storage_provider.gridftp.client.sessions import Sessions

# Blocks that a session reads ahead of the caller
_BLOCKS = 4
_LOOK_SECONDS = 0.2
_LEAVE_SECONDS = 1.0

_Item = bytes | StorageError | None


class Fanned:
    """The gets of one batch, in order; `close` ends what is under way."""

    def __init__(self, sessions: Sessions, wants: Sequence[Want], lanes: int) -> None:
        self._wants = wants
        self._lanes = [_Lane(sessions, wants[first::lanes]) for first in range(lanes)]
        self._lost: Unreachable | None = None

    def each(self) -> Generator[Got, None, None]:
        """Yield an answer to each want."""
        reading: Generator[bytes, None, None] | None = None
        for number, want in enumerate(self._wants):
            if reading is not None:
                reading.close()
            reading = self._blocks(number)
            yield Got(want, reading)

    def close(self) -> None:
        """End every session's reading."""
        for lane in self._lanes:
            lane.stop()
        for lane in self._lanes:
            lane.join()

    def _blocks(self, number: int) -> Generator[bytes, None, None]:
        lane, turn = self._lanes[number % len(self._lanes)], number // len(self._lanes)
        if self._lost is not None:
            raise Unreachable(self._lost.detail, door=self._lost.door, key=self._wants[number].key)
        try:
            yield from lane.blocks(turn)
        except Unreachable as error:
            self._lost = error
            raise


class _Lane:
    """One session's share of the batch, read by a thread into a short queue of (turn, block, error or end)."""

    def __init__(self, sessions: Sessions, wants: Sequence[Want]) -> None:
        self._sessions = sessions
        self._wants = wants
        self._queue: Queue[tuple[int, _Item]] = Queue(_BLOCKS)
        self._passed = 0
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="gsiftp-get", daemon=True)
        self._thread.start()

    def blocks(self, turn: int) -> Generator[bytes, None, None]:
        """Yield the blocks of one want; those of earlier ones that were left are passed over."""
        self._passed = turn
        while True:
            at, item = self._next()
            if at < turn:
                continue
            if item is None:
                return
            if isinstance(item, StorageError):
                raise item
            yield item

    def stop(self) -> None:
        """Let the thread end at its next block."""
        self._stopped = True

    def join(self) -> None:
        """Wait for the thread, but not for a far side that is silent: it ends by itself when that is given up."""
        self._thread.join(_LEAVE_SECONDS)

    def _next(self) -> tuple[int, _Item]:
        while True:
            try:
                return self._queue.get(timeout=_LOOK_SECONDS)
            except Empty:
                if not self._thread.is_alive() and self._queue.empty():
                    raise Unreachable("the session of this get has ended") from None

    def _run(self) -> None:
        getting = Getting(self._sessions, self._wants)
        gots = getting.each()
        try:
            for turn, got in enumerate(gots):
                if not self._forward(turn, got):
                    return
        finally:
            gots.close()
            getting.close()

    def _forward(self, turn: int, got: Got) -> bool:
        """Hand on one object; says whether there is anybody to hand more to."""
        try:
            for block in got.blocks:
                if not self._put(turn, block):
                    return False
                if turn < self._passed:
                    break
        except StorageError as error:
            return self._put(turn, error)
        return self._put(turn, None)

    def _put(self, turn: int, item: _Item) -> bool:
        while not self._stopped:
            try:
                self._queue.put((turn, item), timeout=_LOOK_SECONDS)
                return True
            except Full:
                continue
        return False
