"""Many small objects from one door, in the order asked, read ahead and verified in memory.

The quick way beside `Engine.fetch`: one thread, one batch of the channel (requests in flight ahead of the answers), no
file. It judges nobody: an object that it cannot give is fetched in the thorough way, which tries other copies, knows
whom to blame, and tells the route. A batch that lost its connection gives the rest up; begin another one.

Memory holds at most `window` bytes of verified objects that nobody has taken, and the one that is arriving.
"""

from __future__ import annotations

import hashlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from storage_provider.channel import Channel, Got, Want
from storage_provider.errors import Corrupt, Faulty, StorageError, Unreachable

if TYPE_CHECKING:
    from storage_provider.transfer.fetch import Source

Blocks = tuple[bytes, ...]
"""The bytes of one object, cut as they came."""

_POLL_SECONDS = 0.1


class Reading:
    """One batch under way. `take` is called by one thread, for one object after the other; `close` by the same."""

    def __init__(
        self,
        se: str,
        open_channel: Callable[[], Channel],
        sources: Sequence[Source],
        *,
        acting_for: str | None,
        window: int,
        too_slow: Callable[[float], None],
    ) -> None:
        """Ask for `sources` of the channel that `open_channel` gives, one of `se`; `too_slow` hears of `give_up`."""
        self.se = se
        self._open = open_channel
        self._too_slow = too_slow
        self._sources = tuple(sources)
        self._wants = tuple(Want(source.key, acting_for=acting_for) for source in sources)
        self._window = window
        self._arrived: queue.SimpleQueue[Blocks | StorageError] = queue.SimpleQueue()
        self._room = threading.Condition()
        self._held = 0
        self._waiting = False
        self._closed = False
        self._heard_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="reading", daemon=True)

    def start(self) -> Reading:
        """Begin to read."""
        self._thread.start()
        return self

    @property
    def silent(self) -> float:
        """Seconds since something came, or was last kept from coming because the window was full."""
        return 0.0 if self._waiting else time.monotonic() - self._heard_at

    def take(self, timeout: float) -> Blocks | StorageError | None:
        """Return the next object, or why there is none; None when that has not shown within `timeout` seconds.

        An Unreachable is the last answer: nothing comes after it.
        """
        try:
            taken = self._arrived.get(timeout=timeout)
        except queue.Empty:
            return None
        if not isinstance(taken, StorageError):
            with self._room:
                self._held -= sum(map(len, taken))
                if self._waiting and self._held <= self._window // 2:
                    self._room.notify()
        return taken

    def give_up(self) -> None:
        """Close because nothing comes, and say for how long it has not."""
        self._too_slow(self.silent)
        self.close()

    def close(self) -> None:
        """Stop reading, soon; never waits."""
        with self._room:
            self._closed = True
            self._room.notify()

    # --- the reading thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        """Read to the end of the batch; whatever goes wrong is told (this is the edge of the thread)."""
        try:
            with self._open().get_many(self._wants) as gots:
                self._read(gots)
        except StorageError as error:
            self._arrived.put(Unreachable(error.detail, door=error.door, key=error.key))
        except Exception as error:  # noqa: BLE001  whatever a channel does, whoever takes must hear of it
            self._arrived.put(Unreachable(f"{type(error).__name__} while reading"))

    def _read(self, gots: Iterator[Got]) -> None:
        for source, got in zip(self._sources, gots, strict=True):
            answer = self._one(source, got)
            if answer is None:
                return
            self._arrived.put(answer)
            if isinstance(answer, Unreachable) or not self._hold(answer):
                return

    def _one(self, source: Source, got: Got) -> Blocks | StorageError | None:
        """Return one verified object, what is wrong with it, or None when nobody wants it any more."""
        digest, blocks, size = hashlib.sha256(), [], 0
        try:
            for block in got.blocks:
                if self._closed:
                    return None
                self._heard_at = time.monotonic()
                size += len(block)
                if size > source.size:
                    return Faulty("more bytes than the object has", key=source.key)
                digest.update(block)
                blocks.append(block)
        except StorageError as error:
            return error
        if digest.hexdigest() != source.sha256:
            return Corrupt("wrong SHA-256", key=source.key)
        return tuple(blocks)

    def _hold(self, answer: Blocks | StorageError) -> bool:
        """Wait while enough is held; False when nobody wants more."""
        with self._room:
            if not isinstance(answer, StorageError):
                self._held += sum(map(len, answer))
            self._waiting = self._held >= self._window
            while self._waiting and not self._closed:
                self._room.wait()
                self._waiting = self._held > self._window // 2
            self._waiting = False
            self._heard_at = time.monotonic()
            return not self._closed
