"""Bring one stored object to this node's disk: from the own spool while it is there, else from storage elements."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from catalog.errors import CatalogError
from catalog.wire import Located, ReplicaChange, ReplicaRef
from certs.log import get_log
from dgis.disk import ProcessDirectory
from dgis.elements import Elements
from dgis.lanes import LANE_BYTES, LANES_AT_ONCE, Batch, Lanes
from dgis.metrics import Metrics
from dgis.spool import Spool
from storage_provider.errors import NotFound, StorageError
from storage_provider.transfer.engine import Blame, Doors, Fetched, Source

log = get_log()

_MOVING_TRIES, _MOVING_SECONDS = 6, 0.05
_TAINTED = {"corrupt": "suspect", "missing": "suspect"}


class Fetching(Protocol):
    """The part of the transfer engine that reads copies."""

    def fetch(
        self, source: Source, target: Path, *, acting_for: str | None = None, cancelled: Callable[[], bool]
    ) -> Fetched:
        """Write the verified object to `target`. Raises StorageError."""


class Reading(Protocol):
    """The part of the transfer engine that reads small objects ahead."""

    def read_ahead(self, sources: Sequence[Source], *, acting_for: str | None, window: int) -> Batch | None:
        """Begin a batch; None when no storage element with the first one's copies works."""


class SuspectCatalog(Protocol):
    """The part of the catalog client that takes replica states."""

    def update_replicas(self, changes: Sequence[ReplicaChange]) -> None:
        """Change replica states. Raises CatalogError."""


@dataclass(frozen=True, slots=True)
class Brought:
    """A verified local copy of the stored object: the first `size` bytes of `path`, until `path` is removed."""

    path: Path
    source: str


