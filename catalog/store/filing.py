"""File instances under their series, study and patient, and take them out again, keeping every count right.

Everything here runs inside the one writing transaction.
"""
from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import Connection, Table, Update, bindparam, delete, insert, select, update

from catalog.header import Value
from catalog.prepare import Prepared, group_keys
from catalog.schema.tables import (
    instances,
    objects,
    patient_names,
    patients,
    series,
    series_placements,
    studies,
    study_modalities,
    study_sop_classes,
)
from catalog.store.database import Database

Filed = tuple[Prepared, int, int]  # what, its object's id, its placement's id
_Parents = dict[Any, dict[str, Any]]  # natural key -> row


class Filing:
    """The operations `attach` and `detach` on one open writing transaction."""

    def __init__(self, database: Database, connection: Connection) -> None:
        self._database, self._connection = database, connection

    def attach(self, filed: Sequence[Filed]) -> list[tuple[Prepared, str]]:
        """Insert instances and whatever parents are missing; fill columns of parents that were unknown so far.

        Gives back the instances whose study already has another patient, with that other identity: they are filed
        all the same, under the study's first patient.
        """
        if not filed:
            return []
        study_rows = self._present(studies, "study_uid", {one.study_uid for one, _, _ in filed})
        patient_rows = self._patients([one for one, _, _ in filed], set(study_rows))
        strangers = self._studies([one for one, _, _ in filed], study_rows, patient_rows)
        series_rows = self._series([one for one, _, _ in filed], study_rows)
        rows = []
        for one, object_fk, _ in filed:
            study_fk = study_rows[one.study_uid]["id"]
            row = dict(one.columns.instance)
            row.update(series_fk=series_rows[study_fk, one.series_uid]["id"], object_fk=object_fk,
                       transfer_syntax_uid=one.record.transfer_syntax_uid, modality=one.modality)
            rows.append(row)
        self._database.insert(self._connection, instances, rows)
        tally = _Tally()
        for (one, _, placement_fk), row in zip(filed, rows, strict=True):
            study = study_rows[one.study_uid]
            tally.count(study["patient_fk"], study["id"], int(row["series_fk"] or 0), placement_fk, one.modality,
                        one.record.sop_class_uid, +1)
        self._apply(tally)
        return strangers

    def detach(self, instance_uids: Sequence[str]) -> list[int]:
        """Delete instances, and parents that are empty after it; give the ids of their objects."""
        found = self._connection.execute(
            select(instances.c.id, instances.c.object_fk, instances.c.series_fk, instances.c.modality,
                   instances.c.sop_class_uid, series.c.study_fk, studies.c.patient_fk, objects.c.placement_fk)
            .select_from(instances.join(series, instances.c.series_fk == series.c.id)
                         .join(studies, series.c.study_fk == studies.c.id)
                         .join(objects, instances.c.object_fk == objects.c.id))
            .where(self._database.among(instances.c.instance_uid, list(instance_uids)))
        ).all()
        tally = _Tally()
        for row in found:
            tally.count(row.patient_fk, row.study_fk, row.series_fk, row.placement_fk, row.modality,
                        row.sop_class_uid, -1)
        self._connection.execute(
            delete(instances).where(self._database.among(instances.c.id, [row.id for row in found])))
        self._apply(tally)
        self._drop_empty(tally)
        return [row.object_fk for row in found]

    def move_placement(self, moves: Iterable[tuple[int, int, int]]) -> None:
        """Count instances at another placement: (series id, old placement id, new placement id) each."""
        deltas: Counter[tuple[int, int]] = Counter()
        for series_fk, old, new in moves:
            deltas[series_fk, old] -= 1
            deltas[series_fk, new] += 1
        self._bump_pairs(series_placements, "series_fk", "placement_fk", deltas)

    # -- parents ---------------------------------------------------------------------------------------------------

    def _patients(self, filed: Sequence[Prepared], known: set[Any]) -> _Parents:
        """Find or make the patients; a study that is `known` keeps its first one: none is made for nothing."""
        wanted: dict[Any, dict[str, Value]] = {}
        first: dict[str, str] = {}
        for one in filed:
            _merge(wanted, one.identity, {**one.columns.patient, "identity": one.identity})
            first.setdefault(one.study_uid, one.identity)
        present = self._present(patients, "identity", wanted)
        needed = {identity for study_uid, identity in first.items() if study_uid not in known}
        before = set(present)
        renamed = self._fill(patients, present, wanted, "patient_name")
        self._create(patients, present, {key: row for key, row in wanted.items() if key in needed})
        self._name([present[key] for key in present if key not in before or key in renamed])
        return present

    def _studies(
        self, filed: Sequence[Prepared], present: _Parents, patient_rows: _Parents
    ) -> list[tuple[Prepared, str]]:
        """Make the studies that are not present; give the instances whose study has another patient."""
        wanted: dict[Any, dict[str, Value]] = {}
        first: dict[str, str] = {}
        for one in filed:
            first.setdefault(one.study_uid, one.identity)
            _merge(wanted, one.study_uid, dict(one.columns.study))
        self._fill(studies, present, wanted)
        for uid, row in wanted.items():
            if uid not in present:
                row["patient_fk"] = patient_rows[first[uid]]["id"]
        self._create(studies, present, wanted)
        identities = {row["id"]: key for key, row in patient_rows.items()}
        return [(one, one.identity) for one in filed
                if identities.get(present[one.study_uid]["patient_fk"]) != one.identity]

    def _series(self, filed: Sequence[Prepared], study_rows: _Parents) -> _Parents:
        wanted: dict[Any, dict[str, Value]] = {}
        for one in filed:
            study_fk = study_rows[one.study_uid]["id"]
            _merge(wanted, (study_fk, one.series_uid), {**one.columns.series, "study_fk": study_fk})
        where = self._database.among(series.c.series_uid, [one.series_uid for one in filed])
        present = {(row["study_fk"], row["series_uid"]): row for row in self._rows(select(series).where(where))}
        self._fill(series, present, wanted)
        before = set(present)
        self._create(series, present, wanted)
        added = Counter(key[0] for key in present if key not in before)
        patient_of = {row["id"]: row["patient_fk"] for row in study_rows.values()}
        self._bump(studies, {study_fk: {"n_series": n} for study_fk, n in added.items()})
        per_patient: Counter[int] = Counter()
        for study_fk, n in added.items():
            per_patient[patient_of[study_fk]] += n
        self._bump(patients, {patient_fk: {"n_series": n} for patient_fk, n in per_patient.items()})
        return present

    def _present(self, table: Table, key: str, values: Iterable[Any]) -> _Parents:
        where = self._database.among(table.c[key], list(values))
        return {row[key]: row for row in self._rows(select(table).where(where))}

    def _rows(self, statement: Any) -> list[dict[str, Any]]:
        return [{str(name): value for name, value in row.items()}
                for row in self._connection.execute(statement).mappings()]

    def _create(self, table: Table, present: _Parents, wanted: Mapping[Any, dict[str, Value]]) -> None:
        """Insert the wanted rows that are not present, and add them to `present` with their new ids."""
        missing = [key for key in wanted if key not in present]
        if not missing:
            return
        rows = [dict(wanted[key]) for key in missing]
        ids = self._database.new_ids(self._connection, table, len(rows))
        for key, row, new in zip(missing, rows, ids, strict=True):
            row["id"] = new
            present[key] = row
        self._connection.execute(insert(table), rows)
        if table is studies:
            added = Counter(int(present[key]["patient_fk"]) for key in missing)
            self._bump(patients, {patient_fk: {"n_studies": n} for patient_fk, n in added.items()})

    def _fill(self, table: Table, present: _Parents, wanted: Mapping[Any, dict[str, Value]], *watch: str) -> set[Any]:
        """Write values that a parent lacked so far; never change one that it has. Tell which had `watch` filled."""
        touched: set[Any] = set()
        for key, row in present.items():
            new = {name: value for name, value in wanted.get(key, {}).items()
                   if value is not None and row.get(name) is None}
            if new:
                self._connection.execute(update(table).where(table.c.id == row["id"]).values(new))
                row.update(new)
                touched |= {key} if set(watch) & set(new) else set()
        return touched

    def _name(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the component groups of new names."""
        groups = [{"patient_fk": row["id"], "place": place, "name": name, "name_key": key}
                  for row in rows if row["patient_name"]
                  for place, (name, key) in enumerate(group_keys(row["patient_name"]))]
        if groups:
            self._connection.execute(insert(patient_names), groups)

    # -- counts ----------------------------------------------------------------------------------------------------

    def _apply(self, tally: _Tally) -> None:
        for table, counted in ((patients, tally.patients), (studies, tally.studies), (series, tally.series)):
            self._bump(table, {key: {"n_instances": n} for key, n in counted.items()})
        self._bump_pairs(series_placements, "series_fk", "placement_fk", tally.placements)
        changed = self._bump_pairs(study_modalities, "study_fk", "modality", tally.modalities)
        self._summarize(study_modalities, "modality", "modalities", changed)
        changed = self._bump_pairs(study_sop_classes, "study_fk", "sop_class_uid", tally.sop_classes)
        self._summarize(study_sop_classes, "sop_class_uid", "sop_classes", changed)

    def _bump(self, table: Table, deltas: Mapping[int, Mapping[str, int]]) -> None:
        """Add to the counts of rows by id; every row's mapping must name the same columns."""
        rows = [{"b_id": key, **{"b_" + name: n for name, n in sorted(row.items())}} for key, row in deltas.items()]
        if rows:
            names = tuple(name[2:] for name in rows[0] if name != "b_id")
            self._connection.execute(_bumped(table, names), rows)

    def _bump_pairs(self, table: Table, left: str, right: str, deltas: Mapping[tuple[Any, Any], int]) -> set[Any]:
        """Add to counts keyed by two columns; rows that reach zero go. Tell on which `left` rows came or went."""
        deltas = {key: n for key, n in deltas.items() if n}
        if not deltas:
            return set()
        lefts = sorted({key[0] for key in deltas})
        where = self._database.among(table.c[left], lefts)
        have = {(row[0], row[1]): row[2] for row in self._connection.execute(
            select(table.c[left], table.c[right], table.c.n_instances).where(where))}
        fresh = [{left: a, right: b, "n_instances": n} for (a, b), n in deltas.items() if (a, b) not in have]
        kept = [{"b_left": a, "b_right": b, "b_n": n} for (a, b), n in deltas.items() if (a, b) in have]
        gone = {key[0] for key in deltas if key in have and have[key] + deltas[key] <= 0}
        if fresh:
            self._connection.execute(insert(table), fresh)
        if kept:
            self._connection.execute(_bumped_pairs(table, left, right), kept)
        if gone:
            self._connection.execute(
                delete(table).where(self._database.among(table.c[left], sorted(gone)), table.c.n_instances <= 0))
        return gone | {row[left] for row in fresh}

    def _summarize(self, table: Table, column: str, target: str, study_fks: set[int]) -> None:
        """Rewrite the study's own list of modalities or SOP classes."""
        if not study_fks:
            return
        lists: dict[int, list[str]] = defaultdict(list)
        for study_fk, value in self._connection.execute(
            select(table.c.study_fk, table.c[column])
            .where(self._database.among(table.c.study_fk, sorted(study_fks))).order_by(table.c[column])
        ):
            if value:
                lists[study_fk].append(value)
        rows = [{"b_id": study_fk, "b_list": "\\".join(lists[study_fk])} for study_fk in sorted(study_fks)]
        self._connection.execute(
            update(studies).where(studies.c.id == bindparam("b_id")).values({target: bindparam("b_list")}), rows)

    def _drop_empty(self, tally: _Tally) -> None:
        """Delete series, studies and patients that have lost their last instance, and count them off."""
        among, run = self._database.among, self._connection.execute
        empty = run(select(series.c.id, series.c.study_fk, studies.c.patient_fk)
                    .join(studies, series.c.study_fk == studies.c.id)
                    .where(among(series.c.id, sorted(tally.series)), series.c.n_instances <= 0)).all()
        run(delete(series).where(among(series.c.id, [row.id for row in empty])))
        self._bump(studies, {key: {"n_series": -n} for key, n in Counter(row.study_fk for row in empty).items()})
        self._bump(patients, {key: {"n_series": -n} for key, n in Counter(row.patient_fk for row in empty).items()})
        bare = run(select(studies.c.id, studies.c.patient_fk)
                   .where(among(studies.c.id, sorted(tally.studies)), studies.c.n_instances <= 0)).all()
        run(delete(studies).where(among(studies.c.id, [row.id for row in bare])))
        self._bump(patients, {key: {"n_studies": -n} for key, n in Counter(row.patient_fk for row in bare).items()})
        left = run(select(patients.c.id).where(
            among(patients.c.id, sorted(tally.patients)), patients.c.n_instances <= 0)).scalars().all()
        run(delete(patient_names).where(among(patient_names.c.patient_fk, list(left))))
        run(delete(patients).where(among(patients.c.id, list(left))))


class _Tally:
    """Instances that come (+1) or go (-1), by everything that counts them."""

    def __init__(self) -> None:
        self.patients: Counter[int] = Counter()
        self.studies: Counter[int] = Counter()
        self.series: Counter[int] = Counter()
        self.placements: Counter[tuple[int, int]] = Counter()
        self.modalities: Counter[tuple[int, str]] = Counter()
        self.sop_classes: Counter[tuple[int, str]] = Counter()

    def count(
        self, patient_fk: int, study_fk: int, series_fk: int, placement_fk: int, modality: str, sop_class: str, n: int
    ) -> None:
        """Count one instance."""
        self.patients[patient_fk] += n
        self.studies[study_fk] += n
        self.series[series_fk] += n
        self.placements[series_fk, placement_fk] += n
        self.modalities[study_fk, modality] += n
        self.sop_classes[study_fk, sop_class] += n


@cache
def _bumped(table: Table, names: tuple[str, ...]) -> Update:
    """Build the statement once: to build it takes as long as to run it."""
    values = {name: table.c[name] + bindparam("b_" + name) for name in names}
    return update(table).where(table.c.id == bindparam("b_id")).values(values)


@cache
def _bumped_pairs(table: Table, left: str, right: str) -> Update:
    match = (table.c[left] == bindparam("b_left")) & (table.c[right] == bindparam("b_right"))
    return update(table).where(match).values(n_instances=table.c.n_instances + bindparam("b_n"))


def _merge(wanted: dict[Any, dict[str, Value]], key: Any, row: dict[str, Value]) -> None:
    """Keep the first row of a key, filled up with what only later ones know."""
    have = wanted.setdefault(key, row)
    if have is not row:
        for name, value in row.items():
            if have.get(name) is None and value is not None:
                have[name] = value
