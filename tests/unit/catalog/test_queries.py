"""Queries at four levels: every kind of matching, what comes back, and that nothing is scanned for counts."""

from __future__ import annotations

import pytest
from pydicom.dataset import Dataset

from catalog.errors import UnsupportedQuery
from catalog.keys import LEVELS, supported
from catalog.prepare import prepare
from catalog.service import CatalogService
from catalog.store import Store
from catalog.store.database import Database
from catalog.store.search import End
from catalog.wire import Level, Match, Query, ReplicaChange, ReplicaChanges, Row
from tests.helpers.catalogrecords import MR, batch, record

JAPANESE = ["", "ISO 2022 IR 87"]
ALL = ["1", "2", "3", "4", "5", "6"]


def match(keyword: str, op: str, *values: str) -> Match:
    return Match.model_validate({"keyword": keyword, "op": op, "values": values})


def ask(store: Store, level: Level, *matches: Match, keys: tuple[str, ...], names: str = "insensitive") -> list[Row]:
    query = Query.model_validate({"level": level, "matches": matches, "keys": keys, "names": names})
    return [row for row in store.query(query) if not isinstance(row, End)]


def studies(store: Store, *matches: Match, names: str = "insensitive") -> list[str]:
    rows = ask(store, "STUDY", *matches, keys=("StudyInstanceUID",), names=names)
    return sorted(str(row["StudyInstanceUID"]) for row in rows)


def _issuer() -> Dataset:
    item = Dataset()
    item.LocalNamespaceEntityID, item.UniversalEntityID, item.UniversalEntityIDType = "LAB7", "1.2.9", "ISO"
    return item


@pytest.fixture
def filled(service: CatalogService, store: Store) -> Store:
    """Six studies of five patients."""
    service.register(batch(
        record("1.1", study="1", series="1.1", name="Müller^Jörg", patient_id="A1", SpecificCharacterSet="ISO_IR 100",
               StudyDate="20240110", StudyTime="101530.25", AccessionNumber="ACC1", BodyPartExamined="HEAD",
               IssuerOfAccessionNumberSequence=[_issuer()],
               StudyDescription="Schädel [nativ] 100%", OperatorsName=["Weiß^Anna", "Roe^Bob"], Rows=64, Columns=64),
        record("1.2", study="1", series="1.2", name="Müller^Jörg", patient_id="A1", SpecificCharacterSet="ISO_IR 100",
               modality="SR", sop_class="1.2.840.10008.5.1.4.1.1.88.11", SeriesNumber="007"),
        record("2.1", study="2", series="2.1", name="MULLER^JORG^^^", patient_id="A2", modality="MR", sop_class=MR,
               StudyDate="20240131", StudyTime="0800", AccessionNumber="ACC2", InstanceNumber="12", Rows=32),
        record("2.2", study="2", series="2.1", name="MULLER^JORG^^^", patient_id="A2", modality="MR", sop_class=MR,
               StudyDate="20240131", StudyTime="0800", AccessionNumber="ACC2", InstanceNumber="13", Rows=48),
        record("3.1", study="3", series="3.1", name="Yamada^Tarou=山田^太郎=やまだ^たろう", patient_id="A3",
               ReferringPhysicianName="Yamada^Tarou=山田^太郎",
               SpecificCharacterSet=JAPANESE, StudyDate="2024.02.01", BodyPartExamined="CHEST"),
        record("4.1", study="4", series="4.1", name="Smith", patient_id="A4*", StudyDate="2024.1.1", modality="US"),
        record("5.1", study="5", series="5.1", name="Smithson^Al", patient_id="A5", StudyDate="", modality="US"),
        record("6.1", study="6", series="6.1", name="Smith^Sam", patient_id="A4*", StudyDate="19990101", modality="PX"),
    ))
    return store


