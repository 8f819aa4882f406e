"""What the CA has issued and revoked, and the numbers of its CRLs (SQLite, stdlib).

Writes of two processes (the hourly CRL of a running grid, a ``revoke`` typed beside it) are serialised by
``Store.exclusive``; no CRL can overwrite one that knows more.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

_SCHEMA = """
CREATE TABLE IF NOT EXISTS certificates (
    serial TEXT PRIMARY KEY, authority TEXT NOT NULL, dn TEXT NOT NULL, profile TEXT NOT NULL,
    not_before TEXT NOT NULL, not_after TEXT NOT NULL, revoked_at TEXT);
CREATE TABLE IF NOT EXISTS crls (
    authority TEXT PRIMARY KEY, number INTEGER NOT NULL, this_update TEXT NOT NULL);
"""
# A table of its own, so that an older release still writes into the same file (going back is one step, too)
_KEYS = "CREATE TABLE IF NOT EXISTS keys (serial TEXT PRIMARY KEY, key_id TEXT NOT NULL)"


@dataclass(frozen=True, slots=True)
class Issued:
    """One certificate that this site's CA signed; ``authority`` is ``root`` or ``issuing``."""

    serial: int
    authority: str
    dn: str
    profile: str
    not_before: datetime
    not_after: datetime
    revoked_at: datetime | None = None


class Store:
    """The CA's book-keeping in one SQLite file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def create(self) -> None:
        """Create the tables where they are missing."""
        with closing(self._connect()) as connection:
            connection.executescript(_SCHEMA)

    @contextmanager
    def exclusive(self) -> Iterator[Books]:
        """Hold the write lock over a read-decide-write; commits at the end, rolls back on an exception."""
        with closing(self._connect()) as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                connection.execute(_KEYS)
                yield Books(connection)
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=30.0, isolation_level=None)
        connection.execute("PRAGMA synchronous=FULL")
        return connection


class Books:
    """Reads and writes inside one transaction of the store."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def add(self, issued: Issued, *, key_id: str) -> None:
        """Record a certificate and the id of its public key (``profiles.key_id``)."""
        self._connection.execute("INSERT INTO keys VALUES (?, ?)", (f"{issued.serial:x}", key_id))
        self._connection.execute(
            "INSERT INTO certificates VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                f"{issued.serial:x}",
                issued.authority,
                issued.dn,
                issued.profile,
                issued.not_before.isoformat(),
                issued.not_after.isoformat(),
                issued.revoked_at.isoformat() if issued.revoked_at else None,
            ),
        )

    def find(self, serial: int) -> Issued | None:
        """Return the certificate with this serial number, if this CA issued it."""
        rows = self._connection.execute("SELECT * FROM certificates WHERE serial = ?", (f"{serial:x}",))
        return next((_issued(row) for row in rows), None)

    def of_key(self, key_id: str) -> tuple[Issued, ...]:
        """Return the certificates of one key, oldest first; not those from before keys were booked."""
        rows = self._connection.execute(
            "SELECT certificates.* FROM certificates JOIN keys USING (serial) WHERE key_id = ? ORDER BY not_before",
            (key_id,),
        )
        return tuple(_issued(row) for row in rows)

    def all(self) -> tuple[Issued, ...]:
        """Return every certificate, oldest first."""
        rows = self._connection.execute("SELECT * FROM certificates ORDER BY not_before, serial")
        return tuple(_issued(row) for row in rows)

    def revoke(self, serial: int, *, at: datetime) -> None:
        """Mark a certificate revoked; the first date stays when it already is."""
        self._connection.execute(
            "UPDATE certificates SET revoked_at = ? WHERE serial = ? AND revoked_at IS NULL",
            (at.isoformat(), f"{serial:x}"),
        )

    def revoked(self, authority: str) -> tuple[tuple[int, datetime], ...]:
        """Return (serial, since) of what a CA has revoked."""
        rows = self._connection.execute(
            "SELECT serial, revoked_at FROM certificates"
            " WHERE authority = ? AND revoked_at IS NOT NULL ORDER BY serial",
            (authority,),
        )
        return tuple((int(serial, 16), datetime.fromisoformat(since)) for serial, since in rows)

    def next_crl(self, authority: str, *, wanted: datetime) -> tuple[int, datetime]:
        """Take the next CRL number and a thisUpdate of at least ``wanted`` that is later than the last one's."""
        row = self._connection.execute(
            "SELECT number, this_update FROM crls WHERE authority = ?", (authority,)
        ).fetchone()
        number, last = (row[0], datetime.fromisoformat(row[1])) if row else (0, datetime.fromtimestamp(0, UTC))
        # Whole seconds (RFC 5280), and growing: OpenSSL keeps the old CRL when thisUpdate is equal
        this_update = max(wanted.replace(microsecond=0), datetime.fromtimestamp(last.timestamp() + 1, UTC))
        self._connection.execute(
            "INSERT INTO crls VALUES (?, ?, ?) ON CONFLICT (authority) DO UPDATE SET number = ?2, this_update = ?3",
            (authority, number + 1, this_update.isoformat()),
        )
        return number + 1, this_update


def _issued(row: tuple[str, str, str, str, str, str, str | None]) -> Issued:
    serial, authority, dn, profile, not_before, not_after, revoked_at = row
    return Issued(
        serial=int(serial, 16),
        authority=authority,
        dn=dn,
        profile=profile,
        not_before=datetime.fromisoformat(not_before),
        not_after=datetime.fromisoformat(not_after),
        revoked_at=datetime.fromisoformat(revoked_at) if revoked_at else None,
    )
