"""The store: what the service can ask of the database, one transaction per method."""
from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from sqlalchemy import Connection

from catalog.errors import SchemaMismatch
from catalog.prepare import Prepared
from catalog.schema import migrate
from catalog.store import admin, conflicts, feed, locate, retire, search
from catalog.store.copies import Copies
from catalog.store.database import Database
from catalog.store.feed import Feed
from catalog.store.filing import Filing
from catalog.store.register import Registration
from catalog.store.reindex import reindex_page
from catalog.wire import (
    Change,
    Conflict,
    Located,
    LocateRequest,
    Query,
    RefusedChange,
    RegisterResult,
    ReplicaChange,
    Row,
    Site,
    StorageElement,
)


class Store:
    """The catalog's data. Thread-safe; every method is atomic, and durable when it returns.

    All raise CatalogUnavailable when the database does not answer.
    """

    def __init__(self, database: Database, *, site: str) -> None:
        self._database, self._site = database, site

    def migrate(self) -> None:
        """Bring the schema to the newest revision and give a new catalog its identity."""
        with self._database.writing() as connection:
            migrate.upgrade(connection)
            feed.start(connection)

    def check(self) -> None:
        """Raise SchemaMismatch unless the database has exactly the schema that this program needs."""
        with self._database.reading() as connection:
            have = migrate.current(connection)
        if have != migrate.newest():
            raise SchemaMismatch(f"the database has schema {have}, this program needs {migrate.newest()}: "
                                 "run dgis-catalog migrate")

    def is_empty(self) -> bool:
        """Say whether the database has no schema at all yet."""
        with self._database.reading() as connection:
            return migrate.current(connection) is None

    def close(self) -> None:
        """Let go of every connection."""
        self._database.close()

    def register(self, batch: Sequence[Prepared]) -> list[RegisterResult]:
        """Register prepared records; raises BadData when the database refuses a value of any of them."""
        with self._database.writing() as connection:
            events = self._feed(connection)
            results = Registration(self._database, connection, events).run(batch)
            events.flush()
        return results

    def change_replicas(self, changes: Sequence[ReplicaChange]) -> tuple[int, list[RefusedChange]]:
        """Apply replica changes; tell how many were applied, and which were refused."""
        with self._database.writing() as connection:
            events = self._feed(connection)
            copies = self._copies(connection)
            done, refused = copies.change(changes, now=events.now)
            for one in done:
                events.add("replica", one.object_key, {"location": one.location, "kind": one.kind, "state": one.state},
                           tombstone=one.state == "removed")
            events.flush()
        return len(done), refused

    def retire(self, instance_uids: Sequence[str]) -> int:
        """Take instances out; their objects and replicas stay known, as retired. Unknown ones are passed over."""
        with self._database.writing() as connection:
            events = self._feed(connection)
            count = retire.retire(self._database, connection, events, instance_uids)
            events.flush()
        return count

    def resolve(self, conflict_id: str, action: str, *, actor: str) -> Conflict:
        """Settle an open conflict; the same decision again is answered as before. Raises UnknownSubject."""
        with self._database.writing() as connection:
            events = self._feed(connection)
            settled = conflicts.resolve(self._database, connection, events, conflict_id, action, actor=actor)
            events.flush()
        return settled

    def conflicts(self, state: str | None, *, limit: int) -> list[Conflict]:
        """List conflicts, newest first; without a state, all of them."""
        with self._database.reading() as connection:
            return conflicts.listed(connection, state, limit=limit)

    def open_conflicts(self) -> dict[str, int]:
        """Count the open conflicts and the reports, by kind."""
        with self._database.reading() as connection:
            return conflicts.counted(connection)

    def instance_count(self) -> int:
        """Count the instances."""
        with self._database.reading() as connection:
            return admin.instance_count(connection)

    def query(self, query: Query) -> Iterator[Row | search.End]:
        """Yield the matching rows, then one End. A slow caller holds no transaction open (see `search.run`)."""
        return search.run(self._database, query)

    def locate(self, request: LocateRequest) -> Iterator[Located]:
        """Yield the instances asked for, with their copies."""
        return locate.run(self._database, request)

    def changes(self, *, after: int, limit: int) -> list[Change]:
        """Read the change feed after a sequence number."""
        with self._database.reading() as connection:
            return feed.read(connection, after=after, limit=limit)

    def storage_elements(self) -> list[StorageElement]:
        """List the storage elements by name."""
        with self._database.reading() as connection:
            return admin.storage_elements_rows(connection)

    def put_storage_element(self, element: StorageElement) -> None:
        """Add or replace a storage element. Raises CatalogRefused when a door is another element's."""
        with self._database.writing() as connection:
            events = self._feed(connection)
            admin.put_storage_element(connection, events, element)
            events.flush()

    def remove_storage_element(self, name: str) -> None:
        """Take a storage element out. Raises UnknownSubject, CatalogRefused while it has copies."""
        with self._database.writing() as connection:
            events = self._feed(connection)
            admin.remove_storage_element(connection, events, self._copies(connection), name)
            events.flush()

    def lose_storage_element(self, name: str, *, page: int = 1000) -> Iterator[tuple[int, int]]:
        """Let no copy be placed at an element any more, and make those it has lost, page by page.

        Yields for each transaction how many copies were lost and how many objects have no good copy now. Raises
        UnknownSubject.
        """
        with self._database.writing() as connection:
            events = self._feed(connection)
            admin.drain_storage_element(connection, events, name)
            events.flush()
        while True:
            with self._database.writing() as connection:
                events = self._feed(connection)
                keys, last = self._copies(connection).lose(name, limit=page)
                for key in keys:
                    events.add("replica", key, {"location": name, "kind": "object", "state": "lost"})
                events.flush()
            if not keys:
                return
            yield len(keys), last

    def sites(self) -> list[Site]:
        """List the sites by name."""
        with self._database.reading() as connection:
            return admin.site_rows(connection)

    def put_site(self, site: Site) -> None:
        """Add or replace a site."""
        with self._database.writing() as connection:
            events = self._feed(connection)
            admin.put_site(connection, events, site)
            events.flush()

    def reindex(self, *, page: int = 500) -> Iterator[int]:
        """Rebuild all typed columns from the raw headers; yield how many instances each transaction did.

        An interrupted run goes on where it stopped. The service may run meanwhile.
        """
        while True:
            with self._database.writing() as connection:
                events = self._feed(connection)
                done = reindex_page(self._database, connection, events, page)
                events.flush()
            if not done:
                return
            yield done

    def _copies(self, connection: Connection) -> Copies:
        return Copies(self._database, connection, Filing(self._database, connection))

    def _feed(self, connection: Connection) -> Feed:
        return Feed(self._database, connection, site=self._site, now=time.time_ns() // 1000)
