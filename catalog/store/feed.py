"""Append to the change feed and read it: numbers in commit order, because only the one writer gives them out."""
from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from datetime import timedelta

from sqlalchemy import Connection, insert, select, update

from catalog.prepare import EPOCH
from catalog.schema.tables import catalog_state, changes
from catalog.store.database import Database
from catalog.wire import Change

Payload = Mapping[str, str | int | bool | None]


class Feed:
    """Collect the events of one writing transaction; `flush` numbers and writes them as its last act."""

    def __init__(self, database: Database, connection: Connection, *, site: str, now: int) -> None:
        self._database, self._connection, self._site, self.now = database, connection, site, now
        self._events: list[tuple[str, str, bool, Payload]] = []

    def add(self, kind: str, subject: str, payload: Payload, *, tombstone: bool = False) -> None:
        """Note an event; payloads hold UIDs, keys and names of places, never anything of a patient."""
        self._events.append((kind, subject, tombstone, payload))

    def flush(self) -> None:
        """Write the events of this transaction in order."""
        if not self._events:
            return
        state = self._connection.execute(
            update(catalog_state)
            .values(last_seq=catalog_state.c.last_seq + len(self._events))
            .returning(catalog_state.c.last_seq, catalog_state.c.catalog_id, catalog_state.c.epoch)
        ).one()
        first = state.last_seq - len(self._events) + 1
        rows = [
            {"seq": seq, "catalog_id": state.catalog_id, "epoch": state.epoch, "origin_site": self._site, "kind": kind,
             "tombstone": tombstone, "subject": subject, "at": self.now, "payload": json.dumps(payload)}
            for seq, (kind, subject, tombstone, payload) in enumerate(self._events, first)
        ]
        self._database.insert(self._connection, changes, rows)
        self._events.clear()


def start(connection: Connection) -> None:
    """Give a new catalog its identity; does nothing to one that has it."""
    if connection.execute(select(catalog_state.c.id)).first() is None:
        connection.execute(insert(catalog_state).values(id=1, catalog_id=str(uuid.uuid4()), epoch=1, last_seq=0))


def read(connection: Connection, *, after: int, limit: int) -> list[Change]:
    """Read up to `limit` events with a sequence number above `after`, in order."""
    found = connection.execute(
        select(changes).where(changes.c.seq > after).order_by(changes.c.seq).limit(limit))
    return [
        Change(seq=row.seq, catalog_id=row.catalog_id, epoch=row.epoch, origin_site=row.origin_site, kind=row.kind,
               tombstone=row.tombstone, subject=row.subject, at=EPOCH + timedelta(microseconds=row.at),
               payload=json.loads(row.payload))
        for row in found
    ]
