"""Find instances by any mix of UIDs, with every copy of each."""
from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, FromClause, Select, func, or_, select, true

from catalog.errors import UnsupportedQuery
from catalog.prepare import EPOCH
from catalog.schema.tables import instances, objects, patients, replicas, series, studies
from catalog.store.database import MOST_ALTERNATIVES, Database
from catalog.store.records import object_ref
from catalog.store.visible import Visible
from catalog.text import INDEXED_LENGTH, clean
from catalog.wire import Located, LocateRequest, PatientKey, ReplicaRef

_PAGE = 500
_FILED = instances.join(series, instances.c.series_fk == series.c.id).join(studies, series.c.study_fk == studies.c.id)


def run(database: Database, request: LocateRequest, seen: Visible | None = None) -> Iterator[Located]:
    """Find the instances now; give an iterator that reads them and their copies page by page.

    `seen` is what the caller may have of all that is there; None: everything.

    Raises:
        UnsupportedQuery: the request names nothing at all.
    """
    statement = ids_statement(database, request, seen)
    with database.reading() as connection:
        found = array("q", connection.execute(statement).scalars())
    return _pages(database, found)


def ids_statement(database: Database, request: LocateRequest, seen: Visible | None = None) -> Select[Any]:
    """Build the statement that finds the instances: a union inside each list, the intersection of the lists."""
    conditions: list[ColumnElement[bool]] = []
    for column, values in ((studies.c.study_uid, request.studies), (series.c.series_uid, request.series),
                           (instances.c.instance_uid, request.instances)):
        if values:
            conditions.append(database.among(column, list({clean(value) for value in values})))
    if request.patients:
        conditions.append(_patients(database, request.patients))
    if not conditions:
        raise UnsupportedQuery("locate needs at least one patient, study, series or instance")
    if seen is not None:
        conditions.append(seen(studies))
    # Only the tables that are named: each other one would be a page read for every instance
    source: FromClause = instances
    if request.patients:
        source = _FILED.join(patients, studies.c.patient_fk == patients.c.id)
    elif request.studies or seen is not None:
        source = _FILED
    elif request.series:
        source = instances.join(series, instances.c.series_fk == series.c.id)
    return select(instances.c.id).select_from(source).where(*conditions)


def hidden(
    database: Database, connection: Connection, seen: Visible | None, keys: Sequence[str], uids: Sequence[str]
) -> int:
    """Count how many of these object keys and SOP Instance UIDs are not there for who may see `seen`."""
    missing = 0
    for column, values in ((objects.c.object_key, keys), (instances.c.instance_uid, uids)):
        if values:
            wanted = {clean(value) for value in values}
            source = _FILED.join(objects, instances.c.object_fk == objects.c.id)
            conditions = [database.among(column, list(wanted)), *([] if seen is None else [seen(studies)])]
            found = select(func.count()).select_from(source).where(*conditions)
            missing += len(wanted) - int(connection.execute(found).scalar_one())
    return missing


def _patients(database: Database, wanted: Sequence[PatientKey]) -> ColumnElement[bool]:
    """Build one condition per issuer: SQLite takes at most a thousand alternatives."""
    ids: dict[str | None, list[str]] = defaultdict(list)
    for one in wanted:
        issuer = None if one.issuer is None else clean(one.issuer)[:INDEXED_LENGTH]
        ids[issuer].append(clean(one.patient_id)[:INDEXED_LENGTH])
    if len(ids) > MOST_ALTERNATIVES:
        raise UnsupportedQuery(f"patients of more than {MOST_ALTERNATIVES} issuers cannot be asked for at once")
    return or_(*(
        database.among(patients.c.patient_id, found) & (patients.c.issuer == issuer if issuer is not None else true())
        for issuer, found in ids.items()))


def _pages(database: Database, found: array[int]) -> Iterator[Located]:
    for start in range(0, len(found), _PAGE):
        yield from _page(database, list(found[start : start + _PAGE]))


def _page(database: Database, ids: list[int]) -> list[Located]:
    wanted = (select(objects, instances.c.id.label("instance_id"), series.c.series_uid, studies.c.study_uid,
                     instances.c.instance_number, instances.c.frames)
              .select_from(_FILED.join(objects, instances.c.object_fk == objects.c.id))
              .where(database.among(instances.c.id, ids)).order_by(instances.c.id))
    copies: dict[int, list[ReplicaRef]] = defaultdict(list)
    with database.reading() as connection:
        rows = connection.execute(wanted).all()
        for row in connection.execute(
            select(replicas).where(database.among(replicas.c.object_fk, [row.id for row in rows]))
            .order_by(replicas.c.id)
        ):
            at = None if row.verified_at is None else EPOCH + timedelta(microseconds=row.verified_at)
            copies[row.object_fk].append(
                ReplicaRef(location=row.location, kind=row.kind, state=row.state, verified_at=at))
    return [
        Located(instance_uid=row.instance_uid, series_uid=row.series_uid, study_uid=row.study_uid,
                sop_class_uid=row.sop_class_uid, transfer_syntax_uid=row.transfer_syntax_uid,
                instance_number=_integer(row.instance_number), number_of_frames=row.frames, object=object_ref(row),
                replicas=tuple(copies[row.id]))
        for row in rows
    ]


def _integer(text: str | None) -> int | None:
    digits = (text or "").removeprefix("-")
    return int(text or "") if digits.isascii() and digits.isdigit() and len(digits) <= 12 else None
