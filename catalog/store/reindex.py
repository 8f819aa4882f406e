"""Rebuild the typed columns from the registered headers, page by page, with a mark to go on from."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, FromClause, Table, bindparam, delete, func, insert, select, update

from catalog.header import Value
from catalog.keys import IMAGE_KEYS
from catalog.prepare import Prepared, group_keys
from catalog.schema.tables import catalog_state, instances, patient_names, patients, series, studies
from catalog.store.database import Database
from catalog.store.feed import Feed
from catalog.store.filing import Filed, Filing
from catalog.store.records import prepared_again

_FILED = instances.join(series, instances.c.series_fk == series.c.id).join(studies, series.c.study_fk == studies.c.id)


def reindex_page(database: Database, connection: Connection, feed: Feed, size: int) -> int:
    """Rebuild the next `size` instances and what their parents have from them; 0 when all are done.

    The first instance of a parent sets all of the parent's columns again, later ones fill what is unknown, exactly
    as when they were registered. An instance that now belongs elsewhere is filed anew.
    """
    after = connection.execute(select(catalog_state.c.reindex_after)).scalar_one()
    rows = connection.execute(
        select(instances.c.id, instances.c.object_fk, instances.c.series_fk, instances.c.modality,
               series.c.study_fk, series.c.series_uid, studies.c.study_uid, studies.c.patient_fk)
        .select_from(_FILED).where(instances.c.id > (after or 0)).order_by(instances.c.id).limit(size)).mappings().all()
    if not rows:
        connection.execute(update(catalog_state).values(reindex_after=None))
        return 0
    by_object = {filed[1]: filed for filed in
                 prepared_again(database, connection, [row["object_fk"] for row in rows])}
    pairs = [(row, by_object[row["object_fk"]]) for row in rows]
    renamed = _of_another_patient(database, connection, pairs)
    _file_studies_anew(database, connection, renamed)
    pairs = [(row, filed) for row, filed in pairs if row["study_fk"] not in renamed]
    staying = [(row, filed) for row, filed in pairs if _stays(row, filed[0])]
    Page(database, connection).rewrite(staying)
    moving = [filed for row, filed in pairs if not _stays(row, filed[0])]
    filing = Filing(database, connection)
    filing.detach([filed[0].record.instance_uid for filed in moving])
    filing.attach(moving)
    connection.execute(update(catalog_state).values(reindex_after=rows[-1]["id"]))
    return len(rows)


_Pairs = Sequence[tuple[Mapping[Any, Any], Filed]]


def _of_another_patient(database: Database, connection: Connection, pairs: _Pairs) -> set[int]:
    """Find studies whose first instance now names another patient than the study has."""
    first = {row.study_fk: (row.first, row.identity) for row in connection.execute(
        select(series.c.study_fk, func.min(instances.c.id).label("first"),
               func.max(patients.c.identity).label("identity"))
        .select_from(_FILED.join(patients, studies.c.patient_fk == patients.c.id))
        .where(database.among(series.c.study_fk, sorted({row["study_fk"] for row, _ in pairs})))
        .group_by(series.c.study_fk))}
    return {row["study_fk"] for row, (one, _, _) in pairs
            if row["id"] == first[row["study_fk"]][0] and one.identity != first[row["study_fk"]][1]}


def _file_studies_anew(database: Database, connection: Connection, study_fks: set[int]) -> None:
    """Take whole studies out and file them again, under the patient of their first instance."""
    filing = Filing(database, connection)
    for study_fk in sorted(study_fks):
        object_ids = connection.execute(
            select(instances.c.object_fk).join(series, instances.c.series_fk == series.c.id)
            .where(series.c.study_fk == study_fk)).scalars().all()
        filed = prepared_again(database, connection, object_ids)
        filing.detach([one.record.instance_uid for one, _, _ in filed])
        filing.attach(filed)


def _stays(row: Mapping[Any, Any], one: Prepared) -> bool:
    return (row["study_uid"], row["series_uid"], row["modality"]) == (one.study_uid, one.series_uid, one.modality)


class Page:
    """Rewrite one page of instances whose place in the hierarchy is unchanged."""

    def __init__(self, database: Database, connection: Connection) -> None:
        self._database, self._connection = database, connection

    def rewrite(self, pairs: _Pairs) -> None:
        """Set the columns of the instances, and those of parents whose first instance is here."""
        if not pairs:
            return
        names = [key.column for key in IMAGE_KEYS] + [key.column + "_key" for key in IMAGE_KEYS if key.kind == "name"]
        rows = [{"b_id": row["id"], **{"b_" + name: filed[0].columns.instance[name] for name in names}}
                for row, filed in pairs]
        self._connection.execute(
            update(instances).where(instances.c.id == bindparam("b_id"))
            .values({name: bindparam("b_" + name) for name in names}), rows)
        self._parents(series, "series_fk", instances, instances.c.series_fk, pairs)
        self._parents(studies, "study_fk", _FILED, series.c.study_fk, pairs)
        self._parents(patients, "patient_fk", _FILED, studies.c.patient_fk, pairs)

    def _parents(
        self, table: Table, key: str, source: FromClause, column: Any, pairs: _Pairs
    ) -> None:
        ids = sorted({row[key] for row, _ in pairs})
        first = {row[0]: row[1] for row in self._connection.execute(
            select(column, func.min(instances.c.id)).select_from(source)
            .where(self._database.among(column, ids)).group_by(column))}
        have = {row["id"]: dict(row) for row in self._connection.execute(
            select(table).where(self._database.among(table.c.id, ids))).mappings()}
        renamed = set()
        for row, (one, _, _) in pairs:
            target, values = have[row[key]], _columns_of(table, one)
            if table is patients and target["identity"] != one.identity:
                continue  # a second patient's instance never describes the first
            new = {name: value for name, value in values.items() if value != target[name]
                   and (row["id"] == first[row[key]] or (target[name] is None and value is not None))}
            if new:
                self._connection.execute(update(table).where(table.c.id == target["id"]).values(new))
                target.update(new)
                renamed |= {target["id"]} if "patient_name" in new else set()
        if renamed:
            self._rename([have[one] for one in sorted(renamed)])

    def _rename(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._connection.execute(delete(patient_names).where(
            self._database.among(patient_names.c.patient_fk, [row["id"] for row in rows])))
        groups = [{"patient_fk": row["id"], "place": place, "name": name, "name_key": key} for row in rows
                  if row["patient_name"] for place, (name, key) in enumerate(group_keys(row["patient_name"]))]
        if groups:
            self._connection.execute(insert(patient_names), groups)


def _columns_of(table: Table, one: Prepared) -> Mapping[str, Value]:
    if table is patients:
        return one.columns.patient
    return one.columns.study if table is studies else one.columns.series
