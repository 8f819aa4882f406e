"""Verbs that move bytes: STOR, ESTO, RETR, ERET, and listings over a data channel."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from storage_provider.errors import Corrupt, Refused, StorageError
from storage_provider.gridftp.blocks import BlockError
from storage_provider.gridftp.commands import CommandError, Partial, Restart, parse_eret, parse_esto
from storage_provider.gridftp.markers import (
    PERFORMANCE_CODE,
    RESTART_CODE,
    Performance,
    performance_lines,
    restart_line,
)
from storage_provider.gridftp.server.channels import require_private
from storage_provider.gridftp.server.names import entry_of
from storage_provider.gridftp.server.receiving import BlockReceiver, Write, receive_stream
from storage_provider.gridftp.server.sending import FileSource, Source, TextSource, send_blocks, send_stream
from storage_provider.gridftp.server.stream import StreamError
from storage_provider.gridftp.server.watch import Aborted
from storage_provider.paths import Place, parse_path
from storage_provider.ranges import Ranges, Span
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


def _retr(session: Session, argument: str) -> None:
    _send_file(session, Partial(argument, 0, None))


def _eret(session: Session, argument: str) -> None:
    _send_file(session, parse_eret(argument))


def _receive(session: Session, part: Partial, *, moved: bool) -> None:
    """Take a file in; `moved`: what comes is moved by the part's offset (ESTO A)."""
    state = session.state
    restart, size = state.restart, state.size
    state.restart = state.size = None
    _require_channel(session, sending=False)
    if size is not None and moved:
        size += part.offset  # ALLO told the length of this part, which stands for the rest of the file
    path = session.path(part.path)
    try:
        writing = session.tree.write(path, size=size, fresh=restart is None and not moved)
    except StorageError:
        if state.mode == "E" and state.sent_ahead:
            _swallow(session)
        raise
    start = part.offset + (restart.offset if restart is not None and state.mode == "S" else 0)
    try:
        _take(session, writing, path, start=start, size=size)
    finally:
        writing.close()  # does nothing after a commit


def _take(session: Session, writing: Writing, path: str, *, start: int, size: int | None) -> None:
    whole = True

    def mark() -> None:
        safe = writing.sync()
        session.control.reply(PERFORMANCE_CODE, *performance_lines(Performance(time.time(), safe.total)))
        session.control.reply(RESTART_CODE, restart_line(safe))

    watch = session.watch(judge=lambda: session.tree.check(path, "write"), mark=mark)
    write: Write = writing.write
    if session.state.mode == "E" and start:

        def write(offset: int, data: memoryview) -> None:
            writing.write(offset + start, data)

    try:
        _announce(session)
        with session.scratch() as scratch:
            if session.state.mode == "E":
                BlockReceiver(watch, session.data, write, scratch).run()
            else:
                whole = receive_stream(watch, session.data, write, scratch, offset=start)
                session.data.reset()
                _judge_end(whole, parse_path(path), writing, size)
    except BaseException:
        session.data.reset()  # where its connections stand is unknown
        raise
    if writing.received.total > SINGLE_PUT_BYTES:
        session.control.flush()  # verifying it may take a while
    try:
        writing.commit()
    except Corrupt:
        if whole:
            raise
        raise StreamError(_CUT) from None
    session.control.reply(226, "Transfer complete")


def _judge_end(whole: bool, place: Place, writing: Writing, size: int | None) -> None:
    """Refuse to take a cut for an end: mode S has no other (RFC 959 section 3.4.1).

    Some clients say no farewell. Then the size that was announced tells, or else an object's own digest.
    """
    if whole or (place.kind == "object" and size is None):
        return
    if size is None or not writing.received.covers(0, size):
        raise StreamError(_CUT)


def _swallow(session: Session) -> None:
    """Take off the kept connections what a client has sent ahead for a file that is refused."""
    watch = session.watch(judge=lambda: None, mark=lambda: None)
    try:
        with session.scratch() as scratch:
            BlockReceiver(watch, session.data, lambda _offset, _data: None, scratch).run()
    except (StreamError, BlockError):
        session.data.reset()