MATCHING: list[tuple[tuple[tuple[str, ...], ...], list[str]]] = [
    ((), ALL),
    ((("PatientID", "eq", "A1"),), ["1"]),
    ((("PatientID", "in", "A1", "A3", "no"),), ["1", "3"]),
    ((("StudyInstanceUID", "in", *map(str, range(5000))),), ALL),
    ((("PatientName", "wild", "muller*"),), ["1", "2"]),
    ((("PatientName", "eq", "MÜLLER^jörg"),), ["1", "2"]),
    ((("PatientName", "eq", "Müller^Jörg^^"),), ["1", "2"]),
    ((("PatientName", "eq", "Müller"),), []),
    ((("PatientName", "wild", "*jor?"),), ["1", "2"]),
    ((("PatientName", "wild", "yama*"),), ["3"]),
    ((("PatientName", "wild", "山田*"),), ["3"]),
    ((("PatientName", "eq", "やまだ^たろう"),), ["3"]),
    ((("PatientName", "wild", "Yamada*=山田*"),), ["3"]),
    ((("PatientName", "wild", "Yamada*=鈴木*"),), []),
    ((("PatientName", "eq", "=山田^太郎"),), ["3"]),
    ((("PatientName", "wild", "Smith^*"),), ["4", "6"]),
    ((("PatientName", "wild", "Smith*"),), ["4", "5", "6"]),
    ((("PatientName", "wild", "*"),), ALL),
    ((("PatientName", "wild", "sm?th"),), ["4", "6"]),
    ((("StudyDate", "eq", "20240131"),), ["2"]),
    ((("StudyDate", "range", "20240101", "20240131"),), ["1", "2"]),
    ((("StudyDate", "range", "20240131", ""),), ["2", "3"]),
    ((("StudyDate", "range", "", "20240110"),), ["1", "4", "6"]),
    ((("StudyDate", "range", "", ""),), ALL),
    ((("StudyTime", "range", "1015", "1015"),), ["1"]),
    ((("StudyTime", "range", "080000", "080000"),), ["2"]),
    ((("StudyTime", "range", "", "1015"),), ["1", "2"]),
    ((("StudyTime", "eq", "080000.00"),), ["2"]),
    ((("StudyTime", "eq", "08"),), ["2"]),
    ((("StudyTime", "eq", "101530.250"),), ["1"]),
    ((("StudyTime", "eq", "101530"),), []),
    ((("StudyDate+StudyTime", "range", "202401101015", "20240131075959"),), ["1"]),
    ((("StudyDate+StudyTime", "range", "20240110101531", "2024013108"),), ["2"]),
    ((("StudyDate+StudyTime", "range", "", "202401101015"),), ["1", "4", "6"]),
    ((("StudyDate+StudyTime", "range", "202401310800", ""),), ["2", "3"]),
    ((("AccessionNumber", "wild", "ACC?"),), ["1", "2"]),
    ((("AccessionNumber", "wild", "*1", "?CC2"),), ["1", "2"]),
    ((("IssuerOfAccessionNumberSequence.UniversalEntityID", "eq", "1.2.9"),), ["1"]),
    ((("IssuerOfAccessionNumberSequence.LocalNamespaceEntityID", "wild", "LAB*"),), ["1"]),
    ((("ReferringPhysicianName", "wild", "yamada*=山田*"),), ["3"]),
    ((("ReferringPhysicianName", "eq", "=山田^太郎"),), ["3"]),
    ((("ReferringPhysicianName", "wild", "Yamada*=鈴木*"),), []),
    ((("AccessionNumber", "eq", "acc1"),), []),
    ((("StudyDescription", "wild", "*[nativ] 100%"),), ["1"]),
    ((("StudyDescription", "wild", "sch*"),), []),
    ((("StudyDescription", "wild", "Sch?del*"),), ["1"]),
    ((("ModalitiesInStudy", "eq", "SR"),), ["1"]),
    ((("ModalitiesInStudy", "in", "MR", "US"),), ["2", "4", "5"]),
    ((("Modality", "in", "MR", "SR"),), ["1", "2"]),
    ((("ModalitiesInStudy", "wild", "?R"),), ["1", "2"]),
    ((("SOPClassesInStudy", "eq", MR),), ["2"]),
    ((("BodyPartExamined", "eq", "CHEST"),), ["3"]),
    ((("NumberOfStudyRelatedInstances", "eq", "2"),), ["1", "2"]),
    ((("SeriesInstanceUID", "eq", "2.1"),), ["2"]),
    ((("SOPInstanceUID", "in", "1.2", "3.1"),), ["1", "3"]),
    ((("SeriesNumber", "eq", "7"),), ["1"]),
    ((("InstanceNumber", "eq", "13"), ("Rows", "eq", "48")), ["2"]),
    ((("InstanceNumber", "eq", "12"), ("Rows", "eq", "48")), []),
    ((("SeriesInstanceUID", "eq", "1.2"), ("SOPInstanceUID", "eq", "1.1")), []),
    ((("SeriesInstanceUID", "eq", "1.1"), ("SOPInstanceUID", "eq", "1.1")), ["1"]),
    ((("OperatorsName", "wild", "weiss*"), ("Rows", "eq", "64")), ["1"]),
    ((("SeriesDate+SeriesTime", "range", "20240101", ""),), []),
    ((("StudyInstanceUID", "wild", "*"), ("PatientID", "eq", "A1")), []),
    ((("IssuerOfPatientID", "eq", "SITE_A"), ("PatientID", "eq", "A1")), ["1"]),
    ((("PatientID", "eq", "A1\0"),), ["1"]),
]


