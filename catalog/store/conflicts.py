"""List conflicts and settle them."""
from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, func, select, update

from catalog.errors import CatalogRefused, UnknownSubject
from catalog.prepare import EPOCH
from catalog.schema.tables import conflicts, objects
from catalog.store.copies import Copies
from catalog.store.database import Database
from catalog.store.feed import Feed
from catalog.store.filing import Filing
from catalog.store.records import object_ref, prepared_again
from catalog.wire import Conflict

_STATE = {"keep_first": "kept_first", "replace": "replaced"}


def listed(connection: Connection, state: str | None, *, limit: int) -> list[Conflict]:
    """List conflicts, newest first."""
    statement = select(conflicts).order_by(conflicts.c.id.desc()).limit(limit)
    if state is not None:
        statement = statement.where(conflicts.c.state == state)
    return _wired(connection, list(connection.execute(statement)))


def counted(connection: Connection) -> dict[str, int]:
    """Count by kind what waits for an operator, and the reports."""
    counts = {"content": 0, "syntax": 0, "patient": 0}
    for kind, n in connection.execute(
        select(conflicts.c.kind, func.count()).where(conflicts.c.state.in_(("open", "reported")))
        .group_by(conflicts.c.kind)
    ):
        counts[kind] = n
    return counts


def resolve(
    database: Database, connection: Connection, feed: Feed, conflict_id: str, action: str, *, actor: str
) -> Conflict:
    """Keep the first copy, or put the quarantined one in its place; the copy that loses becomes retired.

    Raises:
        UnknownSubject: there is no such conflict.
        CatalogRefused: it was settled the other way before, or it is a report.
    """
    row = connection.execute(select(conflicts).where(conflicts.c.conflict_id == conflict_id)).first()
    if row is None:
        raise UnknownSubject("there is no such conflict")
    state = _STATE[action]
    if row.state != state:
        if row.state != "open":
            raise CatalogRefused(f"this conflict is {row.state} already")
        if action == "replace":
            _replace(database, connection, feed, row)
        else:
            connection.execute(update(objects).where(  # unless it has become the instance since, after a retire
                objects.c.id == row.object_fk, objects.c.role == "quarantined").values(role="retired"))
        connection.execute(update(conflicts).where(conflicts.c.id == row.id).values(
            state=state, resolved_at=feed.now, resolved_by=actor))
        feed.add("conflict", conflict_id, {"kind": row.kind, "state": state, "instance_uid": row.instance_uid})
    again = connection.execute(select(conflicts).where(conflicts.c.id == row.id)).all()
    return _wired(connection, list(again))[0]


def _replace(database: Database, connection: Connection, feed: Feed, row: Any) -> None:
    """File the quarantined copy in the place of whatever copy the instance has now."""
    filing, copies = Filing(database, connection), _copies(database, connection)
    copies.set_role(filing.detach([row.instance_uid]), "retired")
    copies.set_role([row.object_fk], "current")
    filed = prepared_again(database, connection, [row.object_fk])
    filing.attach(filed)
    for one, _, _ in filed:
        feed.add("instance", row.instance_uid, {
            "object_key": one.record.object_key, "study_uid": one.study_uid, "series_uid": one.series_uid})


def _copies(database: Database, connection: Connection) -> Copies:
    return Copies(database, connection, Filing(database, connection))


def _wired(connection: Connection, rows: list[Any]) -> list[Conflict]:
    wanted = {one for row in rows for one in (row.kept_fk, row.object_fk) if one is not None}
    refs = {row.id: object_ref(row) for row in connection.execute(select(objects).where(objects.c.id.in_(wanted)))}
    return [
        Conflict(id=row.conflict_id, instance_uid=row.instance_uid, kind=row.kind, state=row.state,
                 kept=refs.get(row.kept_fk), quarantined=refs.get(row.object_fk),
                 opened_at=EPOCH + timedelta(microseconds=row.opened_at), source_ae=row.source_ae)
        for row in rows
    ]
