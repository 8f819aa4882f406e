"""Batch register: idempotent, atomic, and one decision about conflicts however many clients ask at once."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import event

from catalog.errors import CatalogRefused, UnknownSubject
from catalog.service import CatalogService
from catalog.store import Store
from catalog.store.database import Database
from catalog.store.search import End
from catalog.wire import InstanceRecord, LocateRequest, Match, Query, ReplicaChange, ReplicaChanges, Row
from tests.helpers.catalogrecords import MR, batch, encoded, record

JPEG_LS = "1.2.840.10008.1.2.4.80"


def outcomes(service: CatalogService, *records: InstanceRecord) -> list[str]:
    return [result.outcome for result in service.register(batch(*records)).results]


def rows(store: Store, query: Query) -> list[Row]:
    return [row for row in store.query(query) if not isinstance(row, End)]


def verified(one: InstanceRecord, location: str = "se1") -> ReplicaChange:
    return ReplicaChange(
        object_key=one.object_key, location=location, kind="object", state="verified", size=one.size, sha256=one.sha256
    )


def test_same_batch_twice_registers_once(service: CatalogService, store: Store) -> None:
    records = [record(f"1.2.3.{n}") for n in range(20)]
    assert set(outcomes(service, *records)) == {"registered"}
    before = len(store.changes(after=0, limit=1000))
    assert set(outcomes(service, *records)) == {"identical"}
    assert store.instance_count() == 20
    assert len(store.changes(after=0, limit=1000)) == before


def test_same_record_twice_in_one_batch(service: CatalogService, store: Store) -> None:
    assert outcomes(service, record("1.2.3"), record("1.2.3")) == ["registered", "identical"]
    assert store.instance_count() == 1


def test_concurrent_clients_agree(service: CatalogService, store: Store) -> None:
    """Eight clients register overlapping batches, two contents per UID: one is kept each time, one conflict opened."""
    barrier = threading.Barrier(8)

    def client(n: int) -> list[str]:
        content = b"a" if n % 2 else b"b"
        records = [record(f"1.2.{i}", study=f"1.{i % 3}", content=content) for i in range(30)]
        barrier.wait(10)
        order = records if n % 3 else records[::-1]
        return [outcome for start in range(0, 30, 10) for outcome in outcomes(service, *order[start : start + 10])]

    with ThreadPoolExecutor(8) as pool:
        seen = Counter(outcome for found in pool.map(client, range(8)) for outcome in found)
    assert seen["registered"] == 30
    assert seen["rejected"] == 0
    assert seen["conflict"] + seen["identical"] == 8 * 30 - 30
    assert store.instance_count() == 30
    assert len(store.conflicts("open", limit=100)) == 30
    studies = rows(store, Query(level="STUDY", keys=("StudyInstanceUID", "NumberOfStudyRelatedInstances")))
    assert {row["StudyInstanceUID"]: row["NumberOfStudyRelatedInstances"] for row in studies} == {
        "1.0": 10,
        "1.1": 10,
        "1.2": 10,
    }


def test_sequence_numbers_have_no_gaps_under_concurrency(service: CatalogService, store: Store) -> None:
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda n: outcomes(service, *[record(f"1.{n}.{i}") for i in range(5)]), range(12)))
    changes = store.changes(after=0, limit=1000)
    assert [change.seq for change in changes] == list(range(1, 61))
    assert {(change.epoch, change.origin_site, change.tombstone) for change in changes} == {(1, "a", False)}
    assert len({change.catalog_id for change in changes}) == 1


def test_other_content_is_quarantined_and_the_first_kept(service: CatalogService, store: Store) -> None:
    first, second = record("1.2.3", content=b"one"), record("1.2.3", content=b"two", node="node2")
    assert outcomes(service, first) == ["registered"]
    result = service.register(batch(second)).results[0]
    assert (result.outcome, result.kind, result.object_key) == ("conflict", "content", second.object_key)
    [conflict] = store.conflicts("open", limit=10)
    assert conflict.id == result.conflict_id
    assert conflict.kept is not None and conflict.kept.object_key == first.object_key
    assert conflict.quarantined is not None and conflict.quarantined.object_key == second.object_key
    [located] = store.locate(LocateRequest(instances=("1.2.3",)))
    assert located.object.object_key == first.object_key
    assert store.instance_count() == 1


def test_quarantined_object_has_replicas_of_its_own(service: CatalogService) -> None:
    first, second = record("1.2.3", content=b"one"), record("1.2.3", content=b"two")
    outcomes(service, first, second)
    reply = service.change_replicas(ReplicaChanges(changes=(verified(second), verified(second, "se2"))))
    assert (reply.applied, reply.refused) == (2, ())
    again = service.register(batch(second)).results[0]
    assert (again.outcome, again.verified_replicas, again.verified_at) == ("conflict", 2, ("se1", "se2"))
    kept = service.register(batch(first)).results[0]
    assert (kept.outcome, kept.verified_replicas) == ("identical", 0)


def test_same_conflicting_copy_again_opens_no_second_conflict(service: CatalogService, store: Store) -> None:
    first, second = record("1.2.3", content=b"one"), record("1.2.3", content=b"two")
    outcomes(service, first)
    found = [service.register(batch(second, second)).results for _ in range(3)]
    assert len({result.conflict_id for results in found for result in results}) == 1
    assert len(store.conflicts(None, limit=10)) == 1


def test_only_the_transfer_syntax_differs(service: CatalogService) -> None:
    plain = record("1.2.3")
    packed = record("1.2.3", syntax=JPEG_LS, content=b"compressed")
    assert outcomes(service, plain) == ["registered"]
    assert service.register(batch(packed)).results[0].kind == "syntax"
    lossy = record("1.2.3", syntax="1.2.840.10008.1.2.4.50", content=b"lossy", ImageType=["DERIVED", "PRIMARY"])
    assert service.register(batch(lossy)).results[0].kind == "content"


def test_keep_first_and_the_same_copy_again(service: CatalogService, store: Store) -> None:
    first, second = record("1.2.3", content=b"one"), record("1.2.3", content=b"two")
    outcomes(service, first, second)
    [conflict] = store.conflicts("open", limit=10)
    assert store.resolve(conflict.id, "keep_first", actor="op").state == "kept_first"
    assert store.resolve(conflict.id, "keep_first", actor="op").state == "kept_first"
    with pytest.raises(CatalogRefused):
        store.resolve(conflict.id, "replace", actor="op")
    assert service.register(batch(second)).results[0].conflict_id == conflict.id
    assert store.conflicts("open", limit=10) == []


def test_replace_makes_the_second_copy_the_instance(service: CatalogService, store: Store) -> None:
    first = record("1.2.3", content=b"one")
    second = record("1.2.3", content=b"two", study="1.9", series="1.9.1", modality="MR", sop_class=MR)
    outcomes(service, first, second, record("1.2.4"))
    [conflict] = store.conflicts("open", limit=10)
    store.resolve(conflict.id, "replace", actor="op")
    [located] = store.locate(LocateRequest(instances=("1.2.3",)))
    assert (located.object.object_key, located.study_uid) == (second.object_key, "1.9")
    found = rows(
        store,
        Query(
            level="STUDY",
            keys=(
                "StudyInstanceUID",
                "ModalitiesInStudy",
                "SOPClassesInStudy",
                "NumberOfStudyRelatedInstances",
                "NumberOfPatientRelatedStudies",
            ),
        ),
    )
    assert sorted(
        (
            row["StudyInstanceUID"],
            row["ModalitiesInStudy"],
            row["NumberOfStudyRelatedInstances"],
            row["NumberOfPatientRelatedStudies"],
        )
        for row in found
    ) == [("1.2.1", ["CT"], 1, 2), ("1.9", ["MR"], 1, 2)]
    assert outcomes(service, first) == ["conflict"]
    assert store.conflicts("open", limit=10) == []


def test_unknown_conflict(store: Store) -> None:
    with pytest.raises(UnknownSubject):
        store.resolve("no-such", "keep_first", actor="op")


def test_identical_content_under_another_key_is_the_kept_object(service: CatalogService) -> None:
    first = record("1.2.3")
    other_key = first.model_copy(update={"sha256": "0" * 64, "object_key": "v1/00/00/" + "0" * 64})
    outcomes(service, first)
    result = service.register(batch(other_key)).results[0]
    assert (result.outcome, result.object_key) == ("identical", first.object_key)


def test_object_key_of_other_bytes_is_rejected_alone(service: CatalogService) -> None:
    first = record("1.2.3")
    thief = record("1.2.4").model_copy(update={"object_key": first.object_key})
    assert outcomes(service, first, thief, record("1.2.5")) == ["registered", "rejected", "registered"]


def test_wrong_records_never_stop_the_others(service: CatalogService, store: Store) -> None:
    good = record("1.2.1")
    wrong = [
        good.model_copy(update={"instance_uid": ""}),
        good.model_copy(update={"instance_uid": "1\0.2"}),
        good.model_copy(update={"instance_uid": "1" * 5000}),
        good.model_copy(update={"sha256": "xyz"}),
        good.model_copy(update={"size": -1}),
        good.model_copy(update={"size": 2**80}),
        good.model_copy(update={"pixel_offset": 10**12}),
        good.model_copy(update={"header": good.header.model_copy(update={"zstd": b"no zstd"})}),
        record("1.2.9", raw=encoded(SOPInstanceUID="1.2.9", StudyInstanceUID="1.2")),
    ]
    found = service.register(batch(*wrong, good, record("1.2.2"))).results
    assert [result.outcome for result in found] == ["rejected"] * len(wrong) + ["registered"] * 2
    assert all(result.reason for result in found[: len(wrong)])
    assert store.instance_count() == 2


@pytest.mark.parametrize("uid", ["9999.1", "1.2.840.00.1", "../../../etc/passwd", "1.2." + "3" * 200, "1.2.3%4"])
def test_odd_uids_are_kept_verbatim(service: CatalogService, store: Store, uid: str) -> None:
    assert outcomes(service, record(uid, series=uid, study=uid)) == ["registered"]
    [located] = store.locate(LocateRequest(instances=(uid,), studies=(uid,), series=(uid,)))
    assert (located.instance_uid, located.study_uid, located.series_uid) == (uid, uid, uid)


def test_absurd_values_are_filed_and_found(service: CatalogService, store: Store) -> None:
    import random

    noise = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=10_000))
    long = record("1.1", patient_id=noise, name=noise, StudyDescription="x" * 9000, AccessionNumber=noise, study="1.1")
    null = record("1.2", patient_id="A\0B", name="Nul\0^Name", StudyID="1\0", study="1.2")
    empty = record("1.3", patient_id="", name="", Modality="", study="1.3")
    assert outcomes(service, long, null, empty) == ["registered"] * 3
    assert rows(
        store,
        Query(
            level="STUDY", keys=("StudyInstanceUID",), matches=(Match(keyword="PatientID", op="eq", values=(noise,)),)
        ),
    ) == [{"StudyInstanceUID": "1.1"}]
    assert rows(
        store,
        Query(
            level="STUDY", keys=("PatientID",), matches=(Match(keyword="PatientName", op="wild", values=("nul^*",)),)
        ),
    ) == [{"PatientID": "AB"}]


def test_patients_are_qualified_by_issuer(service: CatalogService, store: Store) -> None:
    outcomes(
        service,
        record("1.1", study="1", issuer="A"),
        record("1.2", study="2", issuer="B"),
        record("1.3", study="3", issuer="A", IssuerOfPatientID="B"),
        record("1.4", study="4", issuer=""),
    )
    found = rows(store, Query(level="PATIENT", keys=("IssuerOfPatientID", "NumberOfPatientRelatedStudies")))
    assert sorted((row["IssuerOfPatientID"], row["NumberOfPatientRelatedStudies"]) for row in found) == [
        ("", 1),
        ("A", 1),
        ("B", 2),
    ]


def test_patients_without_an_id_are_never_merged(service: CatalogService, store: Store) -> None:
    outcomes(service, record("1.1", study="1", patient_id=""), record("1.2", study="2", patient_id="", name="Roe"))
    assert sorted(str(row["PatientName"]) for row in rows(store, Query(level="PATIENT", keys=("PatientName",)))) == [
        "Doe^Jane",
        "Roe",
    ]


def test_a_study_keeps_its_first_patient_and_reports_the_second(service: CatalogService, store: Store) -> None:
    outcomes(service, record("1.1"))
    assert outcomes(service, record("1.2", patient_id="P2"), record("1.3", patient_id="P2")) == ["registered"] * 2
    [report] = store.conflicts("reported", limit=10)
    assert (report.kind, report.kept, report.quarantined) == ("patient", None, None)
    outcomes(service, record("1.4", patient_id="P2"))
    assert len(store.conflicts(None, limit=10)) == 1
    found = rows(store, Query(level="IMAGE", keys=("SOPInstanceUID", "PatientID")))
    assert {row["PatientID"] for row in found} == {"P1"}
    assert len(found) == 4
    assert len(rows(store, Query(level="PATIENT", keys=("PatientID",)))) == 1


def test_two_patients_for_one_new_study_in_one_batch(service: CatalogService, store: Store) -> None:
    assert outcomes(service, record("1.1"), record("1.2", patient_id="P2")) == ["registered"] * 2
    assert rows(store, Query(level="PATIENT", keys=("PatientID", "NumberOfPatientRelatedInstances"))) == [
        {"PatientID": "P1", "NumberOfPatientRelatedInstances": 2}
    ]
    assert [conflict.kind for conflict in store.conflicts("reported", limit=9)] == ["patient"]


def test_a_series_uid_used_in_two_studies(service: CatalogService, store: Store) -> None:
    outcomes(service, record("1.1", study="1", series="7"), record("1.2", study="2", series="7"))
    found = rows(
        store,
        Query(
            level="SERIES",
            keys=("StudyInstanceUID", "NumberOfSeriesRelatedInstances"),
            matches=(Match(keyword="SeriesInstanceUID", op="eq", values=("7",)),),
        ),
    )
    assert sorted((row["StudyInstanceUID"], row["NumberOfSeriesRelatedInstances"]) for row in found) == [
        ("1", 1),
        ("2", 1),
    ]


def test_later_instances_fill_what_the_first_did_not_know(service: CatalogService, store: Store) -> None:
    outcomes(service, record("1.1", name=""))
    outcomes(
        service,
        record("1.2", name="", StudyDescription="Head"),
        record("1.3", StudyDescription="Chest", name="Roe^Ann"),
        record("1.4", name="Other"),
    )
    assert rows(
        store,
        Query(
            level="STUDY",
            keys=("StudyDescription",),
            matches=(Match(keyword="PatientName", op="wild", values=("ROE*",)),),
        ),
    ) == [{"StudyDescription": "Head"}]


def test_counts_and_modalities_follow_registration_and_retirement(service: CatalogService, store: Store) -> None:
    outcomes(
        service,
        *[record(f"1.{n}", series="1.1", modality="CT") for n in range(3)],
        *[record(f"2.{n}", series="1.2", modality="MR", sop_class=MR) for n in range(2)],
    )
    keys = (
        "ModalitiesInStudy",
        "SOPClassesInStudy",
        "NumberOfStudyRelatedSeries",
        "NumberOfStudyRelatedInstances",
        "NumberOfPatientRelatedSeries",
    )
    [row] = rows(store, Query(level="STUDY", keys=keys))
    assert list(row.values()) == [["CT", "MR"], ["1.2.840.10008.5.1.4.1.1.2", MR], 2, 5, 2]
    assert store.retire(["2.0", "2.1", "no.such", "2.1"]) == 2
    [row] = rows(store, Query(level="STUDY", keys=keys))
    assert list(row.values()) == [["CT"], ["1.2.840.10008.5.1.4.1.1.2"], 1, 3, 1]
    tombstones = [change for change in store.changes(after=0, limit=100) if change.tombstone]
    assert [(change.kind, change.subject) for change in tombstones] == [("instance", "2.0"), ("instance", "2.1")]
    assert store.retire(["1.0", "1.1", "1.2"]) == 3
    assert rows(store, Query(level="PATIENT", keys=("PatientID",))) == []
    assert outcomes(service, record("1.0")) == ["registered"]
    assert store.instance_count() == 1


def test_retired_then_registered_again_with_other_content(service: CatalogService, store: Store) -> None:
    first, second = record("1.1", content=b"1"), record("1.1", content=b"2")
    outcomes(service, first)
    store.retire(["1.1"])
    assert outcomes(service, second) == ["registered"]
    assert outcomes(service, first) == ["conflict"]
    assert len(store.conflicts("open", limit=9)) == 1


def test_a_failed_batch_leaves_nothing(service: CatalogService, database: Database, store: Store) -> None:
    """An exception inside the transaction rolls everything back, and the writer's place is free again."""
    with pytest.raises(ZeroDivisionError), database.writing() as connection:
        from sqlalchemy import text

        connection.execute(text("INSERT INTO sites (name, title) VALUES ('x', 'y')"))
        raise ZeroDivisionError
    assert store.sites() == []
    assert outcomes(service, record("1.1")) == ["registered"]


def test_statements_do_not_grow_with_the_batch(service: CatalogService, database: Database) -> None:
    def new(count: int, study: str) -> list[InstanceRecord]:
        return [record(f"{study}.{n}", study=study, series=f"{study}.0", content=f"{study}{n}".encode())
                for n in range(count)]  # fmt: skip

    def reported(of: list[InstanceRecord]) -> ReplicaChanges:
        gone = [ReplicaChange(object_key=one.object_key, location="node1", kind="spool", state="removed") for one in of]
        return ReplicaChanges(changes=tuple([verified(one, se) for one in of for se in ("se1", "se2")] + gone))

    asked: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    counts = []
    for size in (5, 200):
        of = new(size, f"7.{size}")
        service.register(batch(*of))
        service.change_replicas(reported(of))
        counts.append(len(asked))
        asked.clear()
    assert counts[1] <= counts[0] <= 60
