"""Reports of copies go to the catalog in batches; a file is freed when the catalog knows enough copies of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from catalog.errors import CatalogUnavailable
from catalog.wire import ReplicaChange
from dgis.board import ErrorList
from dgis.copier import Report
from dgis.reports import Reports
from dgis.spool import Spool
from storage_provider.keys import object_key


class Catalog:
    """Counts calls and changes; `down` for so many calls."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.down = 0

    def update_replicas(self, changes: Sequence[ReplicaChange]) -> None:
        if self.down:
            self.down -= 1
            raise CatalogUnavailable("connection refused")
        self.calls.append(len(changes))


def report(number: int, *, done: bool = True) -> Report:
    digest = sha256(str(number).encode()).hexdigest()
    change = ReplicaChange(object_key=object_key(digest), location="d", kind="spool", state="removed")
    return Report((change,), digest, done)


def sent(tmp_path: Path, catalog: Catalog, reports: Sequence[Report]) -> list[str]:
    """Send reports; returns whose objects were then finished."""
    finished: list[str] = []
    queue = Reports(
        Spool(tmp_path / "spool"),
        catalog,
        errors=ErrorList(),
        finished=lambda digest, again: finished.append(digest),
    )
    thread = queue.start()
    for one in reports:
        queue.put(one)
    deadline = time.monotonic() + 8
    while sum(catalog.calls) < len(reports):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    queue.stop()
    thread.join(5)
    assert not thread.is_alive()
    return finished


def test_many_reports_take_few_calls(tmp_path: Path) -> None:
    catalog, reports = Catalog(), [report(n) for n in range(1200)]
    finished = sent(tmp_path, catalog, reports)
    assert len(catalog.calls) <= 6 and max(catalog.calls) <= 500
    assert finished == [one.sha256 for one in reports]


def test_copies_that_are_not_enough_free_nothing(tmp_path: Path) -> None:
    reports = [report(1, done=False), report(2)]
    assert sent(tmp_path, Catalog(), reports) == [reports[1].sha256]


def test_what_the_catalog_did_not_take_is_told_again(tmp_path: Path) -> None:
    catalog = Catalog()
    catalog.down = 2
    reports = [report(n) for n in range(5)]
    assert sent(tmp_path, catalog, reports) == [one.sha256 for one in reports]
    assert catalog.calls == [5]