def test_study_level_matching(filled: Store) -> None:
    found = [(matches, studies(filled, *(match(*one) for one in matches))) for matches, _ in MATCHING]
    assert found == MATCHING


def test_names_by_the_letter_of_the_standard(filled: Store) -> None:
    for op, value, wanted in (
        ("wild", "Müller*", ["1"]),
        ("eq", "MULLER^JORG", ["2"]),
        ("wild", "MULLER*", ["2"]),
        ("eq", "müller^jörg", []),
    ):
        assert studies(filled, match("PatientName", op, value), names="exact") == wanted, value


def test_other_names_and_several_values(filled: Store) -> None:
    for value, op in (("weiss^anna", "eq"), ("ROE^BOB", "eq"), ("roe*", "wild"), ("*anna", "wild")):
        found = ask(filled, "SERIES", match("OperatorsName", op, value), keys=("SeriesInstanceUID", "OperatorsName"))
        assert found == [{"SeriesInstanceUID": "1.1", "OperatorsName": ["Weiß^Anna", "Roe^Bob"]}]
    assert ask(filled, "SERIES", match("OperatorsName", "eq", "anna"), keys=("SeriesInstanceUID",)) == []


def test_the_value_of_a_series_attribute_at_study_level_is_one_that_matched(filled: Store) -> None:
    keys = ("BodyPartExamined", "Modality", "ModalitiesInStudy")
    [row] = ask(filled, "STUDY", match("BodyPartExamined", "wild", "H*"), keys=keys)
    assert row == {"BodyPartExamined": "HEAD", "Modality": ["CT", "SR"], "ModalitiesInStudy": ["CT", "SR"]}


def test_series_level(filled: Store) -> None:
    keys = ("SeriesInstanceUID", "SeriesNumber", "Rows", "PatientName", "NumberOfSeriesRelatedInstances")
    found = ask(filled, "SERIES", match("StudyInstanceUID", "in", "1", "2"), keys=keys)
    assert sorted(found, key=str) == sorted(
        [
            {
                "SeriesInstanceUID": "1.1",
                "SeriesNumber": None,
                "Rows": 64,
                "PatientName": "Müller^Jörg",
                "NumberOfSeriesRelatedInstances": 1,
            },
            {
                "SeriesInstanceUID": "1.2",
                "SeriesNumber": "7",
                "Rows": None,
                "PatientName": "Müller^Jörg",
                "NumberOfSeriesRelatedInstances": 1,
            },
            {
                "SeriesInstanceUID": "2.1",
                "SeriesNumber": None,
                "Rows": None,
                "PatientName": "MULLER^JORG^^^",
                "NumberOfSeriesRelatedInstances": 2,
            },
        ],
        key=str,
    )
    assert len(ask(filled, "SERIES", match("SeriesNumber", "eq", "7"), keys=())) == 1
    assert len(ask(filled, "SERIES", match("Rows", "eq", "48"), keys=())) == 1


def test_image_level(filled: Store) -> None:
    found = ask(
        filled,
        "IMAGE",
        match("SeriesInstanceUID", "eq", "2.1"),
        match("InstanceNumber", "eq", "012"),
        keys=(
            "SOPInstanceUID",
            "SOPClassUID",
            "InstanceNumber",
            "Rows",
            "AvailableTransferSyntaxUID",
            "PatientID",
            "ModalitiesInStudy",
            "NoSuchKeyword",
        ),
    )
    assert found == [
        {
            "SOPInstanceUID": "2.1",
            "SOPClassUID": MR,
            "InstanceNumber": "12",
            "Rows": 32,
            "AvailableTransferSyntaxUID": "1.2.840.10008.1.2.1",
            "PatientID": "A2",
            "ModalitiesInStudy": ["MR"],
            "NoSuchKeyword": None,
        }
    ]


