"""RETR, ERET, and listings over a data channel."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from storage_provider.errors import Refused
from storage_provider.gridftp.commands import Partial, Restart, parse_eret
from storage_provider.gridftp.server.moves import announce, require_channel, require_image
from storage_provider.gridftp.server.names import entry_of
from storage_provider.gridftp.server.sending import FileSource, Source, TextSource, send_blocks, send_stream
from storage_provider.ranges import Ranges, Span

if TYPE_CHECKING:
    from storage_provider.gridftp.server.session import Session

Handler = Callable[["Session", str], None]


def _retr(session: Session, argument: str) -> None:
    _send_file(session, Partial(argument, 0, None))


def _eret(session: Session, argument: str) -> None:
    _send_file(session, parse_eret(argument))


def _send_file(session: Session, part: Partial) -> None:
    restart = session.state.restart
    session.state.restart = session.state.size = None
    require_image(session)
    require_channel(session, sending=True)
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
        announce(session)
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
    require_channel(session, sending=True)
    _send(session, TextSource(lines), judge=lambda: None)
    session.control.reply(226, "Transfer complete")


VERBS: dict[str, Handler] = {
    "RETR": _retr,
    "ERET": _eret,
    "MLSD": _mlsd,
    "NLST": _nlst,
    "LIST": _ls,
}
