"""Many objects through an HTTPS door from one thread: several requests under way, each on a line of its own.

Threads that share an interpreter cost more than they bring here: while the far side verifies one small object, the
next one is sent; while one is received, the next are on their way. Large objects get threads.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from certs.https.lines import Exchange
from storage_provider.channel import Got, Put, Stored, Want
from storage_provider.checksum import READ_BYTES
from storage_provider.errors import LocalFault, StorageError, Unreachable
from storage_provider.https.asking import STALE_SECONDS, Ask, Asker
from storage_provider.https.putting import Putting, opened, stored_of
from storage_provider.wire import StoredReply

# Measured with 512 KiB on two cores: two lines leave the server waiting for a sync, more than four bring nothing
LANES = 4
# Objects under way beside the one that is being received
AHEAD = 2
BLOCK_BYTES = 512 * 1024

Outcome = Stored | StorageError


@dataclass(slots=True)
class _Flight:
    """A put under way: its request was sent at `began`."""

    put: Put
    ask: Ask
    exchange: Exchange
    began: float


class PutMany:
    """One batch of puts; `outcomes` in the order of the puts."""

    def __init__(self, asker: Asker) -> None:
        self._asker = asker
        self._room = memoryview(bytearray(READ_BYTES))  # one request is sent at a time
        self._pool: ThreadPoolExecutor | None = None
        self._waiting: deque[tuple[Put, _Flight | Future[Outcome] | StorageError]] = deque()

    def outcomes(self, puts: Iterable[Put]) -> Generator[tuple[Put, Outcome], None, None]:
        """Store each; at most LANES are under way, and no more read ahead."""
        try:
            for put in puts:
                self._waiting.append((put, self._begun(put)))
                if len(self._waiting) >= LANES:
                    yield self._next()
            while self._waiting:
                yield self._next()
        finally:
            for _, under_way in self._waiting:
                if isinstance(under_way, _Flight):
                    under_way.exchange.close()
            if self._pool is not None:
                self._pool.shutdown(wait=True, cancel_futures=True)

    def _begun(self, put: Put) -> _Flight | Future[Outcome] | StorageError:
        if put.spec.size > READ_BYTES:
            self._pool = self._pool or ThreadPoolExecutor(LANES, thread_name_prefix="put")
            return self._pool.submit(self._alone, put)
        try:
            body = self._read(put)
            ask = Ask(
                "PUT",
                f"{self._asker.door}/objects/{put.spec.key}",
                put.spec.key,
                data=body,
                acting_for=put.acting_for,
                patience=self._asker.timeouts.write,
            )
            began = time.monotonic()
            exchange = self._asker.begin(ask)
            return _Flight(put, ask, exchange, began)
        except StorageError as error:
            return error

    def _read(self, put: Put) -> memoryview:
        room = self._room[: put.spec.size]
        with opened(put.path, put.spec.key) as fd:
            try:
                count = os.preadv(fd, [room], put.offset) if room else 0
            except OSError as error:
                raise LocalFault(f"cannot read the file to store: {error.strerror}", key=put.spec.key) from error
        if count != len(room):
            raise LocalFault(f"the file ends {len(room) - count} bytes early", key=put.spec.key)
        return room

    def _next(self) -> tuple[Put, Outcome]:
        put, under_way = self._waiting.popleft()
        if isinstance(under_way, StorageError):
            return put, under_way
        if isinstance(under_way, Future):
            return put, under_way.result()
        return put, self._landed(under_way)

    def _landed(self, flight: _Flight) -> Outcome:
        """Wait for the answer; a line that turned out to be gone at once is not the door's fault."""
        asker = self._asker
        try:
            try:
                asker.answer(flight.exchange, flight.ask)
                with asker.said(flight.ask.key):
                    raw = flight.exchange.whole()
            finally:
                flight.exchange.close()
            return stored_of(asker.parsed(StoredReply, raw, flight.ask.key))
        except Unreachable as error:
            if not flight.exchange.kept or time.monotonic() - flight.began > STALE_SECONDS:
                return error
        except StorageError as error:
            return error
        return self._alone(flight.put)

    def _alone(self, put: Put) -> Outcome:
        try:
            with opened(put.path, put.spec.key) as fd:
                return Putting(self._asker, put.spec, fd, put.offset, put.acting_for).run()
        except StorageError as error:
            return error


@contextmanager
def get_ahead(
    asker: Asker, wants: Sequence[Want], ask_for: Callable[[Want], Ask]
) -> Generator[Iterator[Got], None, None]:
    """Get in the order asked, with AHEAD requests under way beside the one that is received."""
    batch = _GetMany(asker, wants, ask_for)
    try:
        yield batch.each()
    finally:
        batch.close()


class _GetMany:
    def __init__(self, asker: Asker, wants: Sequence[Want], ask_for: Callable[[Want], Ask]) -> None:
        self._asker = asker
        self._wants = iter(wants)
        self._ask_for = ask_for
        self._ahead: deque[tuple[Want, Ask | None, Exchange | StorageError]] = deque()
        self._lost: Unreachable | None = None
        self._current: Generator[bytes, None, None] | None = None

    def each(self) -> Iterator[Got]:
        while True:
            self._leave_current()
            self._fill()
            if not self._ahead:
                return
            want, ask, begun = self._ahead.popleft()
            self._current = self._blocks(want, ask, begun)
            next(self._current)  # to where its exchange is closed at the end, whatever becomes of it
            yield Got(want, self._current)

    def close(self) -> None:
        self._leave_current()
        for _, _, begun in self._ahead:
            if isinstance(begun, Exchange):
                begun.close()

    def _leave_current(self) -> None:
        if self._current is not None:
            self._current.close()

    def _fill(self) -> None:
        while len(self._ahead) <= AHEAD and (want := next(self._wants, None)) is not None:
            try:
                if self._lost is not None:
                    raise Unreachable(self._lost.detail, door=self._lost.door, key=want.key)
                ask = self._ask_for(want)
                self._ahead.append((want, ask, self._asker.begin(ask)))
            except StorageError as error:
                self._ahead.append((want, None, error))

    def _blocks(self, want: Want, ask: Ask | None, begun: Exchange | StorageError) -> Generator[bytes, None, None]:
        try:
            yield b""
            if isinstance(begun, StorageError):
                raise begun
            assert ask is not None
            with self._asker.answer_of(begun, ask) as exchange:
                yield from blocks_of(self._asker, exchange, want.key, want.length)
        except Unreachable as error:
            self._lost = self._lost or error
            raise
        finally:
            if isinstance(begun, Exchange):
                begun.close()


def blocks_of(asker: Asker, exchange: Exchange, key: str, length: int | None) -> Generator[bytes, None, None]:
    """Yield what comes: a full block, or what has come within half a second; Unreachable when it ends early."""
    declared = exchange.headers.get("content-length", "")
    expected = int(declared) if declared.isdigit() else length
    if expected is None or (length is not None and expected > length):
        raise Unreachable("the answer is not of the length that was asked for", door=asker.door, key=key)
    blocks = exchange.blocks(BLOCK_BYTES)
    while True:
        with asker.said(key):
            block = next(blocks, None)
        if block is None:
            return
        yield block