def test_patient_level(filled: Store) -> None:
    found = ask(
        filled,
        "PATIENT",
        match("PatientID", "eq", "A4*"),
        keys=("PatientName", "NumberOfPatientRelatedStudies", "NumberOfPatientRelatedInstances"),
    )
    assert found == [{"PatientName": "Smith", "NumberOfPatientRelatedStudies": 2, "NumberOfPatientRelatedInstances": 2}]
    assert len(ask(filled, "PATIENT", match("StudyInstanceUID", "eq", "5"), keys=())) == 1


def test_limit_tells_whether_there_is_more(filled: Store) -> None:
    for limit, count, truncated in ((0, 0, True), (5, 5, True), (6, 6, False), (None, 6, False)):
        found = list(filled.query(Query(level="STUDY", keys=("StudyInstanceUID",), limit=limit)))
        assert found[-1] == End(count, truncated)
        assert len(found) == count + 1


def test_every_supported_key_can_be_asked_and_matched_at_its_level(filled: Store) -> None:
    for level in LEVELS:
        for keyword in sorted(supported(level) - {"InstanceAvailability"}):
            values = ("1", "2") if keyword.endswith(("Date", "Time")) else ("1",)
            op = "range" if len(values) == 2 else "eq"
            ask(filled, level, match(keyword, op, *values), keys=tuple(supported(level)))


def test_long_lists_of_every_kind(filled: Store) -> None:
    many = [str(n) for n in range(100)]
    for keyword, op in (
        ("PatientName", "in"),
        ("PatientName", "wild"),
        ("OtherPatientIDs", "in"),
        ("PatientID", "wild"),
        ("ReferringPhysicianName", "wild"),
        ("ModalitiesInStudy", "in"),
    ):
        ask(filled, "STUDY", match(keyword, op, *many), keys=())
    assert len(ask(filled, "IMAGE", match("Rows", "in", *map(str, range(30_000))), keys=())) == 3
    with pytest.raises(UnsupportedQuery):
        ask(filled, "STUDY", match("PatientName", "in", *map(str, range(1000))), keys=())


@pytest.mark.parametrize("wrong", [("NoSuchKeyword", "eq", "1"), ("StudyDate", "range", "1"), ("PatientID", "in")])
def test_what_cannot_be_matched_is_refused_at_once(filled: Store, wrong: tuple[str, ...]) -> None:
    with pytest.raises(UnsupportedQuery):
        filled.query(Query(level="STUDY", matches=(match(*wrong),), keys=()))


def test_availability_follows_what_the_caller_can_reach(service: CatalogService, filled: Store) -> None:
    def moved(uid: str, **states: str) -> None:
        one = next(located for located in filled.locate(_instances(uid)))
        service.change_replicas(
            ReplicaChanges(
                changes=tuple(
                    ReplicaChange.model_validate(
                        {
                            "object_key": one.object.object_key,
                            "location": location,
                            "kind": "object" if location.startswith("se") else "spool",
                            "state": state,
                            "size": one.object.size,
                            "sha256": one.object.sha256,
                        }
                    )
                    for location, state in states.items()
                )
            )
        )

    for uid in ("2.1", "2.2"):
        moved(uid, se1="verified", se2="verified", node1="removed")
    moved("3.1", se1="verified", node1="removed")
    moved("4.1", se1="suspect", node1="removed")

    def offline(level: Level, key: str, *unreachable: str) -> list[object]:
        query = Query(level=level, keys=(key, "InstanceAvailability"), unreachable=unreachable)
        return sorted(
            str(row[key])
            for row in filled.query(query)
            if not isinstance(row, End) and row["InstanceAvailability"] == "OFFLINE"
        )

    for level, key, name in (
        ("STUDY", "StudyInstanceUID", {"2": "2", "3": "3", "4": "4"}),
        ("SERIES", "SeriesInstanceUID", {"2": "2.1", "3": "3.1", "4": "4.1"}),
        ("PATIENT", "PatientID", {"2": "A2", "3": "A3", "4": "A4*"}),
    ):
        assert offline(level, key) == [name["4"]]  # type: ignore[arg-type]
        assert offline(level, key, "se1") == [name["3"], name["4"]]  # type: ignore[arg-type]
        assert offline(level, key, "se2") == [name["4"]]  # type: ignore[arg-type]
        assert offline(level, key, "se1", "se2") == [name["2"], name["3"], name["4"]]  # type: ignore[arg-type]
    assert offline("IMAGE", "SOPInstanceUID", "se1", "se2") == ["2.1", "2.2", "3.1", "4.1"]
    def word(level: Level, key: str, value: str, **places: tuple[str, ...]) -> object:
        query = Query(level=level, keys=("InstanceAvailability",), matches=(match(key, "eq", value),), **places)
        return next(row for row in filled.query(query) if not isinstance(row, End))["InstanceAvailability"]

    for level, key, value in (("STUDY", "StudyInstanceUID", "2"), ("SERIES", "SeriesInstanceUID", "2.1"),
                              ("PATIENT", "PatientID", "A2"), ("IMAGE", "SOPInstanceUID", "2.1")):
        for near, unreachable, wanted in ((("se1", "x"), (), "ONLINE"), (("x",), (), "NEARLINE"), ((), (), "ONLINE"),
                                          (("se1",), ("se1",), "NEARLINE"), (("se1",), ("se1", "se2"), "OFFLINE")):
            assert word(level, key, value, near=near, unreachable=unreachable) == wanted, (level, near)  # type: ignore[arg-type]
    moved("2.2", se2="lost")
    assert offline("STUDY", "StudyInstanceUID", "se1") == ["2", "3", "4"]


