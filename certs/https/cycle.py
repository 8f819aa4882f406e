"""One request and its answer under uvicorn, with fewer copies and fewer writes than uvicorn's own.

Body bytes go to the application as they were received, uncopied. A short answer of known length leaves in one write,
head and all: each write is a TLS record, a system call and, at the other end, a wake-up (together some 40 us).
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

if TYPE_CHECKING:
    from uvicorn._types import ASGIReceiveEvent, ASGISendEvent

Block = bytes | memoryview

# Body bytes that may wait for the application before the connection is read no further
MOST_WAITING = 256 * 1024
# What leaves at once: asyncio encrypts it whole, and copies what the socket does not take
_PIECE_BYTES = 128 * 1024
# Up to this much (a TLS record), an answer's head and body are one write
_JOINED_BYTES = 16 * 1024


class Corked:
    """The transport as one cycle sees it: keeps an answer's head until its body comes."""

    __slots__ = ("_corked", "_kept", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._corked = False
        self._kept = b""

    def cork(self) -> None:
        """Keep what is written next."""
        self._corked = True

    def uncork(self) -> None:
        """Write what was kept."""
        self._corked = False
        if self._kept:
            kept, self._kept = self._kept, b""
            self._transport.write(kept)

    def write(self, data: Block) -> None:
        """Write in pieces, or keep while corked."""
        if self._corked:
            self._corked, self._kept = False, bytes(data)
            return
        if len(self._kept) + len(data) <= _JOINED_BYTES:
            data, self._kept = self._kept + data, b""
        self.uncork()
        if len(data) <= _PIECE_BYTES:
            self._transport.write(data)
            return
        view = memoryview(data)
        for start in range(0, len(view), _PIECE_BYTES):
            self._transport.write(view[start : start + _PIECE_BYTES])

    def close(self) -> None:
        """Write what was kept, then close."""
        self.uncork()
        self._transport.close()

    def is_closing(self) -> bool:
        """See asyncio.Transport."""
        return self._transport.is_closing()


class Cycle(RequestResponseCycle):
    """uvicorn's cycle with a queue of blocks for a body, and a cork in its transport."""

    def __init__(self, *, transport: asyncio.Transport, **rest: Any) -> None:
        self._corked = Corked(transport)
        super().__init__(transport=self._corked, **rest)  # type: ignore[arg-type]  # all that it uses of one
        self._blocks: deque[Block] = deque()
        self._waiting = 0

    def feed(self, block: Block) -> bool:
        """Take body bytes, which must not change any more; says whether the application has enough to do."""
        self._blocks.append(block)
        self._waiting += len(block)
        self.message_event.set()
        return self._waiting > MOST_WAITING

    async def send(self, message: ASGISendEvent) -> None:
        """See ASGI."""
        if self.response_started:
            await super().send(message)
            if self.response_complete:
                self._corked.uncork()
            return
        self._corked.cork()
        await super().send(message)
        if self.chunked_encoding is not False:
            self._corked.uncork()  # such a body may be long in coming

    async def receive(self) -> ASGIReceiveEvent:
        """See ASGI; a body's bytes may be a memoryview."""
        if self.waiting_for_100_continue and not self.transport.is_closing():
            self._corked.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.waiting_for_100_continue = False
        if not self.disconnected and not self.response_complete:
            if not self._blocks:
                self.flow.resume_reading()
            await self.message_event.wait()
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        block = self._blocks.popleft() if self._blocks else b""
        self._waiting -= len(block)
        if not self._blocks:
            self.message_event.clear()
        more = bool(self._blocks) or self.more_body
        return {"type": "http.request", "body": block, "more_body": more}  # type: ignore[typeddict-item]
