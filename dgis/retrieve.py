"""Retrieve instances in order, reading ahead: the next ones are on their way while one is being sent."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from catalog.errors import CatalogError
from catalog.wire import Located, LocateRequest
from certs.log import get_log
from dgis.elements import Elements
from dgis.errors import RetrieveUnavailable
from dgis.metrics import Metrics
from dgis.part10 import Part10Error, data_set_offset
from dgis.sources import Brought, Sources
from storage_provider.errors import StorageError

log = get_log()

_POLL_SECONDS = 0.1
_ELEMENTS_SECONDS = 15.0


class Answer(Iterator[Located], Protocol):
    """An answer as it arrives."""

    def close(self) -> None:
        """Give up the rest; harmless after the end."""


class LocateCatalog(Protocol):
    """The part of the catalog client that locates instances."""

    def locate(self, request: LocateRequest, *, acting_for: str | None = None) -> Answer:
        """Stream the matching instances. Raises CatalogError before or between them."""


class Planned(Protocol):
    """Anything that lists instances to bring, in the order wanted."""

    @property
    def instances(self) -> tuple[Located, ...]:
        """The instances."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a retrieve gives: by study, series and InstanceNumber."""

    instances: tuple[Located, ...]


@dataclass(frozen=True, slots=True)
class Fetched:
    """One instance on this node's disk: `data_length` bytes of data set from `data_offset` of `path`.

    Other bytes may stand before and after them. Call `release` when it is not needed any more.
    """

    located: Located
    path: Path
    data_offset: int
    data_length: int

    def release(self) -> None:
        """Remove the file; safe to call twice."""
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Failed:
    """One instance that no source could give; `reason` names no patient."""

    located: Located
    reason: str


@dataclass(frozen=True, slots=True)
class ReadAhead:
    """How far to read ahead: objects, bytes (one larger object is always allowed), transfers at once."""

    objects: int = 8
    bytes: int = 64 * 1024 * 1024
    parallel: int = 4


def never() -> bool:
    """Be the default of `cancelled`."""
    return False


class Retrieve:
    """The C-MOVE and C-GET use case. Thread-safe; each `fetch` has its own bounded set of threads."""

    def __init__(
        self,
        catalog: LocateCatalog,
        sources: Sources,
        elements: Elements,
        metrics: Metrics,
        *,
        ahead: ReadAhead | None = None,
    ) -> None:
        """`elements` is this process's view, shared with `sources`."""
        self._catalog, self._sources, self._elements = catalog, sources, elements
        self._metrics, self._ahead = metrics, ahead or ReadAhead()

    def plan(self, request: LocateRequest, *, acting_for: str | None = None) -> Plan:
        """Return every matching instance, in order. Raises RetrieveUnavailable when the catalog did not answer."""
        try:
            self._elements.refresh_if_older(_ELEMENTS_SECONDS)
            found = self._locate(request, acting_for)
        except CatalogError as error:
            log.warning("locate failed", error=type(error).__name__)
            raise RetrieveUnavailable("the catalog did not say where the instances are") from error
        return Plan(tuple(sorted(found, key=_order)))

    def fetch(
        self, plan: Planned, *, acting_for: str | None = None, cancelled: Callable[[], bool] = never
    ) -> Generator[Fetched | Failed, None, None]:
        """Yield each instance of the plan once, in its order; the caller releases what it got.

        One that cannot be had is a Failed and never ends the rest. After `cancelled` says so nothing more is yielded,
        within a tenth of a second if nothing else waits; closing the iterator stops the transfers as well.
        """
        with _Ahead(self._ahead) as ahead:
            waiting = deque(plan.instances)
            while waiting or ahead.pending:
                while waiting and ahead.has_room(waiting[0].object.size):
                    located = waiting.popleft()
                    ahead.start(located.object.size, partial(self._one, located, acting_for, ahead.stopped))
                if not ahead.await_first(cancelled):
                    return
                yield ahead.take()

    def _one(self, located: Located, acting_for: str | None, stopped: Callable[[], bool]) -> Fetched | Failed:
        try:
            return self._opened(*self._bring(located, acting_for, stopped))
        except (StorageError, CatalogError, OSError, Part10Error) as error:
            reason = f"{type(error).__name__}: {getattr(error, 'detail', None) or error}"[:300]
        except Exception as error:  # noqa: BLE001 - the edge of a fetch thread: one instance never ends the rest
            log.error("fetch failed", object=located.object.object_key, error=type(error).__name__)
            reason = f"internal error ({type(error).__name__})"
        if not stopped():
            self._metrics.fetch_failures.inc()
            log.warning("fetch failed", object=located.object.object_key, reason=reason)
        return Failed(located, reason)

    def _bring(self, located: Located, acting_for: str | None, stopped: Callable[[], bool]) -> tuple[Located, Brought]:
        try:
            return located, self._sources.bring(located, acting_for=acting_for, cancelled=stopped)
        except (StorageError, OSError) as error:
            if stopped():
                raise
            log.info("located anew", object=located.object.object_key, error=type(error).__name__)
        # Its copies may have moved since the plan was made: ask once more where they are.
        self._elements.refresh_if_older(1.0)
        request = LocateRequest(instances=(located.instance_uid,))
        again = next(iter(self._locate(request, acting_for)), located)
        return again, self._sources.bring(again, acting_for=acting_for, cancelled=stopped, patient=True)

    def _locate(self, request: LocateRequest, acting_for: str | None) -> list[Located]:
        with contextlib.closing(self._catalog.locate(request, acting_for=acting_for)) as found:
            return list(found)

    @staticmethod
    def _opened(located: Located, brought: Brought) -> Fetched:
        try:
            with brought.path.open("rb") as stream:
                offset, _ = data_set_offset(stream)
        except (OSError, Part10Error):
            brought.path.unlink(missing_ok=True)
            raise
        return Fetched(located, brought.path, offset, located.object.size - offset)


class _Ahead:
    """The transfers under way for one retrieve, in order. Used by one thread; the transfers run in a pool."""

    def __init__(self, limits: ReadAhead) -> None:
        self._limits = limits
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(limits.parallel, thread_name_prefix="fetch")
        self.pending: deque[tuple[int, Future[Fetched | Failed]]] = deque()

    def __enter__(self) -> _Ahead:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for _, future in self.pending:
            if not future.cancel():
                future.add_done_callback(_discard)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def stopped(self) -> bool:
        return self._stop.is_set()

    def has_room(self, size: int) -> bool:
        if not self.pending:
            return True
        taken = sum(size for size, _ in self.pending)
        return len(self.pending) < self._limits.objects and taken + size <= self._limits.bytes

    def start(self, size: int, work: Callable[[], Fetched | Failed]) -> None:
        self.pending.append((size, self._pool.submit(work)))

    def await_first(self, cancelled: Callable[[], bool]) -> bool:
        """Wait for the first transfer; False when the caller cancelled."""
        while not cancelled():
            if wait_for([self.pending[0][1]], timeout=_POLL_SECONDS).done:
                return True
        return False

    def take(self) -> Fetched | Failed:
        return self.pending.popleft()[1].result()


def _discard(future: Future[Fetched | Failed]) -> None:
    """Remove what arrived after nobody wanted it any more."""
    if not future.cancelled() and isinstance(result := future.result(), Fetched):
        result.release()


def _order(located: Located) -> tuple[str, str, bool, int, str]:
    number = located.instance_number
    return located.study_uid, located.series_uid, number is None, number or 0, located.instance_uid
