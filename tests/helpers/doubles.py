"""A catalog and a transfer engine in memory that keep the contracts of the real ones; for unit tests of dgis only."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from catalog.errors import CatalogIncomplete, CatalogRefused, CatalogUnavailable, UnknownSubject
from catalog.wire import (
    Conflict,
    InstanceRecord,
    Located,
    LocateRequest,
    ObjectRef,
    Query,
    RegisterBatch,
    RegisterResult,
    ReplicaChange,
    ReplicaRef,
    Row,
    StorageElement,
)
from storage_provider.channel import ObjectSpec, Put, Space, Stored
from storage_provider.errors import Cancelled, NoSpace, NotFound, StorageError, Unreachable
from storage_provider.transfer.engine import Fetched, Source
from storage_provider.transfer.route import DoorHealth, Doors


def element(name: str, site: str = "a", state: str = "active") -> StorageElement:
    """One storage element with a door."""
    return StorageElement.model_validate(
        {"name": name, "site": site, "doors": (f"https://{name}/areas/main",), "state": state}
    )


class MemoryCatalog:
    """First copy kept, other content quarantined, replicas by object key; `down` makes every call fail."""

    def __init__(self, *elements: StorageElement) -> None:
        self.elements = list(elements)
        self.instances: dict[str, InstanceRecord] = {}
        self.objects: dict[str, InstanceRecord] = {}
        self.replicas: dict[tuple[str, str, str], ReplicaRef] = {}
        self.batches: list[tuple[str | None, int]] = []
        self.down = False
        self.refuse: Callable[[InstanceRecord], bool] = lambda record: False
        self.reject: Callable[[InstanceRecord], bool] = lambda record: False
        self.open_conflicts: list[Conflict] = []
        self.rows: list[Row] = []
        self.cut_after: int | None = None
        self.queries: list[Query] = []
        self.locates = 0
        self.before_locate: Callable[[], None] = lambda: None
        self._lock = threading.Lock()

    def register(self, batch: RegisterBatch, *, acting_for: str | None = None) -> list[RegisterResult]:
        self._answer()
        if any(self.refuse(record) for record in batch.instances):
            raise CatalogRefused("no")
        with self._lock:
            self.batches.append((acting_for, len(batch.instances)))
            return [self._register(record) for record in batch.instances]

    def update_replicas(self, changes: Sequence[ReplicaChange]) -> None:
        self._answer()
        with self._lock:
            for change in changes:
                if change.object_key not in self.objects:
                    raise UnknownSubject("no such object")
            for change in changes:
                where = (change.object_key, change.kind, change.location)
                if change.state == "removed":
                    self.replicas.pop(where, None)
                else:
                    self.replicas[where] = ReplicaRef(
                        location=change.location,
                        kind=change.kind,
                        state=change.state,
                        verified_at=change.verified_at,
                    )

    def storage_elements(self) -> list[StorageElement]:
        self._answer()
        return list(self.elements)

    def query(self, query: Query, *, acting_for: str | None = None) -> Generator[Row, None, None]:
        self._answer()
        self.queries.append(query)
        for count, row in enumerate(self.rows):
            if count == self.cut_after:
                raise CatalogIncomplete("cut")
            yield row

    def locate(self, request: LocateRequest, *, acting_for: str | None = None) -> Generator[Located, None, None]:
        self._answer()
        self.locates += 1
        self.before_locate()
        wanted = frozenset(request.instances)
        copies: dict[str, list[ReplicaRef]] = {}
        for (key, _, _), ref in list(self.replicas.items()):
            copies.setdefault(key, []).append(ref)
        for number, (uid, record) in enumerate(list(self.instances.items())):
            if wanted and uid not in wanted:
                continue
            if number == self.cut_after:
                raise CatalogIncomplete("cut")
            yield self._located(record, tuple(copies.get(record.object_key, ())))

    def conflicts(self, state: str | None = "open", *, limit: int = 1000) -> list[Conflict]:
        self._answer()
        return self.open_conflicts[:limit]

    def verified(self, key: str) -> set[str]:
        """The storage elements with a verified copy."""
        with self._lock:
            return {
                place
                for (of, kind, place), r in self.replicas.items()
                if (of, kind, r.state) == (key, "object", "verified")
            }

    def spooled(self) -> set[str]:
        """The keys of the objects that only a spool is said to hold."""
        with self._lock:
            return {of for (of, kind, _), _r in self.replicas.items() if kind == "spool"}

    def _answer(self) -> None:
        if self.down:
            raise CatalogUnavailable("connection refused")

    def _located(self, record: InstanceRecord, copies: tuple[ReplicaRef, ...]) -> Located:
        return Located(
            instance_uid=record.instance_uid,
            series_uid="1.2.3.2",
            study_uid="1.2.3.1",
            sop_class_uid=record.sop_class_uid,
            transfer_syntax_uid=record.transfer_syntax_uid,
            instance_number=int(record.instance_uid.rsplit(".", 1)[-1]),
            object=ObjectRef(
                object_key=record.object_key,
                size=record.size,
                sha256=record.sha256,
                data_sha256=record.data_sha256,
                chunks=record.chunks,
                pixel_offset=record.pixel_offset,
            ),
            replicas=copies,
        )

    def _register(self, record: InstanceRecord) -> RegisterResult:
        if self.reject(record):
            return RegisterResult(
                instance_uid=record.instance_uid, object_key=record.object_key, outcome="rejected", reason="odd"
            )
        kept = self.instances.setdefault(record.instance_uid, record)
        same = (kept.data_sha256, kept.transfer_syntax_uid) == (record.data_sha256, record.transfer_syntax_uid)
        fresh = record.object_key not in self.objects
        if fresh:
            self.objects[record.object_key] = record
        key = record.object_key
        at = tuple(sorted(p for (of, kind, p), r in self.replicas.items() if of == key and kind == "object"))
        self.replicas[key, "spool", record.spooled_at] = ReplicaRef(
            location=record.spooled_at, kind="spool", state="spooled"
        )
        outcome = "conflict" if not same else "registered" if fresh else "identical"
        kind = ("content" if kept.data_sha256 != record.data_sha256 else "syntax") if not same else None
        return RegisterResult.model_validate(
            {
                "instance_uid": record.instance_uid,
                "object_key": key,
                "outcome": outcome,
                "kind": kind,
                "conflict_id": "c1" if not same else None,
                "verified_replicas": len(at),
                "verified_at": at,
            }
        )


class MemoryEngine:
    """Storage elements as dictionaries; `down` and `full` name those that fail; `slow` seconds per transfer."""

    def __init__(self) -> None:
        self.stored: dict[str, dict[str, bytes]] = {}
        self.down: set[str] = set()
        self.full: set[str] = set()
        self.slow = 0.0
        self.stores = 0
        self.running = 0
        self.most_running = 0
        self._lock = threading.Lock()

    def store(self, spec: ObjectSpec, path: Path, doors: Doors, *, acting_for: str | None = None) -> Stored:
        with self._lock:
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        try:
            time.sleep(self.slow)
            if doors.se in self.down:
                raise Unreachable("connection refused", door=doors.urls[0])
            if doors.se in self.full:
                raise NoSpace("quota", door=doors.urls[0])
            content = path.read_bytes()[: spec.size]
            assert hashlib.sha256(content).hexdigest() == spec.sha256, "what is stored must be the object alone"
            with self._lock:
                self.stores += 1
                self.stored.setdefault(doors.se, {})[spec.key] = content
            return Stored(spec.key, spec.size, spec.sha256, datetime.now(UTC))
        finally:
            with self._lock:
                self.running -= 1

    def store_many(self, puts: Iterable[Put], doors: Doors) -> Iterator[tuple[Put, Stored | StorageError]]:
        for put in puts:
            try:
                yield put, self.store(put.spec, put.path, doors, acting_for=put.acting_for)
            except StorageError as error:
                yield put, error

    def fetch(
        self,
        source: Source,
        target: Path,
        *,
        acting_for: str | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Fetched:
        with self._lock:
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        try:
            deadline = time.monotonic() + self.slow
            while time.monotonic() < deadline:
                if cancelled():
                    raise Cancelled("stopped")
                time.sleep(0.01)
            return self._bring(source, target)
        finally:
            with self._lock:
                self.running -= 1

    def space(self, doors: Doors) -> Space:
        if doors.se in self.down:
            raise Unreachable("connection refused", door=doors.urls[0])
        return Space(total=1000, free=600, used=400)

    def health(self, doors: Doors) -> tuple[DoorHealth, ...]:
        well = doors.se not in self.down
        return tuple(DoorHealth(url, well, well and url == doors.urls[0]) for url in doors.urls)

    def _bring(self, source: Source, target: Path) -> Fetched:
        missing = False
        for doors in source.doors:
            if doors.se in self.down:
                continue
            content = self.stored.get(doors.se, {}).get(source.key)
            if content is None:
                missing = True
                continue
            target.write_bytes(content)
            return Fetched(target, source.size, source.sha256, ((doors.se, source.size),), ())
        if missing:
            raise NotFound("not here", key=source.key)
        raise Unreachable("nobody answers", key=source.key)
