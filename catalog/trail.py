"""What the catalog records in the audit trail, and on whose behalf.

A gateway's own work (copies, repairs) is not recorded; what it registers, finds and locates for somebody is.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

from catalog.access import actor_of
from catalog.errors import CatalogError, CatalogForbidden
from catalog.wire import Located
from certs.audit.event import OK, REFUSED, Event, Kind, Outcome
from certs.audit.journal import Journal
from certs.peer import GATEWAY, Peer

_MOST_STUDIES = 500  # of one record
_DETAIL = 1000


class Trail:
    """Thread-safe. Without a journal nothing is recorded (tests, tools)."""

    def __init__(self, journal: Journal | None) -> None:
        self._journal = journal

    def check(self) -> str:
        """Say that all is recorded (a health check)."""
        return "nothing is recorded" if self._journal is None else self._journal.check()

    def note(
        self, kind: Kind, peer: Peer, *, studies: Sequence[str] = (), count: int | None = None, detail: str = "",
        outcome: Outcome = OK, wait: bool = False,
    ) -> None:
        """Record what a caller does; with `wait`, before it is done. Raises AuditUnavailable."""
        if self._journal is None or not _for_somebody(peer):
            return
        listed = sorted(set(studies))
        for start in range(0, max(len(listed), 1), _MOST_STUDIES):
            self._journal.record(Event(
                kind, datetime.now(UTC), actor_of(peer), str(peer.dn), outcome,
                tuple(listed[start : start + _MOST_STUDIES]), count, detail[:_DETAIL]), wait=wait)

    @contextmanager
    def deciding(self, peer: Peer, what: str) -> Iterator[None]:
        """Record what is refused inside. Raises AuditUnavailable when nothing could be recorded, and must be."""
        if self._journal is not None and _for_somebody(peer):
            self._journal.ready()
        try:
            yield
        except CatalogForbidden as error:
            self.note("refused", peer, outcome=REFUSED, detail=f"{what}: {error}")
            raise

    @contextmanager
    def doing(self, kind: Kind, peer: Peer, *, studies: Sequence[str] = (), count: int | None = None,
              detail: str = "") -> Iterator[None]:
        """Record a change before it is done, on disk, and that it was not done when it fails."""
        self.note(kind, peer, studies=studies, count=count, detail=detail, wait=True)
        try:
            yield
        except CatalogError as error:
            self.note(kind, peer, studies=studies, outcome=REFUSED, detail=f"was not done: {error}")
            raise

    def located(self, found: Iterator[Located], peer: Peer) -> Iterator[Located]:
        """Pass instances on, and record at the end which studies they were of: where they are is how they are had."""
        studies: set[str] = set()
        count = 0
        try:
            for one in found:
                studies.add(one.study_uid)
                count += 1
                yield one
        finally:
            self.note("access", peer, studies=tuple(studies), count=count)


def _for_somebody(peer: Peer) -> bool:
    return GATEWAY not in peer.roles or peer.acting_for is not None
