"""A pull (third-party copy) as a stream of NDJSON markers: bytes so far once a second, then what became of it.

The markers tell the asker that something moves, so it needs no long timeout; when the asker leaves, the pull stops.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial

from storage_provider.channel import ObjectSpec, Stored
from storage_provider.errors import StorageError
from storage_provider.https.streams import Threads
from storage_provider.service import Area, StorageService, stored_reply
from storage_provider.wire import PullEvent, PullRequest

MARKER_SECONDS = 1.0


class Pull:
    """One pull under way."""

    def __init__(self, service: StorageService, area: Area, spec: ObjectSpec, request: PullRequest) -> None:
        self._received = 0
        self._left = False
        self._work: Callable[[], Stored] = partial(
            service.pull,
            area,
            spec,
            request.sources,
            permit=request.permit,
            cancelled=self._is_left,
            progress=self._note,
        )

    def _is_left(self) -> bool:
        return self._left

    def _note(self, received: int) -> None:
        self._received = received

    async def events(self, threads: Threads) -> AsyncIterator[bytes]:
        """Run the pull and yield its markers; the last line has `stored` or `error`."""
        work = asyncio.ensure_future(threads.run(self._work))
        try:
            while not (await asyncio.wait([work], timeout=MARKER_SECONDS))[0]:
                yield _line(PullEvent(received=self._received))
            yield _line(self._outcome(work))
        finally:
            self._left = True
            if not work.done():
                work.add_done_callback(_forget)

    def _outcome(self, work: asyncio.Future[Stored]) -> PullEvent:
        error = work.exception()
        if error is None:
            return PullEvent(received=self._received, stored=stored_reply(work.result()))
        if isinstance(error, StorageError):
            return PullEvent(received=self._received, error=error.problem_type, detail=str(error))
        raise error


def _line(event: PullEvent) -> bytes:
    return event.model_dump_json(exclude_none=True).encode() + b"\n"


def _forget(work: asyncio.Future[Stored]) -> None:
    """Take the outcome of a pull that nobody waits for any more, so that asyncio does not complain of it."""
    if not work.cancelled():
        work.exception()
