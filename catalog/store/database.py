"""Connections and transactions: many readers, one writer at a time, on SQLite and PostgreSQL alike.

The single writer (a lock that the transaction holds until it commits) is what makes registration decide conflicts
without races, and the change feed number events in commit order.
"""
from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from operator import itemgetter
from typing import Any, TypeVar

from sqlalchemy import (
    BigInteger,
    BindParameter,
    ColumnElement,
    Connection,
    Engine,
    Select,
    Table,
    Text,
    bindparam,
    create_engine,
    event,
    func,
    insert,
    select,
    text,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.sql.compiler import SQLCompiler

from catalog.errors import CatalogError, CatalogUnavailable

_WRITER_LOCK = 0x64676973  # "dgis": the advisory lock of the one writer
_WAIT_SECONDS = 30
_BACKGROUND = 4  # threads that finish finding what a query matches
_COURTESY = 0.02
T = TypeVar("T")
MOST_ALTERNATIVES = 100  # SQLite parses OR as a tree of depth one each, up to a thousand; a wild name needs seven


class BadData(CatalogError):
    """The database refuses a value. Names no value: it could be a patient's."""


class Database:
    """A database by its URL: `sqlite:///PATH` or `postgresql://USER@HOST/NAME`."""

    def __init__(self, url: str) -> None:
        try:
            parsed = make_url(url)
        except ArgumentError:
            raise CatalogError("the database URL is not one: write sqlite:///PATH or postgresql://...") from None
        if parsed.drivername == "postgresql":  # SQLAlchemy before 2.1 would take psycopg2
            parsed = parsed.set(drivername="postgresql+psycopg")
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        if not self.is_sqlite and parsed.get_backend_name() != "postgresql":
            raise CatalogError(f"no catalog runs on {parsed.get_backend_name()}: use sqlite or postgresql")
        if self.is_sqlite and parsed.database in (None, "", ":memory:"):
            raise CatalogError("a catalog in memory would forget everything: name a file, sqlite:///PATH")
        self._lock = threading.Lock()
        self._inserts: dict[tuple[str, tuple[str, ...]], tuple[str, Callable[[Any], Any]]] = {}
        self._background = ThreadPoolExecutor(_BACKGROUND, thread_name_prefix="catalog-ids")
        self.engine = _sqlite(str(parsed)) if self.is_sqlite else _postgresql(parsed.render_as_string(False))

    def close(self) -> None:
        """Close every idle connection."""
        self._background.shutdown()
        self.engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Give a connection in a transaction that sees one state of the database.

        Raises:
            CatalogUnavailable: the database cannot be reached or answers too late.
        """
        with _mapped(), self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Give a connection in the only writing transaction; it commits at the end, or rolls back on any exception.

        Raises:
            CatalogUnavailable: the writer's place was not free for 30 s, or the database cannot be reached.
            BadData: the database refuses a value.
        """
        if not self._lock.acquire(timeout=_WAIT_SECONDS):
            raise CatalogUnavailable("another writer has held the catalog for too long")
        try:
            with _mapped(), self.engine.connect() as connection:
                connection.info["writing"] = True
                try:
                    with connection.begin():
                        if not self.is_sqlite:
                            connection.execute(text(f"SET LOCAL lock_timeout = '{_WAIT_SECONDS}s'"))
                            connection.execute(select(func.pg_advisory_xact_lock(_WRITER_LOCK)))
                        yield connection
                finally:
                    connection.info["writing"] = False
        finally:
            self._lock.release()

    def ids(self, connection: Connection, statement: Select[Any], *, most: int | None = None) -> list[int]:
        """Run a statement that selects ids; with `most`, give no more of them than that.

        They come as one text: ten thousand rows would take the driver 3 ms, their text 0.6 ms.
        """
        if most is not None:
            return list(connection.execute(statement.limit(most)).scalars())
        found = statement.subquery().c[0]
        gathered = func.json_group_array(found) if self.is_sqlite else sql_cast(func.json_agg(found), Text)
        return list(json.loads(connection.execute(select(gathered)).scalar_one() or "[]"))

    def new_ids(self, connection: Connection, table: Table, count: int) -> list[int]:
        """Give ids to rows that are about to be inserted, in the writing transaction.

        Asked back from the rows (RETURNING in their order), SQLite would take them one by one: six times the work.
        """
        if self.is_sqlite:
            last = connection.execute(select(func.coalesce(func.max(table.c.id), 0))).scalar_one()
            return list(range(last + 1, last + count + 1))
        sequence = func.nextval(func.pg_get_serial_sequence(table.name, "id"))
        return list(connection.execute(select(sequence).select_from(func.generate_series(1, count))).scalars())

    def insert(self, connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
        """Insert rows that all name the same columns, defaults included; none at all does nothing."""
        if not rows:
            return
        if not self.is_sqlite:
            connection.execute(insert(table), rows)
            return
        names = tuple(rows[0])
        known = self._inserts.get((table.name, names))
        if known is None:  # compiled by SQLAlchemy, but run past it: its work on each row's parameters is 10 us
            compiled = insert(table).compile(dialect=self.engine.dialect, column_keys=names)
            assert isinstance(compiled, SQLCompiler) and compiled.positiontup is not None
            known = self._inserts[table.name, names] = str(compiled), itemgetter(*compiled.positiontup)
        statement, values = known
        connection.exec_driver_sql(statement, [values(row) for row in rows])

    def in_background(self, transaction: ExitStack, call: Callable[[], T], *, when: threading.Event) -> Future[T]:
        """Go on with a reading transaction in another thread, and end it there, whoever waits for the outcome.

        It begins `when` that is set, and after 20 ms anyhow.
        """

        def finished() -> T:
            with transaction:
                when.wait(_COURTESY)
                return call()

        return self._background.submit(finished)

    def among(
        self, column: ColumnElement[Any], values: Sequence[str | int] | Sequence[str] | Sequence[int]
    ) -> ColumnElement[bool]:
        """Build `column IN values` with one parameter, whatever their number, so that an index serves it.

        A value with a NUL is left out: no database holds one, so nothing could match.
        """
        values = [value for value in values if not (isinstance(value, str) and "\0" in value)]
        if self.is_sqlite:
            # As text: built of SQLAlchemy's functions it takes four times as long (100 us, a dozen times a batch)
            listed = text("(SELECT value FROM json_each(:listed))")
            given: BindParameter[str] = bindparam("listed", json.dumps(values), unique=True)
            return column.op("IN", is_comparison=True)(listed.bindparams(given))
        element = BigInteger() if column.type.python_type is int else Text()
        return column == func.any(sql_cast(values, ARRAY(element)))

    def glob(self, column: ColumnElement[Any], pattern: str) -> ColumnElement[bool]:
        """Match a DICOM wildcard pattern (`*`, `?`), case kept."""
        if self.is_sqlite:
            return column.op("GLOB", is_comparison=True)(pattern.replace("[", "[[]"))
        escaped = pattern.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        return column.like(escaped.replace("*", "%").replace("?", "_"), escape="\\")

    def holds(self, column: ColumnElement[Any], needle: str) -> ColumnElement[bool]:
        """Say whether the text contains `needle`, case kept."""
        where = func.instr(column, needle) if self.is_sqlite else func.strpos(column, needle)
        return where > 0


@contextmanager
def _mapped() -> Iterator[None]:
    """Turn the driver's exceptions into ours, without their texts: those quote values."""
    try:
        yield
    except (DataError, IntegrityError) as error:
        raise BadData(f"the database refuses a value ({type(error.orig).__name__})") from None
    except (OperationalError, InterfaceError, PoolTimeout) as error:
        cause = type(error.orig).__name__ if isinstance(error, DBAPIError) else "no connection free"
        raise CatalogUnavailable(f"the database does not answer ({cause})") from None


def _sqlite(url: str) -> Engine:
    engine = create_engine(url, pool_size=8, max_overflow=16, pool_timeout=10, connect_args={"timeout": _WAIT_SECONDS})

    @event.listens_for(engine, "connect")
    def _on_connect(dbapi: sqlite3.Connection, _record: object) -> None:
        dbapi.isolation_level = None  # we say BEGIN ourselves, see below
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "cache_size=-8192"):
            dbapi.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        # A deferred transaction that writes after it has read can fail with SQLITE_BUSY at once; IMMEDIATE waits.
        connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.info.get("writing") else "BEGIN")

    return engine


def _postgresql(url: str) -> Engine:
    options = "-c statement_timeout=120s -c timezone=UTC"
    return create_engine(
        url, pool_size=8, max_overflow=16, pool_timeout=10, pool_pre_ping=True,
        connect_args={"connect_timeout": 5, "options": options},
    )
