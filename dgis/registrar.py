"""The first half of the worker: what lies in the spool gets into the catalog, in batches, in order of arrival."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from catalog.errors import CatalogError, CatalogRefused
from catalog.wire import InstanceRecord, RawHeader, RegisterBatch, RegisterResult, StorageElement
from certs.log import get_log
from dgis.backoff import Backoff
from dgis.board import ErrorList
from dgis.intake import Intake
from dgis.metrics import Metrics
from dgis.record import SpoolRecord
from dgis.spool import Spool, SpoolEntry
from storage_provider.keys import object_key

log = get_log()

_REFUSALS_IN_A_ROW = 24


class RegisterCatalog(Protocol):
    """The part of the catalog client that registers."""

    def register(self, batch: RegisterBatch, *, acting_for: str | None = None) -> Sequence[RegisterResult]:
        """Register a batch, one result per record in its order; idempotent. Raises CatalogError."""

    def storage_elements(self) -> Sequence[StorageElement]:
        """Return all storage elements: a question that shows whether the catalog answers at all."""


OnRegistered = Callable[[SpoolRecord, tuple[str, ...]], None]
"""Called with the record and the storage elements that already hold a verified copy of exactly these bytes."""


@dataclass(frozen=True, slots=True)
class _Answered:
    entry: SpoolEntry
    result: RegisterResult


class Registrar:
    """Registers inbox entries and, after a restart, what was left in registered/. Used by one thread only.

    An entry leaves the inbox only after the catalog's answer; registering twice is harmless, so a restart at any
    instant loses nothing and doubles nothing.
    """

    def __init__(
        self,
        spool: Spool,
        catalog: RegisterCatalog,
        *,
        node: str,
        site: str = "",
        metrics: Metrics,
        errors: ErrorList,
        on_registered: OnRegistered,
    ) -> None:
        """`node` is this DGIS's name, the location of the `spooled` copies; `site` is where it stands."""
        self._spool, self._catalog, self._node, self._site = spool, catalog, node, site
        self._metrics, self._errors, self._on_registered = metrics, errors, on_registered
        self._intake = Intake(spool, errors)
        self.backoff = Backoff()
        self.last_error: str | None = None

    def adopt(self, paths: Iterable[Path]) -> None:
        """Register these objects of registered/ again, behind the inbox: only the catalog knows how far they got."""
        self._intake.adopt(paths)

    def turn(self) -> int:
        """Register one batch; returns how many entries were dealt with, 0 when backing off. Never raises."""
        if not self.backoff.due:
            return 0
        entries: list[SpoolEntry] = []
        try:
            entries = self._intake.next_batch()
            for group in _groups(entries):
                self._register(group)
        except Exception as error:  # noqa: BLE001 - the edge of the worker loop: whatever it was, the entries stay
            self._failed(entries, error)
            return 0
        return len(entries)

    def _failed(self, entries: list[SpoolEntry], error: Exception) -> None:
        self.backoff.failed()
        self.last_error = f"{type(error).__name__}: {error}"[:300]
        self._errors.add("register", self.last_error)
        log.error("registering failed", error=type(error).__name__, reason=str(error)[:200])
        self._intake.failed(entries, outage=self._outage())

    def _outage(self) -> bool:
        try:
            self._catalog.storage_elements()
        except CatalogError:
            return True
        return False

    def _register(self, entries: list[SpoolEntry]) -> None:
        answered = self._ask(entries)
        self.backoff.worked()
        self.last_error = None
        self._intake.worked(entries)
        for one in answered:
            try:
                self._settle(one.entry, one.result)
            except OSError as error:
                # Registered, but it cannot be moved: it stays where it is and is registered again, which is harmless.
                self._intake.set_trouble(one.entry.name)
                self._intake.keep(one.entry)
                self._errors.add("spool", f"an entry cannot be moved: {error.strerror or error}")
                log.error("spool entry cannot be moved", object=one.entry.record.sha256, reason=error.strerror)

    def _ask(self, entries: list[SpoolEntry]) -> list[_Answered]:
        """Register a group; if the service refuses it as a whole, halve it until the culprits stand alone."""
        answered: list[_Answered] = []
        refused: list[tuple[SpoolEntry, CatalogRefused]] = []
        waiting, refusals = [entries], 0
        while waiting:
            part = waiting.pop()
            try:
                answered.extend(self._call(part))
                refusals = 0
            except CatalogRefused as error:
                refusals += 1
                if refusals >= _REFUSALS_IN_A_ROW:
                    raise
                if len(part) == 1:
                    refused.append((part[0], error))
                else:
                    middle = len(part) // 2
                    waiting += [part[middle:], part[:middle]]
        if refused and not answered:
            # Nothing at all was accepted: that is the service or our own rights, not the objects.
            raise refused[0][1]
        for entry, refusal in refused:
            self._reject(entry, f"refused by the catalog: {refusal}")
        return answered

    def _call(self, entries: list[SpoolEntry]) -> Iterator[_Answered]:
        instances = tuple(to_instance(entry.record, node=self._node) for entry in entries)
        batch = RegisterBatch(instances=instances, site=self._site)
        results = list(self._catalog.register(batch, acting_for=entries[0].record.acting_for))
        if len(results) != len(entries):
            raise CatalogError("the catalog answered another number of records than it was given", permanent=False)
        return map(_Answered, entries, results)

    def _settle(self, entry: SpoolEntry, result: RegisterResult) -> None:
        self._metrics.registered.labels(outcome=result.outcome).inc()
        if result.outcome == "rejected":
            self._reject(entry, result.reason or "no reason given")
            return
        if result.outcome == "conflict":
            self._metrics.conflicts.labels(kind=result.kind or "content").inc()
            log.warning("conflict", kind=result.kind, object=entry.record.sha256, conflict=result.conflict_id)
        mine = object_key(entry.record.sha256)
        if result.outcome == "identical" and result.object_key != mine:
            # The same data set is kept under other stored bytes, which are on their own way to safety.
            self._spool.discard(entry)
            return
        with contextlib.suppress(FileNotFoundError):  # freed meanwhile, or the content moved with an equal entry
            self._spool.mark_registered(entry)
        self._on_registered(entry.record, result.verified_at if result.object_key == mine else ())

    def _reject(self, entry: SpoolEntry, reason: str) -> None:
        self._spool.reject(entry, reason)
        self._errors.add("register", f"an object was rejected and is kept in rejected/: {reason}")
        log.error("rejected", object=entry.record.sha256)