class Sources:
    """Knows where objects may be had. Thread-safe; every file it makes lies in this process's scratch directory."""

    def __init__(
        self,
        spool: Spool,
        engine: Fetching,
        elements: Elements,
        *,
        site: str,
        metrics: Metrics,
        unreachable: Callable[[], tuple[str, ...]] = tuple,
        reading: Reading | None = None,
    ) -> None:
        """`site` is the own one: its storage elements are asked first, `unreachable` ones last.

        With `reading` small objects of one retrieve come in batches, without it each by itself.
        """
        self._unreachable = unreachable
        self._reading = reading
        self._spool, self._engine, self._elements = spool, engine, elements
        self._site, self._metrics = site, metrics
        self._scratch = ProcessDirectory(spool.root / "scratch")
        self._numbers = itertools.count(1)
        self._places = threading.BoundedSemaphore(LANES_AT_ONCE)

    def bring(
        self, located: Located, *, acting_for: str | None, cancelled: Callable[[], bool], patient: bool = False
    ) -> Brought:
        """Return a verified local copy. Raises StorageError, OSError.

        `patient` waits a moment for an object that the worker is just moving inside the spool.
        """
        target = self._target()
        tries = _MOVING_TRIES if patient and not self._doors(located.replicas) else 1
        for attempt in range(tries):
            time.sleep(_MOVING_SECONDS if attempt else 0.0)
            if self._link_spooled(located.object.sha256, located.object.size, target):
                self._metrics.fetches.labels(source="spool").inc()
                return Brought(target, "spool")
        return self._fetch(located, target, acting_for, cancelled)

    def spooled(self, located: Located) -> Brought | None:
        """Return a copy from the own spool at once, None when it is not there. Raises OSError."""
        target = self._target()
        if not self._link_spooled(located.object.sha256, located.object.size, target):
            return None
        self._metrics.fetches.labels(source="spool").inc()
        return Brought(target, "spool")

    def lanes(self, instances: Iterable[Located], *, acting_for: str | None) -> Lanes:
        """Begin to read ahead what is small and lies at storage elements, not in the spool; to be closed."""
        reading = self._reading
        if reading is None:
            return Lanes(_no_batch, (), self._places)

        def begin(sources: Sequence[Source]) -> Batch | None:
            return reading.read_ahead(sources, acting_for=acting_for, window=LANE_BYTES)

        return Lanes(begin, self._elsewhere(instances), self._places)

    def came(self, element: str) -> None:
        """Count an object that came by a lane."""
        self._metrics.fetches.labels(source=element).inc()

    def close(self) -> None:
        """Remove the scratch directory."""
        self._scratch.close()

    def _target(self) -> Path:
        return self._scratch.get().path / f"{next(self._numbers):08d}"

    def _elsewhere(self, instances: Iterable[Located]) -> Iterator[tuple[Located, Source | None]]:
        """Give each instance the source of its verified copies, None to one that is in the spool or has none."""
        doors_of: dict[tuple[str, ...], tuple[Doors, ...]] = {}  # the copies of a study lie at the same few places
        for located in instances:
            ref = located.object
            copies = [r for r in located.replicas if r.kind == "object" and r.state == "verified"]
            waiting = any(r.kind == "spool" for r in located.replicas) and self._spool.find(ref.sha256) is not None
            if waiting or not copies:
                yield located, None
                continue
            places = tuple(r.location for r in copies)
            if places not in doors_of:
                doors_of[places] = self._doors(copies)
            doors = doors_of[places]
            yield located, Source(doors, ref.object_key, ref.size, ref.sha256, ref.chunks) if doors else None

    def _link_spooled(self, sha256: str, size: int, target: Path) -> bool:
        # A hard link: the worker may free its name at any time, the bytes stay as long as ours.
        path = self._spool.find(sha256)
        if path is None:
            return False
        try:
            os.link(path, target)
        except FileNotFoundError:
            return False
        if target.stat().st_size >= size:
            return True
        target.unlink()
        return False

    def _fetch(self, located: Located, target: Path, acting_for: str | None, cancelled: Callable[[], bool]) -> Brought:
        ref = located.object
        doors = self._doors(located.replicas)
        if not doors:
            raise NotFound("no storage element has a verified copy yet", key=ref.object_key)
        source = Source(doors, ref.object_key, ref.size, ref.sha256, ref.chunks)
        try:
            fetched = self._engine.fetch(source, target, acting_for=acting_for, cancelled=cancelled)
        except StorageError:
            target.unlink(missing_ok=True)
            raise
        for name, _ in fetched.served:
            self._metrics.fetches.labels(source=name).inc()
        return Brought(fetched.path, "+".join(name for name, _ in fetched.served))

    def _doors(self, replicas: Sequence[ReplicaRef]) -> tuple[Doors, ...]:
        """Return where to ask: verified before suspect copies, reachable before others, the own site first."""
        sites = {element.name: element.site for element in self._elements.known()}
        away = set(self._unreachable())

        def rank(replica: ReplicaRef) -> tuple[bool, bool, bool, str]:
            foreign = sites.get(replica.location) != self._site
            return replica.state != "verified", replica.location in away, foreign, replica.location

        copies = [r for r in replicas if r.kind == "object" and r.state in ("verified", "suspect")]
        found = (self._elements.doors(replica.location) for replica in sorted(copies, key=rank))
        return tuple(doors for doors in found if doors is not None)


def _no_batch(_: Sequence[Source]) -> None:
    """Read nothing ahead."""


class BlameReporter:
    """Callable for the engine's `on_blame`: a copy that was corrupt or missing becomes `suspect` in the catalog."""

    def __init__(self, catalog: SuspectCatalog) -> None:
        """Report to `catalog`; when it does not answer, the blame stays in the log."""
        self._catalog = catalog

    def __call__(self, blame: Blame) -> None:
        log.warning("bad replica", se=blame.se, object=blame.key, kind=blame.kind, reason=blame.detail[:200])
        if blame.kind not in _TAINTED:
            return
        change = ReplicaChange(object_key=blame.key, location=blame.se, kind="object", state="suspect")
        try:
            self._catalog.update_replicas([change])
        except CatalogError as error:
            log.warning("a bad replica could not be reported", se=blame.se, error=type(error).__name__)
