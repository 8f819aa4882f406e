"""Sites, storage elements and totals."""
from __future__ import annotations

import json

from sqlalchemy import Connection, Table, delete, func, insert, select

from catalog.doors import place_of
from catalog.errors import CatalogRefused, UnknownSubject
from catalog.schema.tables import patients, sites, storage_elements
from catalog.store.copies import Copies
from catalog.store.feed import Feed
from catalog.wire import Site, StorageElement


def storage_elements_rows(connection: Connection) -> list[StorageElement]:
    """List the storage elements by name."""
    return [StorageElement(name=row.name, site=row.site, doors=tuple(json.loads(row.doors)), state=row.state)
            for row in connection.execute(select(storage_elements).order_by(storage_elements.c.name))]


def put_storage_element(connection: Connection, feed: Feed, element: StorageElement) -> None:
    """Add or replace one; an equal one changes nothing. Raises CatalogRefused when a door is another element's."""
    _refuse_shared(storage_elements_rows(connection), element)
    _write_element(connection, feed, element)


def _write_element(connection: Connection, feed: Feed, element: StorageElement) -> None:
    row = {"name": element.name, "site": element.site, "doors": json.dumps(element.doors), "state": element.state}
    if _put(connection, storage_elements, row):
        feed.add("storage_element", element.name, {"site": element.site, "state": element.state})


def _refuse_shared(known: list[StorageElement], element: StorageElement) -> None:
    """Two elements behind one door would make two verified copies of one file."""
    kept = {place_of(door): other.name for other in known if other.name != element.name for door in other.doors}
    for door in element.doors:
        if place_of(door) in kept:
            raise CatalogRefused(f"the door {door} is one of the storage element {kept[place_of(door)]}; "
                                 "two names for one place would count one file as two copies")


def drain_storage_element(connection: Connection, feed: Feed, name: str) -> None:
    """Let nobody place another copy there. Raises UnknownSubject."""
    element = next((one for one in storage_elements_rows(connection) if one.name == name), None)
    if element is None:
        raise UnknownSubject("no storage element of that name is registered")
    _write_element(connection, feed, element.model_copy(update={"state": "draining"}))


def remove_storage_element(connection: Connection, feed: Feed, copies: Copies, name: str) -> None:
    """Take one out. Raises UnknownSubject, CatalogRefused while it has copies."""
    kept = copies.kept_at(name)
    if kept:
        raise CatalogRefused(f"the storage element has {kept} copies; they must be elsewhere first, or lost")
    if not connection.execute(delete(storage_elements).where(storage_elements.c.name == name)).rowcount:
        raise UnknownSubject("no storage element of that name is registered")
    feed.add("storage_element", name, {}, tombstone=True)


def site_rows(connection: Connection) -> list[Site]:
    """List the sites by name."""
    return [Site(name=row.name, title=row.title) for row in connection.execute(select(sites).order_by(sites.c.name))]


def put_site(connection: Connection, feed: Feed, site: Site) -> None:
    """Add or replace one; an equal one changes nothing."""
    if _put(connection, sites, {"name": site.name, "title": site.title}):
        feed.add("site", site.name, {"title": site.title})


def instance_count(connection: Connection) -> int:
    """Add up the patients' counts: far fewer rows than instances."""
    return int(connection.execute(select(func.coalesce(func.sum(patients.c.n_instances), 0))).scalar_one())


def _put(connection: Connection, table: Table, row: dict[str, str]) -> bool:
    """Write a named row; say whether anything changed. The writer is alone, so nobody comes between."""
    where = table.c.name == row["name"]
    have = connection.execute(select(table).where(where)).first()
    if have is not None and dict(have._mapping) == row:
        return False
    connection.execute(delete(table).where(where))
    connection.execute(insert(table).values(row))
    return True