def _instances(*uids: str):  # type: ignore[no-untyped-def]
    from catalog.wire import LocateRequest

    return LocateRequest(instances=uids)


@pytest.fixture
def many(store: Store) -> Store:
    """160 studies, more than the first page; each name has two groups that begin alike."""
    store.register([prepare(record(f"9.{n}", study=f"9.{n}", series=f"9.{n}.1", patient_id=f"M{n}",
                                   name=f"Long^N{n}=Long^M{n}", StudyDate=f"2024{n % 12 + 1:02d}01"))
                    for n in range(160)])  # fmt: skip
    return store


def test_an_answer_of_several_pages_has_every_entity_once(many: Store) -> None:
    name, year = match("PatientName", "wild", "LONG*"), match("StudyDate", "range", "20240101", "20241231")
    both = match("PatientName", "wild", "Long^*=Long^M*")
    for asked in ((name,), (year,), (name, year), (both,), ()):
        assert studies(many, *asked) == sorted(f"9.{n}" for n in range(160)), asked
    assert studies(many, match("PatientName", "wild", "Long^M1=*")) == ["9.1"]
    for level, key in (("PATIENT", "PatientID"), ("SERIES", "SeriesInstanceUID"), ("IMAGE", "SOPInstanceUID")):
        rows = ask(many, level, name, keys=(key,))  # type: ignore[arg-type]
        assert len(rows) == len({row[key] for row in rows}) == 160
    for limit in (0, 1, 19, 20, 21, 100, 159, 160, 161):
        found = list(many.query(Query(level="STUDY", keys=("StudyInstanceUID",), matches=(name,), limit=limit)))
        assert found[-1] == End(min(limit, 160), limit < 160)
        assert len({row["StudyInstanceUID"] for row in found if not isinstance(row, End)}) == min(limit, 160)


def test_what_matches_is_decided_when_it_is_asked_however_late_it_is_read(many: Store) -> None:
    answer = iter(many.query(Query(level="STUDY", keys=("StudyInstanceUID",))))
    next(answer)
    many.register([prepare(record("8.1", study="8.1", series="8.1.1"))])
    many.retire(["9.0", "9.150"])
    found = {row["StudyInstanceUID"] for row in answer if not isinstance(row, End)}
    assert "8.1" not in found
    assert "9.150" not in found  # what is gone when its page is read is left out
    assert len(found) >= 157


def test_an_answer_nobody_reads_holds_no_connection(many: Store, database: Database) -> None:
    everything = Query(level="STUDY", keys=("StudyInstanceUID",))
    given_up = [many.query(everything) for _ in range(40)]  # more than there are connections
    assert len(studies(many)) == 160
    given_up += [many.query(everything) for _ in range(10)]
    for each in given_up:
        next(iter(each))
    database.close()  # waits for what is being found in the background
    assert database.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
