"""STOR and ESTO: what comes is staged, verified and committed before the 226."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from storage_provider.errors import Corrupt, StorageError
from storage_provider.gridftp.blocks import BlockError
from storage_provider.gridftp.commands import Partial, parse_esto
from storage_provider.gridftp.markers import (
    PERFORMANCE_CODE,
    RESTART_CODE,
    Performance,
    performance_lines,
    restart_line,
)
from storage_provider.gridftp.server.behind import Write, WriteBehind
from storage_provider.gridftp.server.moves import announce, require_channel, require_image
from storage_provider.gridftp.server.receiving import BlockReceiver, receive_stream
from storage_provider.gridftp.server.small import SMALL_BYTES, receive_small
from storage_provider.gridftp.server.stream import StreamError
from storage_provider.paths import parse_path
from storage_provider.wire import SINGLE_PUT_BYTES
from storage_provider.writing import Writing

if TYPE_CHECKING:
    from storage_provider.gridftp.server.session import Session

Handler = Callable[["Session", str], None]
_CUT = "the data connection ended without TLS's farewell"


def _stor(session: Session, argument: str) -> None:
    _receive(session, Partial(argument, 0, None), moved=False)


def _esto(session: Session, argument: str) -> None:
    _receive(session, parse_esto(argument), moved=True)


def _receive(session: Session, part: Partial, *, moved: bool) -> None:
    """Take a file in; `moved`: what comes is moved by the part's offset (ESTO A)."""
    state = session.state
    restart, size = state.restart, state.size
    state.restart = state.size = None
    require_image(session)
    require_channel(session, sending=False)
    if size is not None and moved:
        size += part.offset  # ALLO told the length of this part, which stands for the rest of the file
    path = session.path(part.path)
    ahead = state.mode == "E" and state.sent_ahead
    small = ahead and size is not None and size <= SMALL_BYTES and not moved and restart is None
    try:
        whole = session.tree.whole(path, size) if small and size is not None else None
        if whole is None:
            fresh = not moved and (restart is None or not restart.have)
            writing = session.tree.write(path, size=size, fresh=fresh)
    except StorageError:
        if ahead:
            _swallow(session)
        raise
    if whole is not None:
        receive_small(session, path, whole)
        return
    start = part.offset + (restart.offset if restart is not None and state.mode == "S" else 0)
    try:
        _Arrival(session, writing, path, start, size).run()
    finally:
        writing.close()  # does nothing after a commit


@dataclass(slots=True)
class _Arrival:
    """One file on its way in. `whole`: the sender said where it ends, so that a wrong digest is no cut."""

    session: Session
    writing: Writing
    path: str
    start: int
    size: int | None
    whole: bool = True

    def run(self) -> None:
        """Receive, verify, commit and answer."""
        session = self.session
        watch = session.watch(judge=lambda: session.tree.check(self.path, "write"), mark=self._mark)
        try:
            announce(session)
            with session.scratch() as scratch, WriteBehind(self._write, scratch) as sink:
                if session.state.mode == "E":
                    BlockReceiver(watch, session.data, sink, scratch.raw).run()
                else:
                    self.whole = receive_stream(watch, session.data, sink, scratch.raw, offset=self.start)
            if session.state.mode == "S":
                session.data.reset()
                self._judge_end()
        except BaseException:
            session.data.reset()  # where its connections stand is unknown
            raise
        self._commit()
        session.control.reply(226, "Transfer complete")

    @property
    def _write(self) -> Write:
        if not self.start or self.session.state.mode == "S":
            return self.writing.write
        return lambda offset, data: self.writing.write(offset + self.start, data)

    def _judge_end(self) -> None:
        """Refuse to take a cut for the end of a file: mode S has no other mark (RFC 959 section 3.4.1).

        Some clients say no farewell. Then the size that was announced tells, or else an object's own digest.
        """
        if self.whole or (self.size is None and parse_path(self.path).kind == "object"):
            return
        if self.size is None or not self.writing.received.covers(0, self.size):
            raise StreamError(_CUT)

    def _commit(self) -> None:
        if self.writing.received.total > SINGLE_PUT_BYTES:
            self.session.control.flush()  # verifying it may take a while
        try:
            self.writing.commit()
        except Corrupt:
            if self.whole:
                raise
            raise StreamError(_CUT) from None

    def _mark(self) -> None:
        safe = self.writing.sync()
        control = self.session.control
        control.reply(PERFORMANCE_CODE, *performance_lines(Performance(time.time(), safe.total)))
        control.reply(RESTART_CODE, restart_line(safe))


def _swallow(session: Session) -> None:
    """Take off the kept connections what a client has sent ahead for a file that is refused."""
    watch = session.watch(judge=lambda: None, mark=lambda: None)
    try:
        with session.scratch() as scratch, WriteBehind(lambda _offset, _data: None, scratch) as sink:
            BlockReceiver(watch, session.data, sink, scratch.raw).run()
    except (StreamError, BlockError):
        session.data.reset()


VERBS: dict[str, Handler] = {"STOR": _stor, "ESTO": _esto}
