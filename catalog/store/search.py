"""Answer queries: the ids first, then their rows page by page, each in a short transaction of its own."""
from __future__ import annotations

import threading
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, FromClause, Select, and_, case, exists, func, literal, null, select

from catalog.keys import BY_KEYWORD, LEVELS, STUDY_FROM_SERIES, Level
from catalog.schema.tables import (
    instances,
    objects,
    patient_names,
    patients,
    placements,
    series,
    series_placements,
    studies,
)
from catalog.store.database import Database
from catalog.store.matching import COUNTS, TABLES, Matching
from catalog.store.visible import Visible
from catalog.wire import Query, Row

_FIRST_PAGE, _PAGE = 20, 500


@dataclass(frozen=True, slots=True)
class End:
    """The end of an answer: how many rows there were, and whether the limit cut it."""

    count: int
    truncated: bool


def run(database: Database, query: Query, seen: Visible | None = None) -> Iterator[Row | End]:
    """Find the matching entities now; give an iterator of their rows, one per entity, and an End.

    `seen` is what the caller may see of all that is there; None: everything.

    Which entities match is what one transaction saw. It may still be reading when this returns, in a thread of its
    own: what the first page needs is found first. An entity that is retired while its page is waited for is left out.

    Raises:
        UnsupportedQuery: at once, before any row.
    """
    matching = Matching(database, query, seen)
    statement = ids_statement(matching, query)
    with ExitStack() as transaction:
        connection = transaction.enter_context(database.reading())
        asked = "InstanceAvailability" in query.keys
        useless = _useless(connection.execute(select(placements)).all(), query) if asked else ([], [])
        pages = _Pages(database, query, _Columns(matching, query, *useless))
        early = _FIRST_PAGE + 1 if _early(database, query) else None
        first = database.ids(connection, statement, most=early)
        rows = pages.read(connection, first[:_FIRST_PAGE])
        if early is None or len(first) < early:
            return pages.rows(rows, first, None)
        rest = _Rest(database, transaction.pop_all(), lambda: database.ids(connection, statement))
    return pages.rows(rows, first[:_FIRST_PAGE], rest)


def _early(database: Database, query: Query) -> bool:
    """Say whether the first matches may be looked for before all of them are.

    PostgreSQL plans for a limit: it may read a whole table in the hope of early matches. What has no index reads a
    whole table anyhow, and would twice.
    """
    infix = any(value.startswith(("*", "?")) for match in query.matches if match.op == "wild" for value in match.values)
    return database.is_sqlite and not infix


def ids_statement(matching: Matching, query: Query) -> Select[Any]:
    """Build the statement that finds the matching entities."""
    conditions = matching.conditions()
    source = _joined(query.level, matching.top)
    column = TABLES[query.level].c.id
    statement = select(column)
    if matching.named is not None:  # several of the name's groups may match: DISTINCT
        owner = patients.c.id if query.level == "PATIENT" else studies.c.patient_fk
        source = source.join(patient_names, patient_names.c.patient_fk == owner)
        conditions.append(matching.named)
        statement = statement.distinct()
    statement = statement.select_from(source).where(*conditions)
    return statement if query.limit is None else statement.limit(query.limit + 1)


def _joined(level: Level, top: Level) -> FromClause:
    """Join the level's table with its parents up to `top`."""
    source = TABLES[level]
    if level == "IMAGE" and top != "IMAGE":
        source = source.join(series, instances.c.series_fk == series.c.id)
    if level in ("IMAGE", "SERIES") and top in ("STUDY", "PATIENT"):
        source = source.join(studies, series.c.study_fk == studies.c.id)
    if level != "PATIENT" and top == "PATIENT":
        source = source.join(patients, studies.c.patient_fk == patients.c.id)
    return source


class _Rest:
    """All ids, found while the first page goes out; when that is slow, at the latest after 20 ms."""

    def __init__(self, database: Database, transaction: ExitStack, find: Callable[[], list[int]]) -> None:
        # At once, finding would compete with the first page for the interpreter and the processor: 4 ms of its 6
        self._gone_out = threading.Event()
        self._found = database.in_background(transaction, find, when=self._gone_out)

    def ids(self) -> list[int]:
        """Say that the first page is gone; wait for the ids."""
        self._gone_out.set()
        return self._found.result()


class _Pages:
    """Reads the rows of an answer, a page at a time."""

    def __init__(self, database: Database, query: Query, columns: _Columns) -> None:
        self._database, self._query, self._columns = database, query, columns
        table = TABLES[query.level]
        self._id = table.c.id
        self._statement = select(self._id.label("$id"), *columns.labelled).select_from(
            _joined(query.level, columns.top))

    def rows(self, rows: list[Row], first: list[int], rest: _Rest | None) -> Iterator[Row | End]:
        """Yield the first page that was read already, then the rest page by page, then the End.

        `first` are the ids that were found at once, `rest` brings all of them.
        """
        limit, count, start = self._query.limit, 0, _FIRST_PAGE
        found: Sequence[int] = first
        for row in rows if limit is None else rows[:limit]:
            count += 1
            yield row
        if rest is not None:
            known = set(first)
            # In the order of their ids, that is of their arrival, rows lie together: half the time for a thousand
            found = array("q", [*first, *sorted(one for one in rest.ids() if one not in known)])
        total = len(found) if limit is None else min(len(found), limit)
        while start < total:
            with self._database.reading() as connection:
                page = self.read(connection, list(found[start : min(start + _PAGE, total)]))
            start += _PAGE
            count += len(page)
            yield from page
        yield End(count, total < len(found))

    def read(self, connection: Connection, ids: list[int]) -> list[Row]:
        """Read one page, in the order of its ids."""
        found = connection.execute(self._statement.where(self._database.among(self._id, ids))).mappings()
        by_id = {row["$id"]: row for row in found}
        return [self._columns.row(by_id[one]) for one in ids if one in by_id]


