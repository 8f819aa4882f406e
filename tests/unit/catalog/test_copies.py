"""Locate, replica changes, the change feed, sites and storage elements."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from catalog.errors import CatalogRefused, UnknownSubject, UnsupportedQuery
from catalog.prepare import prepare
from catalog.service import CatalogService
from catalog.store import Store
from catalog.wire import (
    InstanceRecord,
    LocateRequest,
    PatientKey,
    Query,
    ReplicaChange,
    ReplicaChanges,
    ReplicaReply,
    Site,
    StorageElement,
)
from tests.helpers.catalogrecords import batch, peer_of, record

MOMENT = datetime(2026, 11, 20, 10, 30, 0, 123456, tzinfo=UTC)


def change(one: InstanceRecord, location: str, state: str, *, kind: str = "object", **more: object) -> ReplicaChange:
    return ReplicaChange.model_validate(
        {
            "object_key": one.object_key,
            "location": location,
            "kind": kind,
            "state": state,
            "size": one.size,
            "sha256": one.sha256,
        }
        | more
    )


def apply(service: CatalogService, *changes: ReplicaChange) -> ReplicaReply:
    return service.change_replicas(ReplicaChanges(changes=changes))


def replicas(store: Store, uid: str) -> list[tuple[str, str, str]]:
    [found] = store.locate(LocateRequest(instances=(uid,)))
    return [(one.location, one.kind, one.state) for one in found.replicas]


def found(store: Store, **lists: object) -> list[str]:
    return sorted(one.instance_uid for one in store.locate(LocateRequest.model_validate(lists)))


def test_locate_by_any_mix(service: CatalogService, store: Store) -> None:
    service.register(
        batch(
            *[
                record(
                    f"{study}.{series}.{n}", study=study, series=f"{study}.{series}", patient_id=patient, issuer=issuer
                )
                for study, patient, issuer in (("1", "P1", "A"), ("2", "P1", "B"), ("3", "P3", "A"))
                for series in ("1", "2")
                for n in range(2)
            ]
        )
    )
    assert found(store, studies=["1"]) == ["1.1.0", "1.1.1", "1.2.0", "1.2.1"]
    assert found(store, studies=["1", "2"], series=["2.1", "3.1"]) == ["2.1.0", "2.1.1"]
    assert found(store, studies=["1", "none"], instances=["1.1.0", "2.1.0", "none"]) == ["1.1.0"]
    assert found(store, patients=[{"patient_id": "P1"}], series=["1.1", "2.1", "3.1"]) == [
        "1.1.0",
        "1.1.1",
        "2.1.0",
        "2.1.1",
    ]
    assert len(found(store, patients=[{"patient_id": "P1", "issuer": "B"}])) == 4
    assert len(found(store, patients=[{"patient_id": "P1", "issuer": "B"}, {"patient_id": "P3"}])) == 8
    assert found(store, instances=[str(n) for n in range(20_000)] + ["3.2.1"]) == ["3.2.1"]
    assert found(store, patients=[PatientKey(patient_id="x" * 20_000)]) == []
    assert len(found(store, patients=[PatientKey(patient_id=f"P{n}", issuer="A") for n in range(5000)])) == 8
    with pytest.raises(UnsupportedQuery):
        found(store, patients=[PatientKey(patient_id="P1", issuer=str(n)) for n in range(5000)])


def test_locate_needs_something(store: Store) -> None:
    with pytest.raises(UnsupportedQuery):
        store.locate(LocateRequest())


def test_located_tells_everything_about_the_object(service: CatalogService, store: Store) -> None:
    one = record("1.1", InstanceNumber="42", NumberOfFrames="3")
    large = record("1.2").model_copy(update={"size": 9 * 1024 * 1024, "chunks": ("a" * 64, "b" * 64, "c" * 64)})
    service.register(batch(one, large))
    apply(service, change(one, "se1", "verified", verified_at=MOMENT.isoformat()))
    [located] = store.locate(LocateRequest(instances=("1.1",)))
    assert (located.instance_number, located.number_of_frames) == (42, 3)
    assert located.object.model_dump() == {
        "object_key": one.object_key,
        "size": one.size,
        "sha256": one.sha256,
        "data_sha256": one.data_sha256,
        "chunks": (),
        "pixel_offset": one.pixel_offset,
    }
    assert [(r.location, r.state, r.verified_at) for r in located.replicas] == [
        ("node1", "spooled", None),
        ("se1", "verified", MOMENT),
    ]
    [located] = store.locate(LocateRequest(instances=("1.2",)))
    assert located.object.chunks == large.chunks


def test_replica_life(service: CatalogService, store: Store) -> None:
    one = record("1.1")
    service.register(batch(one))
    changes = (
        change(one, "se1", "verified"),
        change(one, "se2", "verified"),
        change(one, "node1", "removed", kind="spool"),
    )
    assert apply(service, *changes).applied == 3
    assert apply(service, *changes).applied == 3
    assert replicas(store, "1.1") == [("se1", "object", "verified"), ("se2", "object", "verified")]
    result = service.register(batch(record("1.1", node="node2"))).results[0]
    assert (result.outcome, result.verified_replicas, result.verified_at) == ("identical", 2, ("se1", "se2"))
    assert len(replicas(store, "1.1")) == 2, "a further spool of a safe object is nobody's business"
    apply(service, change(one, "se1", "suspect"), change(one, "se2", "lost"))
    assert replicas(store, "1.1") == [("se1", "object", "suspect"), ("se2", "object", "lost")]
    service.register(batch(record("1.1", node="node2")))
    assert ("node2", "spool", "spooled") in replicas(store, "1.1"), "nothing verified: another spool helps"


def test_wrong_changes_are_refused_by_themselves(service: CatalogService, store: Store) -> None:
    one = record("1.1")
    service.register(batch(one))
    reply = apply(
        service,
        change(one, "se1", "verified"),
        change(one, "se2", "verified", sha256="0" * 64),
        change(one, "se3", "verified", size=None),
        change(one, "", "verified"),
        change(one, "a\0b", "lost"),
        change(record("9.9"), "se1", "verified"),
        change(record("9.9"), "se1", "removed"),
        change(one, "se4", "removed", object_key="a\0b"),
    )
    assert (reply.applied, [refused.location for refused in reply.refused]) == (1, ["se2", "se3", "", "a\0b", "se1"])
    assert ("se1", "object", "verified") in replicas(store, "1.1")


def test_the_last_of_contradicting_changes_counts(service: CatalogService, store: Store) -> None:
    one = record("1.1")
    service.register(batch(one))
    apply(
        service,
        change(one, "se1", "verified"),
        change(one, "se1", "removed"),
        change(one, "se2", "lost"),
        change(one, "se2", "verified"),
    )
    assert replicas(store, "1.1") == [("node1", "spool", "spooled"), ("se2", "object", "verified")]


def test_the_feed_tells_what_happened_in_order(service: CatalogService, store: Store) -> None:
    first, second = record("1.1", content=b"1"), record("1.1", content=b"2")
    service.register(batch(first, second))
    apply(service, change(first, "se1", "verified"), change(first, "node1", "removed", kind="spool"))
    store.retire(["1.1"])
    store.put_site(Site(name="a", title="Here"))
    store.put_site(Site(name="a", title="Here"))
    seen = [(one.kind, one.tombstone) for one in store.changes(after=0, limit=100)]
    assert seen == [
        ("instance", False),
        ("conflict", False),
        ("replica", False),
        ("replica", True),
        ("instance", True),
        ("site", False),
    ]
    assert [one.seq for one in store.changes(after=2, limit=3)] == [3, 4, 5]
    assert store.changes(after=6, limit=3) == []
    text = str(store.changes(after=0, limit=100))
    assert "Doe" not in text
    assert "P1" not in text


def test_elements_and_sites(store: Store) -> None:
    one = StorageElement(name="se1", site="a", doors=("https://h:1/areas/main", "sftp://h:2/main"))
    store.put_storage_element(one)
    store.put_storage_element(StorageElement(name="se0", site="a", state="draining"))
    store.put_storage_element(one.model_copy(update={"doors": one.doors[::-1]}))
    assert [(e.name, e.doors, e.state) for e in store.storage_elements()] == [
        ("se0", (), "draining"),
        ("se1", one.doors[::-1], "active"),
    ]
    store.put_site(Site(name="b"))
    assert store.sites() == [Site(name="b", title="")]


def _copied(store: Store, number: int, *places: str) -> InstanceRecord:
    """An instance that is verified at these places and in no spool any more."""
    one = record(f"7.{number}", content=b"%d" % number)
    store.register([prepare(one)])
    changes = [change(one, place, "verified") for place in places]
    store.change_replicas([*changes, change(one, one.spooled_at, "removed", kind="spool")])
    return one


def test_an_element_with_copies_is_not_taken_out(store: Store) -> None:
    store.put_storage_element(StorageElement(name="se1", site="a"))
    one = _copied(store, 1, "se1")
    with pytest.raises(CatalogRefused, match="1 copies"):
        store.remove_storage_element("se1")
    store.change_replicas([change(one, "se1", "suspect")])
    with pytest.raises(CatalogRefused):
        store.remove_storage_element("se1")
    store.change_replicas([change(one, "se1", "removed")])
    store.remove_storage_element("se1")
    assert store.storage_elements() == []
    last = store.changes(after=0, limit=100)[-1]
    assert (last.kind, last.subject, last.tombstone) == ("storage_element", "se1", True)
    with pytest.raises(UnknownSubject):
        store.remove_storage_element("se1")
    with pytest.raises(UnknownSubject):
        list(store.lose_storage_element("se1"))


def test_what_a_lost_element_had_is_lost_and_shows_in_availability(service: CatalogService) -> None:
    store = service.store
    for name in ("se1", "se2"):
        store.put_storage_element(StorageElement(name=name, site="a"))
    for number in range(5):
        _copied(store, number, "se1", *(["se2"] if number < 3 else []))
    pages = store.lose_storage_element("se1", page=2)
    assert next(pages) == (2, 0)
    assert [one.state for one in store.storage_elements()] == ["draining", "active"]
    with pytest.raises(CatalogRefused):  # interrupted: it has copies still
        store.remove_storage_element("se1")
    reply = service.remove_element("se1", peer_of("operator"), lost=True)
    assert (reply.lost, reply.last) == (3, 2)
    assert [one.name for one in store.storage_elements()] == ["se2"]
    located = list(store.locate(LocateRequest(instances=tuple(f"7.{n}" for n in range(5)))))
    states = sorted(tuple(sorted((r.location, r.state) for r in one.replicas)) for one in located)
    assert states == [(("se1", "lost"),)] * 2 + [(("se1", "lost"), ("se2", "verified"))] * 3
    rows = [row for row in store.query(Query(level="IMAGE", keys=("InstanceAvailability",))) if isinstance(row, dict)]
    assert sorted(str(row["InstanceAvailability"]) for row in rows) == ["OFFLINE"] * 2 + ["ONLINE"] * 3
