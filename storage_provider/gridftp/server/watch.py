"""What every running transfer waits on beside its own connections: the control connection, new ones, the clock."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterable

from storage_provider.gridftp.blocks import BlockError
from storage_provider.gridftp.server.control import Control, SessionOver
from storage_provider.gridftp.server.datapath import DataPath
from storage_provider.gridftp.server.stream import Stream, StreamError

HANDSHAKE_SECONDS = 10.0
MARKER_SECONDS = 5.0
_TICK_SECONDS = 1.0


class Aborted(Exception):
    """The peer asked to stop the transfer (ABOR)."""


class Watch:
    """Waits for one transfer's connections; ends it when it is aborted, idle, refused by now, or left alone.

    ``judge`` raises Denied when the party may not go on; ``mark`` sends markers. Both are called each second at most.
    """

    def __init__(
        self, control: Control, data: DataPath, *, idle: float, judge: Callable[[], None], mark: Callable[[], None]
    ) -> None:
        self._control = control
        self._data = data
        self._idle = idle
        self._judge = judge
        self._mark = mark
        self._moved = self._ticked = self._marked = time.monotonic()

    def moved(self) -> None:
        """Note that bytes moved."""
        self._moved = time.monotonic()

    def tick(self) -> None:
        """Do what a second's passing asks for; cheap in between."""
        now = time.monotonic()
        if now - self._ticked < _TICK_SECONDS:
            return
        self._ticked = now
        self._judge()
        for stream in [each for each in self._data.streams if not each.secure]:
            if now - stream.born > HANDSHAKE_SECONDS:
                self._data.drop(stream)
        if now - self._moved > self._idle:
            raise StreamError(f"no data for {self._idle:.0f} s")
        if now - self._marked >= MARKER_SECONDS:
            self._marked = now
            self._mark()
        self._control.flush()
        self._look_at_control()

    def wait(self, readers: Iterable[Stream], writers: Iterable[Stream] = ()) -> Stream | None:
        """Wait until something can go on, at most to the next tick; returns a new connection when there is one."""
        self._control.flush()
        waiting = select.poll()
        for stream in readers:
            waiting.register(stream, select.POLLIN)
        for stream in writers:
            waiting.register(stream, select.POLLIN | select.POLLOUT if not stream.secure else select.POLLOUT)
        if not self._control.crowded:
            waiting.register(self._control, select.POLLIN)
        listener = self._data.listener
        if listener is not None:
            waiting.register(listener, select.POLLIN)
        ready = {fd for fd, _ in waiting.poll(_TICK_SECONDS * 1000)}
        if self._control.fileno() in ready:
            self._look_at_control()
        self.tick()
        return self._data.accept() if listener is not None and listener.fileno() in ready else None

    def shake(self, stream: Stream) -> bool:
        """Go on with a handshake and check who is there; a connection that fails is dropped. Says whether it stands."""
        try:
            if not stream.shake():
                return False
            self._data.check(stream)
        except (StreamError, BlockError):
            self._data.drop(stream)
            if self._data.active:
                raise
            return False
        self.moved()
        return True

    def _look_at_control(self) -> None:
        if not self._control.crowded:
            self._control.take()
        if self._control.take_abort():
            raise Aborted
        if self._control.gone:
            raise SessionOver("closed")
