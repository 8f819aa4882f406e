"""Composition of a storage element's process: stores, service, door. Nothing else builds these together."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from certs.https.server import serve
from certs.https.session import GridSession
from storage_provider.access import AreaRules
from storage_provider.channels import open_channels
from storage_provider.config import AreaTable, StorageConfig
from storage_provider.https.app import create_storage_app
from storage_provider.metrics import Metrics
from storage_provider.parts import Parts
from storage_provider.service import Area, StorageService
from storage_provider.store import Store
from storage_provider.transfer.engine import Engine
from storage_provider.uploads import Uploads


def build(config: StorageConfig) -> FastAPI:
    """Open the stores (which cleans them) and make the application; raises LocalFault when one is being served."""
    registry = CollectorRegistry()
    session = GridSession(config.identity)

    def engine_for(permit: str | None) -> Engine:
        return Engine(open_channels(session, permit=permit))

    areas = [_area(config, table) for table in config.area]
    service = StorageService(config.storage.name, areas, engine_for=engine_for, metrics=Metrics(registry))
    return create_storage_app(service, config.identity, registry)


def run(config: StorageConfig, *, ready: Callable[[str], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT."""
    serve(build(config), config.server, config.identity, ready=ready)


def _area(config: StorageConfig, table: AreaTable) -> Area:
    store = Store(config.storage.root / table.name, quota=table.quota, reserve=table.reserve)
    rules = AreaRules({role: frozenset(verbs) for role, verbs in table.rules.items()})
    return Area(table.name, store, Uploads(store), rules, Parts(store))
