"""The store: what the service can ask of the database, one transaction per method."""
from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from sqlalchemy import Connection

from catalog.errors import SchemaMismatch
from catalog.prepare import Prepared
from catalog.schema import migrate
from catalog.store import admin, conflicts, feed, locate, policies, retire, search
from catalog.store.copies import Copies
from catalog.store.database import Database
from catalog.store.feed import Feed
from catalog.store.filing import Filing
from catalog.store.register import Registration
from catalog.store.reindex import reindex_page
from catalog.store.visible import View, facts_of, note_site, relabel, visible
from catalog.wire import (
    Change,
    Conflict,
    Located,
    LocateRequest,
    PolicyText,
    PolicyVersion,
    Query,
    RefusedChange,
    RegisterResult,
    ReplicaChange,
    Row,
    Share,
    ShareKind,
    Site,
    StorageElement,
)
from certs.vo.policy import StudyFacts


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

    def register(self, batch: Sequence[Prepared], *, site: str = "") -> list[RegisterResult]:
        """Register prepared records of a site's DGIS; without one they count as of the catalog's own.

        Raises BadData when the database refuses a value of any of them.
        """
        with self._database.writing() as connection:
            events = self._feed(connection)
            results = Registration(self._database, connection, events).run(batch)
            note_site(self._database, connection, [one.study_uid for one in batch], site or self._site)
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

    def query(self, query: Query, view: View | None = None) -> Iterator[Row | search.End]:
        """Yield the matching rows that a view shows, then one End.

        A slow caller holds no transaction open (see `search.run`). Without a view everything is shown.
        """
        return search.run(self._database, query, visible(self._database, view, now=_now()))

    def locate(self, request: LocateRequest, view: View | None = None) -> Iterator[Located]:
        """Yield the instances asked for that a view shows, with their copies."""
        return locate.run(self._database, request, visible(self._database, view, now=_now()))

    def hidden(self, view: View, *, keys: Sequence[str] = (), instances: Sequence[str] = ()) -> int:
        """Count how many of these (object keys, SOP Instance UIDs) are not there for a view."""
        with self._database.reading() as connection:
            return locate.hidden(self._database, connection, visible(self._database, view, now=_now()), keys, instances)

    def facts_of(self, study_uid: str) -> StudyFacts:
        """Read what the policy's scopes look at of a study. Raises UnknownSubject."""
        with self._database.reading() as connection:
            return facts_of(connection, study_uid, now=_now())

    def relabel(self, study_uid: str, *, add: frozenset[str], remove: frozenset[str]) -> frozenset[str]:
        """Change a study's labels; gives those that it has then. Raises CatalogRefused for too many."""
        with self._database.writing() as connection:
            events = self._feed(connection)
            labels = relabel(connection, study_uid, add=add, remove=remove)
            events.add("labels", study_uid, {"labels": " ".join(sorted(labels))})
            events.flush()
        return labels

    def share(self, new: Share) -> Share:
        """Share a study; the same grantee again moves the end of the share that there is."""
        with self._database.writing() as connection:
            events = self._feed(connection)
            made = policies.share(connection, events, new)
            events.flush()
        return made

    def unshare(self, share_id: str) -> Share:
        """End a share at once; gives what it was. Raises UnknownSubject."""
        with self._database.writing() as connection:
            events = self._feed(connection)
            ended = policies.unshare(connection, events, share_id)
            events.flush()
        return ended

    def shares(self, *, study_uid: str | None = None, kind: ShareKind | None = None) -> list[Share]:
        """List the shares that count now."""
        with self._database.reading() as connection:
            return policies.listed(connection, study_uid=study_uid, kind=kind, now=_now())

    def share_of(self, share_id: str) -> Share:
        """Read one share. Raises UnknownSubject."""
        with self._database.reading() as connection:
            return policies.one(connection, share_id)

    def policy_version(self) -> int:
        """Tell the version of the policy in force; 0 when there is none."""
        with self._database.reading() as connection:
            return policies.newest_version(connection)

    def policy(self, version: int | None = None) -> PolicyText:
        """Read the policy in force, or one of its versions. Raises UnknownSubject."""
        with self._database.reading() as connection:
            return policies.read(connection, version)

    def policy_versions(self) -> list[PolicyVersion]:
        """List the versions of the policy, newest first."""
        with self._database.reading() as connection:
            return policies.versions(connection)

    def put_policy(self, text: str, *, follows: int | None, actor: str) -> int:
        """Put a policy in force; gives its version. Raises CatalogRefused when another was put meanwhile."""
        with self._database.writing() as connection:
            events = self._feed(connection)
            version = policies.put(connection, events, text, follows=follows, actor=actor)
            events.flush()
        return version

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
        return Feed(self._database, connection, site=self._site, now=_now())


def _now() -> int:
    """Tell the time in microseconds since 1970 UTC."""
    return time.time_ns() // 1000
