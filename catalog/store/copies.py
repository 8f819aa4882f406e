"""Objects (the stored bytes of one copy), their headers and replicas, and the placements that summarize them."""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Table, and_, bindparam, delete, func, insert, select, update

from catalog.prepare import Prepared, micros
from catalog.schema.tables import headers, instances, objects, placements, replicas
from catalog.store.database import Database
from catalog.store.filing import Filing
from catalog.text import INDEXED_LENGTH, clean
from catalog.wire import InstanceRecord, RefusedChange, ReplicaChange

# Written out: SQLAlchemy would put the words of an IN into the statement anew each time it runs
_IS_GOOD = (replicas.c.state == "verified") | (replicas.c.state == "spooled")
_IS_KEPT = (replicas.c.state == "verified") | (replicas.c.state == "suspect")


@dataclass(slots=True)
class Copy:
    """One content of an instance, in the database already or about to be (`id` 0)."""

    id: int
    object_key: str
    instance_uid: str
    data_sha256: str
    transfer_syntax_uid: str
    role: str
    prepared: Prepared | None = None

    def same_as(self, one: Prepared) -> bool:
        """Say whether a record holds exactly this content (design 3a: data digest and transfer syntax)."""
        record = one.record
        return (self.data_sha256, self.transfer_syntax_uid) == (record.data_sha256, record.transfer_syntax_uid)