def _useless(rows: Any, query: Query) -> tuple[list[int], list[int]]:
    """Name the placements that a caller cannot reach, and those without a copy that is both near and reachable."""
    missing, near = set(query.unreachable), set(query.near)
    reached = {row.id: set(filter(None, row.locations.split("\n"))) - missing for row in rows}
    offline = [one for one, places in reached.items() if not places]
    return offline, [one for one, places in reached.items() if near and not places & near]


class _Columns:
    """What a query wants back, as labelled expressions, and the way from a database row to the wire."""

    def __init__(self, matching: Matching, query: Query, offline: list[int], distant: list[int]) -> None:
        self._matching, self._level, self._offline, self._distant = matching, query.level, offline, distant
        self.top: Level = query.level
        self._lists: set[str] = set()
        self._keys = tuple(dict.fromkeys(query.keys))
        self.labelled = [self._expression(keyword).label(f"k{n}") for n, keyword in enumerate(self._keys)]

    def row(self, found: Mapping[Any, Any]) -> Row:
        """Give the row by keyword; what several values can have is a list."""
        row: Row = {}
        for n, keyword in enumerate(self._keys):
            value = found[f"k{n}"]
            if keyword in self._lists and value is not None:
                value = value.split("\\") if value else []
            row[keyword] = value
        return row

    def _expression(self, keyword: str) -> ColumnElement[Any]:
        """Find where a keyword is answered from; NULL for one that this level does not have."""
        special = self._derived(keyword)
        if special is not None:
            return special
        key = BY_KEYWORD.get(keyword)
        if key is None:
            return null()
        if key.multiple:
            self._lists.add(keyword)
        if LEVELS.index(key.level) <= LEVELS.index(self._level):
            self._reach(key.level)
            return TABLES[key.level].c[key.column]
        if self._level == "STUDY" and keyword in STUDY_FROM_SERIES:
            column = series.c[key.column]
            return (select(column).where(series.c.study_fk == studies.c.id, column.is_not(None),
                                         *self._matching.on_series(keyword))
                    .order_by(series.c.id).limit(1).correlate(studies).scalar_subquery())
        if self._level == "SERIES" and keyword in ("Rows", "Columns"):
            column = instances.c[key.column]
            constant = case((func.min(column) == func.max(column), func.min(column)))
            return select(constant).where(instances.c.series_fk == series.c.id).correlate(series).scalar_subquery()
        return null()

    def _derived(self, keyword: str) -> ColumnElement[Any] | None:
        if keyword in COUNTS and LEVELS.index(COUNTS[keyword][0]) <= LEVELS.index(self._level):
            self._reach(COUNTS[keyword][0])
            return self._matching.count(keyword)
        alias = "ModalitiesInStudy" if keyword == "Modality" and self._level == "STUDY" else keyword
        if alias in ("ModalitiesInStudy", "SOPClassesInStudy") and self._level != "PATIENT":
            self._reach("STUDY")
            self._lists.add(keyword)
            return studies.c.modalities if alias == "ModalitiesInStudy" else studies.c.sop_classes
        if keyword == "AvailableTransferSyntaxUID" and self._level == "IMAGE":
            return instances.c.transfer_syntax_uid
        return self._availability() if keyword == "InstanceAvailability" else None

    def _availability(self) -> ColumnElement[Any]:
        """Say OFFLINE, NEARLINE or ONLINE by the instance of the entity that is worst off (PS3.3 C.4.23.1.1)."""
        known = [(self._any_at(where), word) for where, word in
                 ((self._offline, "OFFLINE"), (self._distant, "NEARLINE")) if where]
        return case(*known, else_="ONLINE") if known else literal("ONLINE")

    def _any_at(self, where: list[int]) -> ColumnElement[bool]:
        """Say whether an instance of the entity lies at one of these placements."""
        if self._level == "IMAGE":
            found = exists().where(objects.c.id == instances.c.object_fk, objects.c.placement_fk.in_(where))
            return found.correlate(instances)
        at = and_(series_placements.c.placement_fk.in_(where), series_placements.c.n_instances > 0)
        inner, outer = series.alias(), studies.alias()
        if self._level == "SERIES":
            return exists().where(series_placements.c.series_fk == series.c.id, at).correlate(series)
        if self._level == "STUDY":
            return exists().where(series_placements.c.series_fk == inner.c.id, inner.c.study_fk == studies.c.id,
                                  at).correlate(studies)
        return exists().where(series_placements.c.series_fk == inner.c.id, inner.c.study_fk == outer.c.id,
                              outer.c.patient_fk == patients.c.id, at, *self._matching.seen(outer)).correlate(patients)

    def _reach(self, level: Level) -> None:
        if LEVELS.index(level) < LEVELS.index(self.top):
            self.top = level
