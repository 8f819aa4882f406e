"""Bring a database to the newest schema, and tell which one it has."""
from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config


def upgrade(connection: Connection) -> None:
    """Run the migrations that are missing, in the transaction that `connection` is in. Idempotent."""
    command.upgrade(_config(connection), "head")


def current(connection: Connection) -> str | None:
    """Name the revision that the database has; None for an empty one."""
    return MigrationContext.configure(connection).get_current_revision()


def newest() -> str:
    """Name the revision that this program needs."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    if head is None:
        raise RuntimeError("no migrations are installed")
    return head
