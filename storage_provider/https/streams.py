"""Object bytes through the event loop: batches in, blocks out; disk work in threads, one hop for a small object.

Nothing is held but the current batch (and, going out, the next block): memory does not grow with the object.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from storage_provider.errors import Refused

BATCH_BYTES = 1024 * 1024
BLOCK_BYTES = 512 * 1024

T = TypeVar("T")


class Threads:
    """A bounded pool for disk work; used from one event loop. Half the cost of concurrent.futures and asyncio's wraps.

    A thread is started while none is idle and there are fewer than `count`.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._threads: list[threading.Thread] = []
        self._todo: SimpleQueue[_Job | None] = SimpleQueue()
        self._under_way = 0

    async def run(self, work: Callable[[], T]) -> T:
        """Run in a thread; when the request is cancelled meanwhile, still wait for the thread to end."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._under_way += 1
        if self._under_way > len(self._threads) < self._count:
            self._start()
        self._todo.put(_Job(work, future, loop))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            raise
        finally:
            self._under_way -= 1

    def close(self) -> None:
        """Wait for what is running."""
        for _ in self._threads:
            self._todo.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []

    def _start(self) -> None:
        thread = threading.Thread(target=self._serve, name=f"disk_{len(self._threads)}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _serve(self) -> None:
        while (job := self._todo.get()) is not None:
            job.do()
            del job  # what it holds must not outlive the request


class _Job:
    """One piece of work and the future in the loop that waits for it."""

    __slots__ = ("_future", "_loop", "_work")

    def __init__(
        self, work: Callable[[], object], future: asyncio.Future[Any], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._work = work
        self._future = future
        self._loop = loop

    def do(self) -> None:
        """Do it and tell the loop; a loop that is closed has nobody who waits."""
        try:
            outcome = self._work()
        except BaseException as error:  # noqa: BLE001  # handed to who waits
            tell = partial(self._future.set_exception, error)
        else:
            tell = partial(self._future.set_result, outcome)
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(tell)


class Batches:
    """The body of a request in batches of about BATCH_BYTES; exactly `size` bytes or an error."""

    def __init__(self, receive: Receive, size: int) -> None:
        self.size = size
        self._receive = receive
        self._left = size
        self._more = True

    @property
    def ended(self) -> bool:
        """True when every announced byte was handed out."""
        return self._left == 0

    async def next(self) -> list[bytes]:
        """Return the next bytes; Refused when the body is not as long as announced, ClientDisconnect when it is cut."""
        batch: list[bytes] = []
        filled = 0
        while filled < BATCH_BYTES and self._left and self._more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            self._more = message.get("more_body", False)
            body = message.get("body", b"")
            if body:
                batch.append(body)
                filled += len(body)
                self._left -= len(body)
        if self._left < 0 or (self._left and not self._more):
            raise Refused("the body is not as long as announced")
        return batch


class FileSlice(Response):
    """A span of an open file as the body; owns the descriptor. Reads one block ahead; stops when the client leaves."""

    def __init__(
        self, threads: Threads, fd: int, start: int, stop: int, *, status_code: int, headers: dict[str, str]
    ) -> None:
        super().__init__(None, status_code, {**headers, "content-length": str(stop - start)})
        self._threads = threads
        self._fd = fd
        self._start = start
        self._stop = stop

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await self._send_blocks(send, gone)
        finally:
            gone.cancel()
            os.close(self._fd)

    async def _send_blocks(self, send: Send, gone: asyncio.Future[None]) -> None:
        position = self._start
        following = await self._read(position)
        while following and not gone.done():
            block, position = following, position + len(following)
            ahead = asyncio.ensure_future(self._read(position))
            message: Message = {"type": "http.response.body", "body": block, "more_body": position < self._stop}
            try:
                await send(message)
            finally:
                following = await ahead
        if position < self._stop and not gone.done():
            raise OSError("the object became shorter while it was read")

    async def _read(self, position: int) -> bytes:
        length = min(BLOCK_BYTES, self._stop - position)
        return await self._threads.run(lambda: os.pread(self._fd, length, position)) if length else b""


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