def _send_file(session: Session, part: Partial) -> None:
    restart = session.state.restart
    session.state.restart = session.state.size = None
    _require_channel(session, sending=True)
    path = session.path(part.path)
    fd, size = session.tree.read(path)
    try:
        # Stock clients take the offsets of ERET P's blocks for those within the part
        source = FileSource(fd, _spans(part, size, restart), origin=part.offset)
        try:
            _send(session, source, judge=lambda: session.tree.check(path, "read"))
        finally:
            session.tree.sent(path, source.sent)
    finally:
        os.close(fd)
    session.control.reply(226, "Transfer complete")


def _spans(part: Partial, size: int, restart: Restart | None) -> tuple[Span, ...]:
    """Return what of a file is to be sent: the part asked for, without what the peer has (counted within the part)."""
    stop = size if part.length is None else min(size, part.offset + part.length)
    if part.offset > size or (part.offset == size and size and part.length):
        raise Refused("the range lies outside the object")
    wanted = Ranges.of([(part.offset, stop)])
    for start, end in restart.have if restart is not None else ():
        wanted = wanted.subtract(part.offset + start, part.offset + end)
    return wanted.spans


def _send(session: Session, source: Source, *, judge: Callable[[], None]) -> None:
    watch = session.watch(judge=judge, mark=lambda: None)
    try:
        _announce(session)
        with session.scratch() as scratch:
            if session.state.mode == "E":
                send_blocks(watch, session.data, source, scratch, parallel=session.state.parallel)
            else:
                send_stream(watch, session.data, source, scratch)
                session.data.reset()
    except BaseException:
        session.data.reset()
        raise


def _mlsd(session: Session, argument: str) -> None:
    path = session.path(argument)
    here = entry_of(session.tree.stat(path), name=".", kind="cdir")
    entries = session.tree.entries(path)

    def lines() -> Iterable[str]:
        yield here
        for node in entries:
            yield entry_of(node, name=node.name)

    _list(session, lines())


def _nlst(session: Session, argument: str) -> None:
    _list(session, (node.name for node in session.tree.entries(session.path(_without_options(argument)))))


def _ls(session: Session, argument: str) -> None:
    entries = session.tree.entries(session.path(_without_options(argument)))
    _list(
        session,
        (
            f"{'drwx------' if node.kind == 'dir' else '-rw-------'} 1 dgis dgis {node.size:>12}"
            f" {node.modified:%b %d  %Y} {node.name}"
            for node in entries
        ),
    )


def _without_options(argument: str) -> str:
    return " ".join(word for word in argument.split() if not word.startswith("-"))


def _list(session: Session, lines: Iterable[str]) -> None:
    _require_channel(session, sending=True)
    _send(session, TextSource(lines), judge=lambda: None)
    session.control.reply(226, "Transfer complete")


def _require_channel(session: Session, *, sending: bool) -> None:
    """Refuse what cannot work before any byte moves: clear data, no channel, mode E the wrong way round."""
    require_private(session)
    data, state = session.data, session.state
    if not state.image and not sending:
        raise CommandError(504, "unsupported: send TYPE I, bytes are never changed here")
    if not data.streams and not data.active and data.listener is None:
        raise CommandError(425, "refused: PASV, EPSV, PORT or EPRT first")
    if state.mode != "E":
        return
    # GFD.20 section 3.4.2: in mode E who sends connects. We also let our own clients behind NAT connect and receive
    if not sending and data.active:
        raise CommandError(425, "refused: mode E receives after PASV or EPSV")


def _announce(session: Session) -> None:
    kept = session.state.mode == "E" and bool(session.data.streams)
    session.control.reply(125 if kept else 150, "Data connection is kept" if kept else "Opening data connection")


def refused_transfer(session: Session, error: Exception) -> None:
    """Answer for a transfer that failed on its data channel or was aborted (RFC 959 section 4.1.3)."""
    if isinstance(error, Aborted):
        session.control.reply(426, "cancelled: aborted")
        session.control.reply(226, "ABOR done")
        return
    session.control.reply(426, f"unreachable: {error}")


VERBS: dict[str, Handler] = {
    "STOR": _stor,
    "ESTO": _esto,
    "RETR": _retr,
    "ERET": _eret,
    "MLSD": _mlsd,
    "NLST": _nlst,
    "LIST": _ls,
}