def to_instance(record: SpoolRecord, *, node: str) -> InstanceRecord:
    """Return what the catalog is told of a spooled object."""
    return InstanceRecord(
        instance_uid=record.instance_uid,
        sop_class_uid=record.sop_class_uid,
        transfer_syntax_uid=record.transfer_syntax_uid,
        data_sha256=record.data_sha256,
        sha256=record.sha256,
        size=record.size,
        chunks=record.chunks,
        object_key=object_key(record.sha256),
        header=RawHeader(
            syntax=record.header_syntax, complete=record.header_complete, zstd=record.header_zstd.encode()
        ),
        pixel_offset=record.pixel_offset,
        received_at=record.received_at,
        source_ae=record.source_ae,
        called_ae=record.called_ae,
        issuer=record.issuer,
        spooled_at=node,
    )


def _groups(entries: list[SpoolEntry]) -> Iterator[list[SpoolEntry]]:
    """Split a batch by whom it is registered for, keeping the order of arrival within each UID.

    A call speaks for one party only. When a UID comes again for another party, all that came before goes first: which
    of two copies is kept is decided by arrival.
    """
    groups: dict[str | None, list[SpoolEntry]] = {}
    owner: dict[str, str | None] = {}
    for entry in entries:
        party, uid = entry.record.acting_for, entry.record.instance_uid
        if owner.get(uid, party) != party:
            yield from groups.values()
            groups, owner = {}, {}
        owner[uid] = party
        groups.setdefault(party, []).append(entry)
    yield from groups.values()
