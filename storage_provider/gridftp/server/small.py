"""Small objects of a batch: received into memory and stored in one go.

Our own clients send them ahead over one connection. With a target, a writer and its locks for each, a second thread in
reserve and the digest in pieces, the machinery cost the server more than the bytes did.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from storage_provider.errors import Refused
from storage_provider.gridftp.blocks import BlockError, Piece
from storage_provider.gridftp.server.moves import announce
from storage_provider.gridftp.server.receiving import BlockReceiver
from storage_provider.targets import Whole

if TYPE_CHECKING:
    from storage_provider.gridftp.server.session import Session

# Fits the buffer of a transfer with a block's header to spare
SMALL_BYTES = 1024 * 1024


class Gathered:
    """Gathers the pieces of one file where they are put: one after the other, at most `size` bytes."""

    def __init__(self, room: memoryview, size: int, key: str) -> None:
        self._room = room
        self._size = size
        self._key = key
        self._at = 0

    @property
    def buffer(self) -> memoryview:
        """See Sink: a header is overwritten by the bytes that it announces."""
        return self._room[self._at :]

    @property
    def data(self) -> memoryview:
        """What has come."""
        return self._room[: self._at]

    def take(self, pieces: Sequence[Piece]) -> None:
        """See Sink; BlockError when they are not in order, which who sends ahead over one connection keeps."""
        for offset, piece in pieces:
            if offset != self._at:
                raise BlockError("what is sent ahead must come in order")
            self._at += len(piece)
            if self._at > self._size:
                raise Refused("more bytes than announced", key=self._key)


def receive_small(session: Session, path: str, whole: Whole) -> None:
    """Receive one object, store it and answer."""
    watch = session.watch(judge=lambda: session.tree.check(path, "write"), mark=lambda: None)
    with session.scratch() as scratch:
        sink = Gathered(scratch.plain, whole.size, whole.key)
        try:
            announce(session)
            BlockReceiver(watch, session.data, sink, scratch.raw).run()
        except BaseException:
            whole.drop()
            session.data.reset()  # where its connections stand is unknown
            raise
        session.tree.take(path, whole, sink.data)
    session.control.reply(226, "Transfer complete")
