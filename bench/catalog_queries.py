"""How fast is the catalog at a million instances? Fills SQLite and PostgreSQL and times queries and registration.

  python -m bench.catalog_queries [--instances 1000000] [--databases sqlite,postgresql] [--keep DIR]

50,000 patients, 100,000 studies, 200,000 series per million instances. Each query runs through Store.query as the
service does, with its rows read; the figure is the best of five, the worst beside it. PostgreSQL is the
pip-installed one, or Debian's with DGIS_TEST_POSTGRESQL=debian.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sqlalchemy import Table, insert, text

from catalog.prepare import name_groups, prepare
from catalog.schema import tables
from catalog.store import Store
from catalog.store.database import Database
from catalog.store.search import End
from catalog.text import name_key
from catalog.wire import LocateRequest, Match, Query
from tests.helpers.catalogdb import postgresql
from tests.helpers.catalogrecords import record

FAMILY = ["Novák", "Dvořák", "Müller", "García", "Smith", "Rossi", "Łukasz", "Ångström", "Işık", "Yamada", "Wang"]
GIVEN = ["Jan", "José", "Ann", "Zoé", "Björn", "Maria", "Tarou", "Li", "Anna", "Peter", "Eva", "Omar"]
CHUNK = 20_000
BATCHES = ((1, 50), (100, 20), (1000, 3))
RESULTS = Path(__file__).parent / "results"


def names(n: int) -> str:
    rnd = random.Random(n)
    middle = "".join(rnd.choices("abcdefghijklmnop", k=4))
    return f"{rnd.choice(FAMILY)}{middle}{n % 97:02d}^{rnd.choice(GIVEN)}^{middle[::-1]}"


def rows_of(total: int) -> Iterator[tuple[Table, Iterator[dict[str, Any]]]]:
    people, studies, series = total // 20, total // 10, total // 5
    modalities = ["CT", "MR", "CR", "US"]
    yield tables.placements, iter([{"id": 1, "locations": "se1\nse2"}, {"id": 2, "locations": "se3"}])
    yield tables.patients, (
        {"id": n, "identity": str(n), "patient_id": f"P{n:08d}", "issuer": "SITE_A", "patient_name": names(n),
         "patient_name_key": name_key(names(n)), "birth_date": f"{1930 + n % 80}0{1 + n % 9}1{n % 10}",
         "sex": "MF"[n % 2], "n_studies": 2, "n_series": 4, "n_instances": 20} for n in range(1, people + 1))
    yield tables.patient_names, (
        {"patient_fk": n, "place": 0, "name": group, "name_key": name_key(group)}
        for n in range(1, people + 1) for group in name_groups(names(n)))
    yield tables.studies, (
        {"id": n, "patient_fk": (n + 1) // 2, "study_uid": f"1.2.840.9.{n}", "study_time": "101500",
         "study_date": f"{2016 + n % 10}{1 + n // 10 % 12:02d}{1 + n // 120 % 28:02d}",
         "accession_number": f"ACC{n:09d}", "study_id": str(n),
         "study_description": f"Study of {GIVEN[n % 12]} {n % 999}",
         "referring_physician": names(n % 500), "referring_physician_key": name_key(names(n % 500)),
         "modalities": modalities[n % 4], "sop_classes": "1.2.840.10008.5.1.4.1.1.2", "n_series": 2, "n_instances": 10}
        for n in range(1, studies + 1))
    yield tables.study_modalities, (
        {"study_fk": n, "modality": modalities[n % 4], "n_instances": 10} for n in range(1, studies + 1))
    yield tables.series, (
        {"id": n, "study_fk": (n + 1) // 2, "series_uid": f"1.2.840.9.{(n + 1) // 2}.{n}", "series_number": str(n % 9),
         "modality": modalities[(n + 1) // 2 % 4], "series_description": f"t1 {n % 777} axial", "body_part": "HEAD",
         "protocol": f"protocol {n % 300}", "n_instances": 5} for n in range(1, series + 1))
    yield tables.series_placements, (
        {"series_fk": n, "placement_fk": 2 if n % 50 == 0 else 1, "n_instances": 5} for n in range(1, series + 1))
    yield tables.objects, (
        {"id": n, "object_key": f"v1/{n:064x}", "instance_uid": f"1.2.840.9.8.{n}", "role": "current",
         "sop_class_uid": "1.2.840.10008.5.1.4.1.1.2", "transfer_syntax_uid": "1.2.840.10008.1.2.1",
         "data_sha256": f"{n:064x}", "sha256": f"{n:064x}", "size": 525_000, "chunks": "", "pixel_offset": 1200,
         "received_at": n, "source_ae": "CT1", "called_ae": "DGIS", "issuer": "SITE_A", "spooled_at": "dgis",
         "placement_fk": 2 if (n + 4) // 5 % 50 == 0 else 1} for n in range(1, total + 1))
    yield tables.headers, (
        {"object_fk": n, "syntax": "1.2.840.10008.1.2.1", "complete": True, "zstd": b"x" * 300}
        for n in range(1, total + 1))
    yield tables.instances, (
        {"id": n, "series_fk": (n + 4) // 5, "object_fk": n, "instance_uid": f"1.2.840.9.8.{n}",
         "sop_class_uid": "1.2.840.10008.5.1.4.1.1.2", "transfer_syntax_uid": "1.2.840.10008.1.2.1",
         "instance_number": str(n % 5 + 1), "rows": 512, "columns": 512, "modality": modalities[n % 4]}
        for n in range(1, total + 1))
    yield tables.replicas, (
        {"object_fk": n, "location": place, "kind": "object", "state": "verified", "size": 525_000,
         "sha256": f"{n:064x}", "verified_at": n} for n in range(1, total + 1) for place in ("se1", "se2"))


def fill(database: Database, total: int) -> None:
    """Insert everything, a chunk a transaction, and let the planner look at it."""
    for table, rows in rows_of(total):
        began, count = time.monotonic(), 0
        while chunk := [row for _, row in zip(range(CHUNK), rows, strict=False)]:
            with database.writing() as connection:
                connection.execute(insert(table), chunk)
            count += len(chunk)
        print(f"    {table.name}: {count} rows in {time.monotonic() - began:.0f} s", file=sys.stderr)
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))
        if not database.is_sqlite:
            for table in ("patients", "studies", "series"):
                connection.execute(text(
                    f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), (SELECT max(id) FROM {table}))"))
            for table in ("objects", "instances", "placements"):
                connection.execute(text(
                    f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), (SELECT max(id) FROM {table}))"))


STUDY = ("StudyInstanceUID", "StudyDate", "PatientName", "PatientID", "AccessionNumber", "ModalitiesInStudy",
         "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances", "InstanceAvailability")
SERIES = ("SeriesInstanceUID", "Modality", "SeriesNumber", "SeriesDescription", "NumberOfSeriesRelatedInstances")
IMAGE = ("SOPInstanceUID", "SOPClassUID", "InstanceNumber", "Rows", "Columns")


def queries(total: int) -> list[tuple[str, Query]]:
    studies = total // 10
    middle = studies // 2

    def query(level: str, keys: tuple[str, ...], *matches: tuple[str, ...], **more: object) -> Query:
        wanted = [Match.model_validate({"keyword": keyword, "op": op, "values": values})
                  for keyword, op, *values in matches]
        return Query.model_validate({"level": level, "keys": keys, "matches": wanted, **more})

    return [
        ("study by UID", query("STUDY", STUDY, ("StudyInstanceUID", "eq", f"1.2.840.9.{middle}"))),
        ("100 studies by UID list", query("STUDY", STUDY, (
            "StudyInstanceUID", "in", *[f"1.2.840.9.{n}" for n in range(middle, middle + 100)]))),
        ("PatientID", query("STUDY", STUDY, ("PatientID", "eq", f"P{middle // 2:08d}"))),
        ("AccessionNumber", query("STUDY", STUDY, ("AccessionNumber", "eq", f"ACC{middle:09d}"))),
        ("one day", query("STUDY", STUDY, ("StudyDate", "eq", "20200515"))),
        ("one month, limit 500", query("STUDY", STUDY, ("StudyDate", "range", "20200501", "20200531"), limit=500)),
        ("one month and MR", query("STUDY", STUDY, ("StudyDate", "range", "20200501", "20200531"),
                                   ("ModalitiesInStudy", "eq", "MR"))),
        ("name prefix", query("STUDY", STUDY, ("PatientName", "wild", "NOVAKa*"))),
        ("name infix", query("STUDY", STUDY, ("PatientName", "wild", "*ab12^jose*"))),
        ("name infix, 500 of many", query("STUDY", STUDY, ("PatientName", "wild", "*jose*"), limit=500)),
        ("description infix", query("STUDY", STUDY, ("StudyDescription", "wild", "*of Ann 77*"))),
        ("referring physician infix", query("STUDY", STUDY, ("ReferringPhysicianName", "wild", "*ab12*"))),
        ("body part at study level, 500", query("STUDY", (*STUDY, "BodyPartExamined"),
                                                ("BodyPartExamined", "eq", "HEAD"), limit=500)),
        ("patients by birth date", query("PATIENT", ("PatientName", "NumberOfPatientRelatedInstances"),
                                         ("PatientBirthDate", "eq", "19500111"))),
        ("series of a study", query("SERIES", SERIES, ("StudyInstanceUID", "eq", f"1.2.840.9.{middle}"))),
        ("series description infix", query("SERIES", SERIES, ("SeriesDescription", "wild", "*1 77? ax*"), limit=500)),
        ("images of a series", query("IMAGE", IMAGE, (
            "SeriesInstanceUID", "eq", f"1.2.840.9.{middle}.{middle * 2}"))),
        ("image by UID", query("IMAGE", IMAGE, ("SOPInstanceUID", "eq", f"1.2.840.9.8.{total // 2}"))),
        ("500 studies with an SE away", query("STUDY", STUDY, ("StudyDate", "range", "20200501", ""), limit=500,
                                              unreachable=["se3"])),
        ("all studies, limit 500", query("STUDY", STUDY, limit=500)),
    ]


def timed(store: Store, query: Query) -> tuple[float, float, int]:
    spent, count = [], 0
    for _ in range(5):
        began = time.perf_counter()
        count = sum(not isinstance(row, End) for row in store.query(query))
        spent.append((time.perf_counter() - began) * 1000)
    return min(spent), max(spent), count


def registration(store: Store, size: int, batches: int) -> float:
    """Register new studies with header parsing, as the service does; instances a second."""
    made = [[record(f"1.9.{size}.{b}.{n}", study=f"1.9.{size}.{b}", series=f"1.9.{size}.{b}.{n % 4}",
                    patient_id=f"B{b}", Rows=512, Columns=512, StudyDescription="Bench", AccessionNumber="X",
                    InstitutionName="I", Manufacturer="M", ContentDate="20240101", InstanceNumber=str(n))
             for n in range(size)] for b in range(batches)]
    began = time.perf_counter()
    for one in made:
        store.register([prepare(each) for each in one])
    return size * batches / (time.perf_counter() - began)


def measure(name: str, url: str, total: int) -> dict[str, object]:
    """Fill one database and time it; prints as it goes, returns the figures."""
    database = Database(url)
    store = Store(database, site="bench")
    store.migrate()
    empty = {size: registration(store, size, batches) for size, batches in BATCHES}
    print(f"{name}, empty: register " + ", ".join(f"{size} a batch: {rate:.0f}/s" for size, rate in empty.items()))
    with database.writing() as connection:
        for table in reversed(tables.metadata.sorted_tables):
            if table.name != "catalog_state":
                connection.execute(table.delete())
    began = time.monotonic()
    fill(database, total)
    print(f"{name}, {total} instances, filled in {time.monotonic() - began:.0f} s")
    print(f"  {'query':32} {'best ms':>9} {'worst ms':>9} {'rows':>6}")
    times = []
    for label, query in queries(total):
        best, worst, count = timed(store, query)
        times.append({"query": label, "best_ms": best, "worst_ms": worst, "rows": count})
        print(f"  {label:32} {best:9.2f} {worst:9.2f} {count:6}")
    began = time.perf_counter()
    uids = [f"1.2.840.9.8.{n}" for n in range(1, total, max(1, total // 5000))]
    found = sum(1 for _ in store.locate(LocateRequest(instances=tuple(uids))))
    locate_ms = (time.perf_counter() - began) * 1000
    print(f"  locate {found} instances by UID: {locate_ms:.0f} ms")
    full = {size: registration(store, size + 1, batches) for size, batches in BATCHES}
    print("  register " + ", ".join(f"{size} a batch: {rate:.0f}/s" for size, rate in full.items()))
    database.close()
    return {"database": name, "instances": total, "queries": times, "located": found, "locate_ms": locate_ms,
            "registered_per_second_empty": empty, "registered_per_second_full": full}


def main(argv: Sequence[str] = ()) -> None:
    """Measure, print, write bench/results/catalog_queries.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=1_000_000)
    parser.add_argument("--databases", default="sqlite,postgresql")
    parser.add_argument("--keep", type=Path)
    arguments = parser.parse_args(argv)
    figures = []
    with ExitStack() as stack:
        home = arguments.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name in arguments.databases.split(","):
            url = f"sqlite:///{home / 'bench.sqlite'}"
            if name == "postgresql":
                url = stack.enter_context(postgresql(home)).fresh()
            figures.append(measure(name, url, arguments.instances))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "catalog_queries.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
