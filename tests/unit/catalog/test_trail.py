"""What the catalog records: every decision for somebody, refusals too, and nothing of a gateway's own work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from catalog.access import Access
from catalog.errors import CatalogForbidden, CatalogRefused
from catalog.metrics import CatalogMetrics
from catalog.policyservice import PolicyService
from catalog.service import CatalogService
from catalog.store import Store
from catalog.trail import Trail
from catalog.wire import BreakGlassRequest, LabelRequest, LocateRequest, Match, PolicyPut, Query, RetireRequest
from certs.audit.event import Event
from certs.audit.journal import AuditUnavailable, Journal
from certs.audit.message import Source
from certs.audit.trail import entries, verify
from certs.credential import Credential
from certs.peer import GATEWAY, OPERATOR, USER
from tests.helpers.catalogrecords import batch, peer_of, record
from tests.helpers.grid import wait_until

OP, ANN, VIEWER = "/O=Test Grid/CN=op", "/O=Test Grid/CN=ann", "ae:VIEWER@a"
POLICY = f"""
vo = "x"
[groups]
operators = ["{OP}"]
readers = ["{ANN}", "{VIEWER}"]
[[grant]]
name = "read"
to = ["readers"]
roles = ["viewer"]
[[grant]]
name = "operate"
to = ["operators"]
roles = ["operator"]
[break_glass]
to = ["readers"]
"""


@pytest.fixture(params=["sqlite"])
def new_url(tmp_path: Path) -> Callable[..., str]:
    return lambda **_: f"sqlite:///{tmp_path / 'c.sqlite'}"


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal(tmp_path / "audit", Source("catalog", "a"), when_full="refuse")
    yield made
    made.close()


@pytest.fixture
def recorded(store: Store, journal: Journal) -> tuple[CatalogService, PolicyService]:
    trail, access = Trail(journal), Access(store)
    signer = Credential(Path("none"), Path("none"))
    service = CatalogService(store, signer, CatalogMetrics(CollectorRegistry()), access, trail)
    return service, PolicyService(store, access, trail)


def _records(journal: Journal) -> bool:
    try:
        journal.ready()
    except AuditUnavailable:
        return False
    return True


def said(tmp_path: Path, journal: Journal) -> list[Event]:
    """Everything so far: what is recorded last is waited for."""
    journal.record(Event("start", datetime.now(UTC), "end"), wait=True)
    assert not verify(tmp_path / "audit").breaks
    return [entry.event for entry in entries(tmp_path / "audit")][:-1]


def test_every_decision_for_somebody_is_recorded(
    recorded: tuple[CatalogService, PolicyService], tmp_path: Path, journal: Journal
) -> None:
    service, rights = recorded
    viewer, op, ann = peer_of(GATEWAY, acting_for=VIEWER), peer_of(OPERATOR, name=OP), peer_of(USER, name=ANN)
    service.register(batch(record("1.1", study="1"), record("2.1", study="2")), peer_of(GATEWAY, acting_for="ae:CT@a"))
    rights.put(op, PolicyPut(text=POLICY))
    name = Match(keyword="PatientName", op="eq", values=("Doe^Jane",))
    list(service.query(Query(level="STUDY", keys=("StudyInstanceUID",), matches=(name,)), viewer))
    list(service.locate(LocateRequest(studies=("1", "2")), viewer))
    list(service.locate(LocateRequest(studies=("1",)), peer_of(GATEWAY)))
    with pytest.raises(CatalogForbidden):
        service.query(Query(level="STUDY"), op)
    rights.label(op, LabelRequest(study_uid="1", add=("x",)))
    rights.break_glass(ann, BreakGlassRequest(study_uid="1", reason="nobody else is here"))
    service.retire(RetireRequest(instances=("2.1",)), op)
    with pytest.raises(CatalogRefused):
        rights.put(op, PolicyPut(text=POLICY.replace('"x"', '"y"'), follows=9))

    found = said(tmp_path, journal)
    assert [(event.kind, event.actor, event.outcome) for event in found] == [
        ("store", "ae:CT@a", 0),
        ("policy", OP, 0),
        ("query", VIEWER, 0),
        ("access", VIEWER, 0),
        ("refused", OP, 8),
        ("security", OP, 0),
        ("emergency", ANN, 0),
        ("delete", OP, 0),
        ("policy", OP, 0),
        ("policy", OP, 8),
    ]
    assert found[0].studies == found[3].studies == ("1", "2") and found[3].count == 2
    assert found[3].peer == "/O=Test Grid/CN=caller"
    assert "nobody else is here" in found[6].detail and "no grant gives it find" in found[4].detail
    assert b"Doe" not in b"".join(path.read_bytes() for path in (tmp_path / "audit").glob("*.jsonl"))


def test_nothing_is_done_that_cannot_be_recorded(
    recorded: tuple[CatalogService, PolicyService],
    store: Store,
    tmp_path: Path,
    journal: Journal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service, rights = recorded
    op = peer_of(OPERATOR, name=OP)
    service.register(batch(record("1.1", study="1")), peer_of(GATEWAY, acting_for="ae:CT@a"))
    said(tmp_path, journal)

    def full(_descriptor: int, _data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("certs.audit.journal.os.write", full)
    with pytest.raises(AuditUnavailable):
        rights.put(op, PolicyPut(text=POLICY))
    with pytest.raises(AuditUnavailable):
        service.retire(RetireRequest(instances=("1.1",)), op)
    with pytest.raises(AuditUnavailable):
        service.query(Query(level="STUDY"), op)
    assert store.policy_version() == 0 and store.instance_count() == 1
    monkeypatch.undo()
    wait_until(lambda: _records(journal), seconds=5, what="recording again")
    service.retire(RetireRequest(instances=("1.1",)), op)
    assert [event.kind for event in said(tmp_path, journal)][-1] == "delete"