class Copies:
    """Operations on objects and replicas inside one open writing transaction."""

    def __init__(self, database: Database, connection: Connection, filing: Filing) -> None:
        self._database, self._connection, self._filing = database, connection, filing

    def of_instances(self, instance_uids: Sequence[str]) -> dict[str, list[Copy]]:
        """Find every copy of these instances, whatever its role."""
        found: dict[str, list[Copy]] = defaultdict(list)
        for row in self._select(objects.c.instance_uid, instance_uids):
            found[row.instance_uid].append(_copy(row))
        return found

    def by_keys(self, object_keys: Sequence[str]) -> dict[str, Copy]:
        """Find copies by object key."""
        return {row.object_key: _copy(row) for row in self._select(objects.c.object_key, object_keys)}

    def create(self, copies: Sequence[Copy]) -> dict[int, int]:
        """Insert new objects with their headers and the replica in the spool that holds them; set their ids.

        Gives the placement id of each object id.
        """
        if not copies:
            return {}
        at = self.placement_ids({frozenset({_record(copy).spooled_at}) for copy in copies})
        for copy, new in zip(copies, self._database.new_ids(self._connection, objects, len(copies)), strict=True):
            copy.id = new
        rows = [_object_row(copy, at[frozenset({_record(copy).spooled_at})]) for copy in copies]
        self._insert(objects, rows)
        self._insert(headers, [_header_row(copy) for copy in copies])
        self._insert(replicas, [_spool_row(copy.id, _record(copy)) for copy in copies])
        return {copy.id: row["placement_fk"] for copy, row in zip(copies, rows, strict=True)}

    def set_role(self, object_ids: Iterable[int], role: str) -> None:
        """Make copies current, quarantined or retired."""
        ids = list(object_ids)
        if ids:
            self._connection.execute(update(objects).where(self._database.among(objects.c.id, ids)).values(role=role))

    def verified_at(self, object_ids: Sequence[int]) -> dict[int, tuple[str, ...]]:
        """Name the storage elements that hold each object verified."""
        found: dict[int, list[str]] = defaultdict(list)
        if not object_ids:
            return {}
        for object_fk, location in self._connection.execute(
            select(replicas.c.object_fk, replicas.c.location)
            .where(self._database.among(replicas.c.object_fk, object_ids),
                   replicas.c.state == "verified", replicas.c.kind == "object")
            .order_by(replicas.c.location)
        ):
            found[object_fk].append(location)
        return {object_fk: tuple(names) for object_fk, names in found.items()}

    def add_spooled(self, pairs: Sequence[tuple[int, Prepared]]) -> None:
        """Note that another spool holds a copy of objects that are known already."""
        if not pairs:
            return
        wanted = {(object_fk, one.record.spooled_at): one for object_fk, one in pairs}
        have = self._replicas([key[0] for key in wanted])
        rows = [_spool_row(key[0], one.record) for key, one in wanted.items() if (*key, "spool") not in have]
        if rows:
            self._insert(replicas, rows)
            self.refresh({row["object_fk"] for row in rows})

    def change(self, wanted: Sequence[ReplicaChange], *, now: int) -> tuple[list[ReplicaChange], list[RefusedChange]]:
        """Apply replica changes in their order; give those that changed something, and those refused with why."""
        keys = self._connection.execute(
            select(objects.c.object_key, objects.c.id, objects.c.size, objects.c.sha256)
            .where(self._database.among(objects.c.object_key, [one.object_key for one in wanted]))).all()
        known = {row.object_key: row for row in keys}
        have = self._replicas([row.id for row in keys])
        final: dict[tuple[int, str, str], dict[str, Any] | None] = {}
        done, refused = [], []
        for one in wanted:
            row = known.get(one.object_key)
            reason = _objection(one, row)
            if row is None or reason is not None:
                if reason is not None:
                    refused.append(RefusedChange(object_key=one.object_key, location=one.location, reason=reason))
                continue
            final[row.id, one.location, one.kind] = None if one.state == "removed" else {
                "object_fk": row.id, "location": one.location, "kind": one.kind, "state": one.state,
                "size": row.size, "sha256": row.sha256,
                "verified_at": (micros(one.verified_at) if one.verified_at else now) if one.state == "verified"
                else have.get((row.id, one.location, one.kind), (None, None))[1]}
            done.append(one)
        self._write(final, have)
        self.refresh({key[0] for key in final})
        return done, refused

    def lose(self, location: str, *, limit: int) -> tuple[list[str], int]:
        """Make up to `limit` copies at a storage element lost.

        Gives the keys of their objects, and how many of those have no good copy anywhere now.
        """
        here = and_(replicas.c.location == location, replicas.c.kind == "object", _IS_KEPT)
        rows = self._connection.execute(
            select(replicas.c.id, objects.c.id.label("object_fk"), objects.c.object_key)
            .select_from(replicas.join(objects, objects.c.id == replicas.c.object_fk)).where(here)
            .order_by(replicas.c.id).limit(limit)).all()
        ids = [row.object_fk for row in rows]
        self._connection.execute(update(replicas).where(self._database.among(replicas.c.id, [row.id for row in rows]))
                                 .values(state="lost"))
        self.refresh(ids)
        good = set(self._connection.execute(select(replicas.c.object_fk).where(
            self._database.among(replicas.c.object_fk, ids), _IS_GOOD)).scalars())
        return [row.object_key for row in rows], len(set(ids) - good)

    def kept_at(self, location: str) -> int:
        """Count the copies that a storage element is said to have."""
        return int(self._connection.execute(select(func.count()).where(
            replicas.c.location == location, replicas.c.kind == "object", _IS_KEPT)).scalar_one())

    def refresh(self, object_ids: Iterable[int]) -> None:
        """Recompute the placements of objects after their replicas changed, and the counts that follow from them."""
        ids = sorted(set(object_ids))
        good: dict[int, set[str]] = {one: set() for one in ids}
        for object_fk, location in self._connection.execute(
            select(replicas.c.object_fk, replicas.c.location)
            .where(self._database.among(replicas.c.object_fk, ids), _IS_GOOD)
        ):
            good[object_fk].add(location)
        at = self.placement_ids({frozenset(names) for names in good.values()})
        moved: dict[int, list[int]] = defaultdict(list)  # by the placement that they move to
        filed = []
        for row in self._connection.execute(
            select(objects.c.id, objects.c.placement_fk, instances.c.series_fk)
            .select_from(objects.outerjoin(instances, instances.c.object_fk == objects.c.id))
            .where(self._database.among(objects.c.id, ids))
        ):
            new = at[frozenset(good[row.id])]
            if new != row.placement_fk:
                moved[new].append(row.id)
                if row.series_fk is not None:
                    filed.append((row.series_fk, row.placement_fk, new))
        for new, ids in moved.items():
            self._connection.execute(
                update(objects).where(self._database.among(objects.c.id, ids)).values(placement_fk=new))
        self._filing.move_placement(filed)

    def placement_ids(self, sets: set[frozenset[str]]) -> dict[frozenset[str], int]:
        """Find or make the ids of sets of places."""
        lines = {"\n".join(sorted(one)): one for one in sets}
        found = {row.locations: row.id for row in self._connection.execute(
            select(placements).where(self._database.among(placements.c.locations, list(lines))))}
        fresh = [{"locations": line} for line in sorted(lines) if line not in found]
        if fresh:
            statement = insert(placements).returning(placements.c.id, sort_by_parameter_order=True)
            ids = self._connection.execute(statement, fresh).scalars().all()
            found.update({row["locations"]: new for row, new in zip(fresh, ids, strict=True)})
        return {one: found[line] for line, one in lines.items()}

    def _insert(self, table: Table, rows: Sequence[dict[str, Any]]) -> None:
        self._database.insert(self._connection, table, rows)

    def _select(self, column: Any, values: Sequence[str]) -> Iterable[Any]:
        return self._connection.execute(
            select(objects.c.id, objects.c.object_key, objects.c.instance_uid, objects.c.data_sha256,
                   objects.c.transfer_syntax_uid, objects.c.role).where(self._database.among(column, values)))

    def _replicas(self, object_ids: Sequence[int]) -> dict[tuple[int, str, str], tuple[int, int | None]]:
        rows = self._connection.execute(
            select(replicas.c.object_fk, replicas.c.location, replicas.c.kind, replicas.c.id, replicas.c.verified_at)
            .where(self._database.among(replicas.c.object_fk, object_ids)))
        return {(row.object_fk, row.location, row.kind): (row.id, row.verified_at) for row in rows}

    def _write(
        self,
        final: dict[tuple[int, str, str], dict[str, Any] | None],
        have: dict[tuple[int, str, str], tuple[int, int | None]],
    ) -> None:
        fresh = [row for key, row in final.items() if row is not None and key not in have]
        kept = [{"b_id": have[key][0], "b_state": row["state"], "b_at": row["verified_at"]}
                for key, row in final.items() if row is not None and key in have]
        gone = [have[key][0] for key, row in final.items() if row is None and key in have]
        self._insert(replicas, fresh)
        if kept:
            self._connection.execute(update(replicas).where(replicas.c.id == bindparam("b_id"))
                                     .values(state=bindparam("b_state"), verified_at=bindparam("b_at")), kept)
        if gone:
            self._connection.execute(delete(replicas).where(self._database.among(replicas.c.id, gone)))


