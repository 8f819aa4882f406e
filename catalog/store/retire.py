"""Take instances out of the catalog, leaving tombstones in the change feed."""
from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, select

from catalog.schema.tables import objects
from catalog.store.copies import Copies
from catalog.store.database import Database
from catalog.store.feed import Feed
from catalog.store.filing import Filing

_PAGE = 1000


def retire(database: Database, connection: Connection, feed: Feed, instance_uids: Sequence[str]) -> int:
    """Detach instances; their objects stay, as retired, so that somebody can still account for every copy."""
    filing = Filing(database, connection)
    copies = Copies(database, connection, filing)
    wanted = list(dict.fromkeys(instance_uids))
    count = 0
    for start in range(0, len(wanted), _PAGE):
        ids = filing.detach(wanted[start : start + _PAGE])
        copies.set_role(ids, "retired")
        for row in connection.execute(
            select(objects.c.instance_uid, objects.c.object_key).where(database.among(objects.c.id, ids))
        ):
            feed.add("instance", row.instance_uid, {"object_key": row.object_key}, tombstone=True)
        count += len(ids)
    return count
