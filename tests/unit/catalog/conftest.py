"""Fixtures of the catalog's tests: each test that takes `database` runs on SQLite and on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from catalog.access import Access
from catalog.metrics import CatalogMetrics
from catalog.service import CatalogService
from catalog.store import Store
from catalog.store.database import Database
from catalog.trail import Trail
from certs.credential import Credential
from tests.helpers.catalogdb import PostgreSQL, postgresql


@pytest.fixture(scope="session")
def postgresql_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgreSQL]:
    with postgresql(tmp_path_factory.mktemp("pg")) as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., str]:
    """Make URLs of new databases, with the schema or (migrated=False) without."""
    if request.param == "postgresql":
        server: PostgreSQL = request.getfixturevalue("postgresql_server")
        return server.fresh
    made: list[int] = []

    def sqlite(*, migrated: bool = True) -> str:
        made.append(1)
        url = f"sqlite:///{tmp_path / f'catalog{len(made)}.sqlite'}"
        if migrated:
            store = Store(Database(url), site="a")
            store.migrate()
            store.close()
        return url

    return sqlite


@pytest.fixture
def database(new_url: Callable[..., str]) -> Iterator[Database]:
    made = Database(new_url())
    yield made
    made.close()


@pytest.fixture
def store(database: Database) -> Store:
    made = Store(database, site="a")
    made.migrate()
    return made


@pytest.fixture
def service(store: Store) -> CatalogService:
    """The service without HTTP; it signs nothing here."""
    signer = Credential(Path("none"), Path("none"))
    return CatalogService(store, signer, CatalogMetrics(CollectorRegistry()), Access(store), Trail(None))
