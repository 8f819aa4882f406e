"""Writing behind the network: a large file's bytes are hashed and written by a second thread while more come in."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from types import TracebackType

from storage_provider.gridftp.blocks import Piece
from storage_provider.gridftp.server.stream import Scratch

Write = Callable[[int, memoryview], None]
# Smaller files are written at once: handing over costs more than it gains
_DIRECT_BYTES = 4 * 1024 * 1024


class WriteBehind:
    """Takes the pieces of one file, and lends the buffer for the next ones; a context manager.

    Leaving it waits until all is written, and raises what `write` raised, if it did not come out before.
    """

    def __init__(self, write: Write, scratch: Scratch) -> None:
        self._write = write
        self._scratch = scratch
        self._taken = 0
        self._thread: threading.Thread | None = None
        self._jobs: queue.SimpleQueue[Sequence[Piece] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        self._under_way = False
        self.buffer = scratch.plain

    def __enter__(self) -> WriteBehind:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._settle()
        finally:
            if self._thread is not None:
                self._jobs.put(None)
                self._thread.join()

    def take(self, pieces: Sequence[Piece]) -> None:
        """Take over pieces that lie in `buffer`, which is another one afterwards; raises what `write` raises."""
        if self._taken < _DIRECT_BYTES:
            for offset, piece in pieces:
                self._taken += len(piece)
                self._write(offset, piece)
            return
        self._settle()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="gsiftp-write", daemon=True)
            self._thread.start()
        self._jobs.put(pieces)
        self._under_way = True
        self.buffer = self._scratch.spare if self.buffer is self._scratch.plain else self._scratch.plain

    def _settle(self) -> None:
        """Wait until what was handed over is written."""
        if not self._under_way:
            return
        self._under_way = False
        failed = self._done.get()
        if failed is not None:
            raise failed

    def _work(self) -> None:
        while (pieces := self._jobs.get()) is not None:
            try:
                for offset, piece in pieces:
                    self._write(offset, piece)
            except Exception as error:  # noqa: BLE001  it is the session's, whatever it is
                self._done.put(error)
            else:
                self._done.put(None)
