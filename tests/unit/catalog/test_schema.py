"""Migrations, reindex, and that the listed keys are index-backed on both databases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, insert, text, update

from catalog.errors import SchemaMismatch
from catalog.schema import tables
from catalog.schema.tables import metadata
from catalog.service import CatalogService
from catalog.store import Store
from catalog.store.database import Database
from catalog.store.locate import ids_statement as locate_statement
from catalog.store.matching import Matching
from catalog.store.search import End, ids_statement
from catalog.wire import LocateRequest, Match, Query
from tests.helpers.catalogrecords import batch, record


def test_migrations_make_exactly_the_tables(database: Database) -> None:
    with database.reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_an_empty_database_is_told_from_an_old_one(new_url: Callable[..., str]) -> None:
    database = Database(new_url(migrated=False))
    store = Store(database, site="a")
    assert store.is_empty()
    with pytest.raises(SchemaMismatch, match="migrate"):
        store.check()
    store.migrate()
    store.migrate()
    store.check()
    with database.writing() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaMismatch, match="9999"):
        store.check()
    assert not store.is_empty()
    database.close()


def everything(store: Store) -> list[Any]:
    keys = {
        "PATIENT": ("PatientName", "PatientID", "PatientSex"),
        "STUDY": ("StudyDescription", "StudyDate"),
        "SERIES": ("SeriesInstanceUID", "Modality"),
        "IMAGE": ("SOPInstanceUID", "InstanceNumber", "Rows"),
    }
    found = [
        sorted(str(row) for row in store.query(Query.model_validate({"level": level, "keys": wanted})))
        for level, wanted in keys.items()
    ]
    return [*found, studies_of(store, "MULLER*")]


def studies_of(store: Store, name: str) -> int:
    query = Query(level="STUDY", matches=(Match(keyword="PatientName", op="wild", values=(name,)),))
    return sum(not isinstance(row, End) for row in store.query(query))


@pytest.fixture
def filled(service: CatalogService) -> CatalogService:
    service.register(
        batch(
            *[
                record(
                    f"{study}.{n}",
                    study=str(study),
                    series=f"{study}.{n % 2}",
                    patient_id=f"P{study % 2}",
                    name="Müller^Jörg" if study % 2 else "Roe^Ann",
                    SpecificCharacterSet="ISO_IR 192",
                    StudyDescription="" if n == 0 else f"d{n}",
                    Rows=n,
                    InstanceNumber=str(n),
                )
                for study in range(4)
                for n in range(5)
            ]
        )
    )
    service.register(batch(record("0.9", study="0", series="0.0", patient_id="STRANGER", name="Other^One")))
    return service


def spoil(connection: Connection) -> None:
    connection.execute(update(tables.patients).values(patient_name="x", patient_name_key="x", sex="O"))
    connection.execute(text("DELETE FROM patient_names"))
    connection.execute(update(tables.studies).values(study_description="wrong", study_date=None))
    connection.execute(update(tables.series).values(series_description="wrong"))
    connection.execute(update(tables.instances).values(rows=None, instance_number="9"))


def test_reindex_rebuilds_every_column_from_the_headers(
    filled: CatalogService, store: Store, database: Database
) -> None:
    before = everything(store)
    with database.writing() as connection:
        spoil(connection)
    assert everything(store) != before
    assert sum(store.reindex(page=3)) == 21
    assert everything(store) == before


def test_an_interrupted_reindex_goes_on(filled: CatalogService, store: Store, database: Database) -> None:
    before = everything(store)
    with database.writing() as connection:
        spoil(connection)
    running: Iterator[int] = store.reindex(page=6)
    assert [next(running), next(running)] == [6, 6]
    del running
    assert list(Store(database, site="a").reindex(page=6)) == [6, 3]
    assert everything(store) == before
    assert sum(store.reindex(page=100)) == 21


def test_reindex_files_anew_what_belongs_elsewhere(filled: CatalogService, store: Store, database: Database) -> None:
    """As when a newer version reads a UID or a modality differently."""
    with database.writing() as connection:
        connection.execute(text("UPDATE series SET series_uid = 'other' WHERE series_uid = '1.0'"))
        connection.execute(text("UPDATE instances SET modality = 'XX' WHERE instance_uid = '2.2'"))
        connection.execute(
            text(
                "UPDATE study_modalities SET modality = 'XX', n_instances = 1 WHERE study_fk = "
                "(SELECT id FROM studies WHERE study_uid = '2')"
            )
        )
    list(store.reindex(page=4))
    query = Query(
        level="SERIES",
        keys=("SeriesInstanceUID", "NumberOfSeriesRelatedInstances"),
        matches=(Match(keyword="StudyInstanceUID", op="eq", values=("1",)),),
    )
    rows = [row for row in store.query(query) if not isinstance(row, End)]
    assert sorted((row["SeriesInstanceUID"], row["NumberOfSeriesRelatedInstances"]) for row in rows) == [
        ("1.0", 3),
        ("1.1", 2),
    ]
    assert store.instance_count() == 21


def test_reindex_moves_a_study_whose_patient_is_read_differently(
    filled: CatalogService, store: Store, database: Database
) -> None:
    before = everything(store)
    with database.writing() as connection:
        connection.execute(text("UPDATE patients SET identity = 'old', patient_id = 'misread' WHERE patient_id = 'P1'"))
    list(store.reindex(page=7))
    assert everything(store) == before
    keys = ("PatientID", "NumberOfPatientRelatedStudies", "NumberOfPatientRelatedInstances")
    rows = [row for row in store.query(Query(level="PATIENT", keys=keys)) if not isinstance(row, End)]
    assert sorted(tuple(row.values()) for row in rows) == [("P0", 2, 11), ("P1", 2, 10)]


# -- the plans ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def large(database: Database) -> Database:
    """Enough rows that a planner prefers an index where there is one."""
    with database.writing() as connection:
        connection.execute(insert(tables.placements), [{"id": 1, "locations": "se1"}])
        connection.execute(
            insert(tables.patients),
            [
                {
                    "id": n,
                    "identity": str(n),
                    "patient_id": f"P{n:06d}",
                    "issuer": "A",
                    "patient_name": f"N{n}",
                    "n_studies": 1,
                    "n_series": 1,
                    "n_instances": 2,
                }
                for n in range(1, 3001)
            ],
        )
        connection.execute(
            insert(tables.patient_names),
            [
                {"patient_fk": n, "place": 0, "name": f"Name{n:06d}^X", "name_key": f"name{n:06d}^x"}
                for n in range(1, 3001)
            ],
        )
        connection.execute(
            insert(tables.studies),
            [
                {
                    "id": n,
                    "patient_fk": n,
                    "study_uid": f"1.2.{n}",
                    "study_date": f"{1990 + n % 30}{1 + n % 12:02d}{1 + n % 28:02d}",
                    "accession_number": f"A{n:06d}",
                    "modalities": "CT",
                    "sop_classes": "1",
                    "n_series": 1,
                    "n_instances": 2,
                }
                for n in range(1, 3001)
            ],
        )
        connection.execute(
            insert(tables.series),
            [
                {"id": n, "study_fk": n, "series_uid": f"1.2.{n}.1", "modality": "CT", "n_instances": 2}
                for n in range(1, 3001)
            ],
        )
        connection.execute(
            insert(tables.objects),
            [
                {
                    "id": n,
                    "object_key": f"k{n}",
                    "instance_uid": f"1.2.3.{n}",
                    "role": "current",
                    "sop_class_uid": "1",
                    "transfer_syntax_uid": "1",
                    "data_sha256": "x",
                    "sha256": "x",
                    "size": 1,
                    "chunks": "",
                    "received_at": 1,
                    "source_ae": "",
                    "called_ae": "",
                    "issuer": "",
                    "spooled_at": "",
                    "placement_fk": 1,
                }
                for n in range(1, 6001)
            ],
        )
        connection.execute(
            insert(tables.instances),
            [
                {
                    "id": n,
                    "series_fk": (n + 1) // 2,
                    "object_fk": n,
                    "instance_uid": f"1.2.3.{n}",
                    "sop_class_uid": "1",
                    "transfer_syntax_uid": "1",
                    "modality": "CT",
                }
                for n in range(1, 6001)
            ],
        )
    if not database.is_sqlite:
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("ANALYZE"))
    return database


def plan(database: Database, statement: Any) -> str:
    compiled = statement.compile(database.engine)
    with database.reading() as connection:
        if not database.is_sqlite:  # as if there were a million rows: a small table is read whole for good reasons
            connection.execute(text("SET LOCAL enable_seqscan = off"))
        prefix = "EXPLAIN QUERY PLAN " if database.is_sqlite else "EXPLAIN "
        parameters = compiled.construct_params()
        if database.is_sqlite:
            rows = connection.exec_driver_sql(
                prefix + str(compiled), tuple(parameters[name] for name in compiled.positiontup)
            )
            return "\n".join(str(row[3]) for row in rows)
        return "\n".join(str(row[0]) for row in connection.exec_driver_sql(prefix + str(compiled), parameters))


def scans(database: Database, found: str) -> list[str]:
    """Name the lines that read a whole table (or a whole index)."""
    if database.is_sqlite:
        return [line for line in found.splitlines() if line.startswith("SCAN") and "VIRTUAL TABLE" not in line]
    return [
        line
        for line in found.splitlines()
        if "Seq Scan" in line
        or (
            "Index" in line
            and " Cond" not in line
            and ("Index Scan" in line or "Index Only Scan" in line)
            and not _has_condition(found, line)
        )
    ]


def _has_condition(found: str, line: str) -> bool:
    lines = found.splitlines()
    following = lines[lines.index(line) + 1 : lines.index(line) + 3]
    return any("Index Cond" in one for one in following)


CASES = [
    ("STUDY", "StudyInstanceUID", "eq", ("1.2.77",), "uq_studies_study_uid"),
    ("STUDY", "StudyInstanceUID", "in", ("1.2.77", "1.2.78"), "uq_studies_study_uid"),
    ("STUDY", "PatientID", "eq", ("P000077",), "ix_patients_patient_id"),
    ("STUDY", "PatientID", "wild", ("P00007*",), "ix_patients_patient_id"),
    ("STUDY", "AccessionNumber", "eq", ("A000077",), "ix_studies_accession_number"),
    ("STUDY", "AccessionNumber", "wild", ("A00007?",), "ix_studies_accession_number"),
    ("STUDY", "StudyDate", "eq", ("19990101",), "ix_studies_study_date"),
    ("STUDY", "StudyDate", "range", ("19990101", "19990107"), "ix_studies_study_date"),
    ("STUDY", "StudyDate", "range", ("20190601", ""), "ix_studies_study_date"),
    ("STUDY", "PatientName", "wild", ("NAME00007*",), "ix_patient_names_name_key"),
    ("STUDY", "PatientName", "eq", ("Name000077^X",), "ix_patient_names_name_key"),
    ("PATIENT", "PatientName", "wild", ("Name00007*^x",), "ix_patient_names_name_key"),
    ("PATIENT", "PatientID", "eq", ("P000077",), "ix_patients_patient_id"),
    ("SERIES", "StudyInstanceUID", "eq", ("1.2.77",), "uq_studies_study_uid"),
    ("SERIES", "SeriesInstanceUID", "eq", ("1.2.77.1",), "ix_series_series_uid"),
    ("IMAGE", "SeriesInstanceUID", "eq", ("1.2.77.1",), "ix_series_series_uid"),
    ("IMAGE", "StudyInstanceUID", "eq", ("1.2.77",), "uq_studies_study_uid"),
    ("IMAGE", "SOPInstanceUID", "eq", ("1.2.3.77",), "uq_instances_instance_uid"),
    ("IMAGE", "SOPInstanceUID", "in", ("1.2.3.77", "1.2.3.78"), "uq_instances_instance_uid"),
    ("STUDY", "SOPInstanceUID", "eq", ("1.2.3.77",), "uq_instances_instance_uid"),
]


LOCATE_CASES: list[dict[str, Any]] = [
    {"studies": ["1.2.77"]},
    {"series": ["1.2.77.1"]},
    {"instances": ["1.2.3.77", "1.2.3.78"]},
    {"studies": ["1.2.77"], "series": ["1.2.77.1"], "instances": ["1.2.3.153"]},
    {"patients": [{"patient_id": "P000077"}, {"patient_id": "P000078", "issuer": "A"}]},
]


def test_listed_keys_and_locate_are_index_backed(large: Database) -> None:
    for level, keyword, op, values, index in CASES:
        match = Match.model_validate({"keyword": keyword, "op": op, "values": values})
        query = Query.model_validate({"level": level, "matches": [match], "limit": 100})
        found = plan(large, ids_statement(Matching(large, query), query))
        assert index in found, (level, keyword, op, found)
        assert scans(large, found) == [], (level, keyword, op, found)

    for lists in LOCATE_CASES:
        found = plan(large, locate_statement(large, LocateRequest.model_validate(lists)))
        assert scans(large, found) == [], found