def _record(copy: Copy) -> InstanceRecord:
    if copy.prepared is None:
        raise ValueError("a new copy comes with its record")
    return copy.prepared.record


def _copy(row: Any) -> Copy:
    return Copy(row.id, row.object_key, row.instance_uid, row.data_sha256, row.transfer_syntax_uid, row.role)


def _object_row(copy: Copy, placement_fk: int) -> dict[str, Any]:
    record, one = _record(copy), copy.prepared
    return {
        "id": copy.id, "object_key": record.object_key, "instance_uid": record.instance_uid, "role": copy.role,
        "sop_class_uid": record.sop_class_uid, "transfer_syntax_uid": record.transfer_syntax_uid,
        "data_sha256": record.data_sha256, "sha256": record.sha256, "size": record.size,
        "chunks": " ".join(record.chunks), "pixel_offset": record.pixel_offset,
        "received_at": one.received_at if one else 0, "source_ae": clean(record.source_ae)[:INDEXED_LENGTH],
        "called_ae": clean(record.called_ae)[:INDEXED_LENGTH], "issuer": clean(record.issuer)[:INDEXED_LENGTH],
        "spooled_at": record.spooled_at, "placement_fk": placement_fk,
    }


def _header_row(copy: Copy) -> dict[str, Any]:
    header = _record(copy).header
    return {"object_fk": copy.id, "syntax": header.syntax, "complete": header.complete, "zstd": header.zstd}


def _spool_row(object_fk: int, record: InstanceRecord) -> dict[str, Any]:
    return {"object_fk": object_fk, "location": record.spooled_at, "kind": "spool", "state": "spooled",
            "size": record.size, "sha256": record.sha256, "verified_at": None}


def _objection(one: ReplicaChange, row: Any) -> str | None:
    """Say why a change is refused; None when it is fine (taking away what is not there is)."""
    if row is None:
        return None if one.state == "removed" else "this catalog knows no such object"
    if not one.location or len(one.location) > INDEXED_LENGTH or one.location != clean(one.location) \
            or "\n" in one.location:
        return "the location is no name"
    if one.state == "verified" and (one.size, one.sha256) != (row.size, row.sha256):
        return "what was verified has another size or digest than the object"
    return None
