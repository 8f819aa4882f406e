"""Retrieve instances in order, reading ahead: the next ones are on their way while one is being sent.

An instance comes in one of three ways: from the own spool by a hard link, at once; from a storage element by a lane
(`dgis.lanes`), into memory, when it is small; else, and when those failed, the thorough way: in a thread of its own,
into a file of this process's scratch directory.
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from catalog.errors import CatalogError, CatalogForbidden
from catalog.wire import Located, LocateRequest
from certs.log import get_log
from dgis.elements import Elements
from dgis.errors import RetrieveForbidden, RetrieveUnavailable
from dgis.lanes import Blocks, Lane, Lanes
from dgis.metrics import Metrics
from dgis.part10 import Part10Error, data_set_offset
from dgis.sources import Brought, Sources
from storage_provider.errors import StorageError

log = get_log()

_POLL_SECONDS = 0.1
_ELEMENTS_SECONDS = 15.0
_META_BYTES = 4096  # the file meta information that we write is shorter (part10.file_meta)


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
class Held:
    """One instance in memory: `data_length` bytes of data set from `data_offset` of `content`, laid end to end."""

    located: Located
    content: Blocks
    data_offset: int
    data_length: int

    def release(self) -> None:
        """Do nothing; the memory goes with this."""


@dataclass(frozen=True, slots=True)
class Failed:
    """One instance that no source could give; `reason` names no patient."""

    located: Located
    reason: str


@dataclass(frozen=True, slots=True)
class ReadAhead:
    """How far to read ahead into files: objects, bytes (one larger object is always allowed), transfers at once."""

    objects: int = 8
    bytes: int = 64 * 1024 * 1024
    parallel: int = 4


Result = Fetched | Held | Failed


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
        """Return every matching instance that may be had, in order.

        Raises RetrieveUnavailable when the catalog did not answer, RetrieveForbidden when it can be none.
        """
        try:
            self._elements.refresh_if_older(_ELEMENTS_SECONDS)
            found = self._locate(request, acting_for)
        except CatalogForbidden as error:
            raise RetrieveForbidden(str(error)) from error
        except CatalogError as error:
            log.warning("locate failed", error=type(error).__name__)
            raise RetrieveUnavailable("the catalog did not say where the instances are") from error
        return Plan(tuple(sorted(found, key=_order)))

    def fetch(
        self, plan: Planned, *, acting_for: str | None = None, cancelled: Callable[[], bool] = never
    ) -> Generator[Result, None, None]:
        """Yield each instance of the plan once, in its order; the caller releases what it got.

        One that cannot be had is a Failed and never ends the rest. After `cancelled` says so nothing more is yielded,
        within a tenth of a second if nothing else waits; closing the iterator stops the transfers as well.
        """
        with (
            contextlib.closing(self._sources.lanes(plan.instances, acting_for=acting_for)) as lanes,
            _Ahead(self._ahead, lambda located, stopped: self._one(located, acting_for, stopped)) as ahead,
        ):
            waiting = deque(plan.instances)
            while waiting or ahead.pending:
                while waiting and ahead.has_room(waiting[0].object.size):
                    self._begin(waiting.popleft(), lanes, ahead)
                result = self._first(ahead, cancelled)
                if result is None:
                    return
                yield result

    def _begin(self, located: Located, lanes: Lanes, ahead: _Ahead) -> None:
        """Put one instance in line by the quickest way that there is."""
        lane = lanes.pop(located)
        if lane is not None:
            ahead.by_lane(located, lane)
            return
        try:
            brought = self._sources.spooled(located)
            if brought is not None:
                ahead.at_hand(self._opened(located, brought))
                return
        except (OSError, Part10Error) as error:
            log.info("not had from the spool", object=located.object.object_key, error=type(error).__name__)
        ahead.by_thread(located)

    def _first(self, ahead: _Ahead, cancelled: Callable[[], bool]) -> Result | None:
        """Wait for the first in line; None when the caller cancelled."""
        while not cancelled():
            way = ahead.pending[0].way
            if isinstance(way, Future):
                with contextlib.suppress(TimeoutError):
                    result: Result = way.result(0 if way.done() else _POLL_SECONDS)
                    ahead.pending.popleft()
                    return result
            elif isinstance(way, Lane):
                answer = way.take(_POLL_SECONDS)
                if isinstance(answer, tuple):
                    return self._held(ahead.pending.popleft().located, *answer)
                if answer is not None:
                    log.info("fetched apart", error=type(answer).__name__, reason=answer.detail)
                    ahead.by_thread_after_all()
            else:
                ahead.pending.popleft()
                return way
        return None

    def _held(self, located: Located, element: str, content: Blocks) -> Held | Failed:
        self._sources.came(element)
        head = content[0] if content and len(content[0]) >= _META_BYTES else b"".join(content)
        try:
            offset, _ = data_set_offset(io.BytesIO(head))
        except Part10Error as error:
            self._metrics.fetch_failures.inc()
            return Failed(located, f"Part10Error: {error}"[:300])
        return Held(located, content, offset, located.object.size - offset)

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


@dataclass(slots=True)
class _InLine:
    """One instance that was begun: at hand, coming by a lane, or being fetched; `size` is what it takes on disk."""

    located: Located
    size: int
    way: Fetched | Lane | Future[Fetched | Failed]


class _Ahead:
    """What is under way for one retrieve, in order. Used by one thread; thorough transfers run in a pool."""

    def __init__(self, limits: ReadAhead, fetch: Callable[[Located, Callable[[], bool]], Fetched | Failed]) -> None:
        self._limits = limits
        self._fetch = fetch
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(limits.parallel, thread_name_prefix="fetch")
        self.pending: deque[_InLine] = deque()

    def __enter__(self) -> _Ahead:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for one in self.pending:
            if isinstance(one.way, Fetched):
                one.way.release()
            elif isinstance(one.way, Future) and not one.way.cancel():
                one.way.add_done_callback(_discard)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def has_room(self, size: int) -> bool:
        if not self.pending:
            return True
        taken = sum(one.size for one in self.pending)
        return len(self.pending) < self._limits.objects and taken + size <= self._limits.bytes

    def at_hand(self, fetched: Fetched) -> None:
        self.pending.append(_InLine(fetched.located, 0, fetched))

    def by_lane(self, located: Located, lane: Lane) -> None:
        self.pending.append(_InLine(located, 0, lane))

    def by_thread(self, located: Located) -> None:
        self.pending.append(_InLine(located, located.object.size, self._submitted(located)))

    def by_thread_after_all(self) -> None:
        """Fetch the first in line, which did not come by its lane."""
        self.pending[0].way = self._submitted(self.pending[0].located)

    def _submitted(self, located: Located) -> Future[Fetched | Failed]:
        return self._pool.submit(self._fetch, located, self._stop.is_set)


def _discard(future: Future[Fetched | Failed]) -> None:
    """Remove what arrived after nobody wanted it any more."""
    if not future.cancelled() and isinstance(result := future.result(), Fetched):
        result.release()


def _order(located: Located) -> tuple[str, str, bool, int, str]:
    number = located.instance_number
    return located.study_uid, located.series_uid, number is None, number or 0, located.instance_uid
