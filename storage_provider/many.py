"""Batches over a channel that has no pipelining of its own: several puts at once, gets one after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice

from storage_provider.channel import Channel, Got, Put, Stored, Want
from storage_provider.errors import StorageError, Unreachable

PARALLEL = 4


def put_each(
    channel: Channel, puts: Iterable[Put], *, parallel: int = PARALLEL
) -> Iterator[tuple[Put, Stored | StorageError]]:
    """Store with `parallel` threads, at most twice as many read ahead; the answers come in the order of `puts`."""

    def store(put: Put) -> Stored | StorageError:
        try:
            return channel.put(put.spec, put.path, offset=put.offset, acting_for=put.acting_for)
        except StorageError as error:
            return error

    waiting: deque[tuple[Put, Future[Stored | StorageError]]] = deque()
    source = iter(puts)
    pool = ThreadPoolExecutor(parallel, thread_name_prefix="put")
    try:
        while True:
            for put in islice(source, 2 * parallel - len(waiting)):
                waiting.append((put, pool.submit(store, put)))
            if not waiting:
                return
            put, future = waiting.popleft()
            yield put, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def get_each(channel: Channel, wants: Sequence[Want]) -> Iterator[Iterator[Got]]:
    """Get one after the other; each transfer begins when its blocks are asked for."""
    lost: Unreachable | None = None
    current: Generator[bytes, None, None] | None = None

    def blocks(want: Want) -> Generator[bytes, None, None]:
        nonlocal lost
        if lost is not None:
            raise Unreachable(lost.detail, door=lost.door, key=want.key)
        try:
            entered = channel.get(want.key, offset=want.offset, length=want.length, acting_for=want.acting_for)
            with entered as stream:
                yield from stream
        except Unreachable as error:
            lost = error
            raise

    def each() -> Iterator[Got]:
        nonlocal current
        for want in wants:
            if current is not None:
                current.close()
            current = blocks(want)
            yield Got(want, current)

    try:
        yield each()
    finally:
        if current is not None:
            current.close()
