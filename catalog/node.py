"""Put a catalog service together from its configuration and run it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from catalog.app import build
from catalog.config import CatalogConfig
from catalog.errors import SchemaMismatch
from catalog.store import Store
from catalog.store.database import Database
from certs.audit.event import Event
from certs.audit.journal import Journal
from certs.audit.message import Source
from certs.errors import ConfigError
from certs.https.server import serve as serve_https
from certs.log import configure, get_log
from certs.memory import settle_memory

log = get_log()


@contextmanager
def opened(config: CatalogConfig, *, check: bool = True) -> Iterator[Store]:
    """Open the store; a database without any schema gets it, one with another schema is refused when `check`."""
    path = config.database.url.removeprefix("sqlite:///")
    if path != config.database.url:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    store = Store(Database(config.database.url), site=config.catalog.site)
    try:
        if check:
            _ensure_schema(store)
        yield store
    finally:
        store.close()


def serve(config: CatalogConfig, *, ready: Callable[[str], None] | None = None) -> None:
    """Run the service until SIGTERM; `ready` is told its URL."""
    configure(config.catalog.name, config.log.level, config.log.format)
    with opened(config) as store, _journal(config) as journal:
        app = build(
            store, config.identity, version=version("dgis"), policy_required=config.policy.required, journal=journal)
        settle_memory()
        serve_https(app, config.server, config.identity, ready=ready)


@contextmanager
def _journal(config: CatalogConfig) -> Iterator[Journal]:
    directory = config.audit.directory or Path("audit")
    source = Source(config.catalog.name, config.catalog.site)
    try:
        journal = Journal(directory, source, when_full=config.audit.when_full)
    except OSError as error:
        raise ConfigError(f"{directory}: the audit trail cannot be written there: {error.strerror}; "
                          "see table [audit], key 'directory'") from error
    try:
        journal.record(Event("start", datetime.now(UTC), config.catalog.name))
        yield journal
    finally:
        journal.close()


def _ensure_schema(store: Store) -> None:
    try:
        store.check()
    except SchemaMismatch:
        if not store.is_empty():
            raise
        store.migrate()
        log.info("schema_created")
