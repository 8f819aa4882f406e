"""Rows of a query, read in a thread of their own: a C-CANCEL never waits for a catalog that does not answer."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator, Iterator

from catalog.wire import Row

_AHEAD = 512  # rows read before anybody took them


class RowPump:
    """Reads ahead in its own thread. `take` and `stop` may be called from any thread."""

    def __init__(self, rows: Iterator[Row], ended: threading.Semaphore) -> None:
        """Start reading; `ended` is released when the query is closed."""
        self._rows = rows
        self._ended = ended
        self._condition = threading.Condition()
        self._ready: list[Row] = []
        self._done = self._stopped = False
        self._takes = 0
        self._error: BaseException | None = None
        threading.Thread(target=self._read, name="find-rows", daemon=True).start()

    def take(self) -> list[Row]:
        """Return the rows that are there, waiting for the first; none at the end or after `stop`.

        Raises what the query raised, after the rows that came before it.
        """
        with self._condition:
            self._takes += 1
            if self._takes == 2:
                self._condition.notify_all()
            self._condition.wait_for(lambda: self._ready or self._done or self._stopped)
            if self._stopped:
                return []
            taken, self._ready = self._ready, []
            self._condition.notify_all()
            if not taken and self._error is not None:
                raise self._error
            return taken

    def stop(self) -> None:
        """Give up the rest: the query is closed at its next row, or when the catalog's answer times out."""
        with self._condition:
            self._stopped = True
            self._condition.notify_all()

    def _read(self) -> None:
        error: BaseException | None = None
        try:
            for row in self._rows:
                if not self._offer(row):
                    break
        except Exception as found:  # noqa: BLE001  the handler's edge: it is raised again there
            error = found
        finally:
            self._close()
            with self._condition:
                self._done, self._error = True, error
                self._condition.notify_all()
            self._ended.release()

    def _offer(self, row: Row) -> bool:
        with self._condition:
            self._condition.wait_for(lambda: len(self._ready) < _AHEAD or self._stopped)
            self._ready.append(row)
            self._condition.notify_all()
            # The first row is on its way to the peer before more are read: reading is work for the interpreter, and
            # whoever has that keeps it for up to 5 ms, which were half of the time to the first answer
            self._condition.wait_for(lambda: self._takes != 1 or self._stopped)
            return not self._stopped

    def _close(self) -> None:
        if isinstance(self._rows, Generator):
            with contextlib.suppress(Exception):
                self._rows.close()


class Pumps:
    """Starts pumps, a bounded number of them: queries given up may wait for a hanging catalog for a while."""

    def __init__(self, limit: int = 64) -> None:
        """Allow `limit` queries at a time in this process."""
        self._free = threading.BoundedSemaphore(limit)

    def start(self, rows: Iterator[Row]) -> RowPump | None:
        """Start reading `rows`; None when too many queries are under way."""
        return RowPump(rows, self._free) if self._free.acquire(blocking=False) else None
