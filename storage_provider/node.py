"""Composition of a storage element's process: stores, service, doors. Nothing else builds these together."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Protocol

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from certs.errors import ConfigError
from certs.https.server import add_check, serve
from certs.https.session import GridSession
from certs.memory import settle_memory
from certs.tls import server_context
from storage_provider.access import AreaRules
from storage_provider.channels import open_channels
from storage_provider.config import AreaTable, StorageConfig
from storage_provider.errors import LocalFault, StorageError
from storage_provider.gridftp.server import GsiftpServer
from storage_provider.gridftp.settings import GsiftpSettings
from storage_provider.https.app import create_storage_app
from storage_provider.metrics import Metrics
from storage_provider.parts import Parts
from storage_provider.service import Area, StorageService
from storage_provider.sftp.server import SftpServer
from storage_provider.sftp.settings import SftpSettings
from storage_provider.store import Store
from storage_provider.transfer.engine import Engine
from storage_provider.uploads import Uploads

_GREETING_SECONDS = 3.0
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}


class DoorServer(Protocol):
    """A door beside the HTTPS one: threads of its own in this process. `address` counts once it was started."""

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""

    def start(self) -> str:
        """Listen and return the base URL; raises OSError or StorageError when that cannot be."""

    def stop(self) -> None:
        """End every session; harmless when not started."""


class StorageNode:
    """One storage element with the doors that its configuration names. HTTPS is served by who runs `app`."""

    def __init__(self, config: StorageConfig) -> None:
        """Open the stores (which cleans them); raises LocalFault when one is being served."""
        registry = CollectorRegistry()
        session = GridSession(config.identity)

        def engine_for(permit: str | None) -> Engine:
            return Engine(open_channels(session, permit=permit))

        areas = [_area(config, table) for table in config.area]
        self.service = StorageService(config.storage.name, areas, engine_for=engine_for, metrics=Metrics(registry))
        self.app: FastAPI = create_storage_app(self.service, config.identity, registry, stopping=self.close)
        self.doors = self._doors(config)
        for name, door in self.doors.items():
            add_check(self.app, name, _greets(door))

    def open(self) -> tuple[str, ...]:
        """Open the doors beside HTTPS, best first; their base URLs. Raises ConfigError, and closes them again."""
        urls = []
        for name, door in self.doors.items():
            try:
                urls.append(door.start())
            except (OSError, StorageError) as error:
                self.close()
                raise ConfigError(f"[{name}]: the door cannot be opened: {error}") from error
        return tuple(urls)

    def close(self) -> None:
        """Close those doors; the service stays open for HTTPS."""
        for door in self.doors.values():
            door.stop()

    def _doors(self, config: StorageConfig) -> dict[str, DoorServer]:
        guard = self.app.state.guard
        doors: dict[str, DoorServer] = {}
        if config.gsiftp is not None:
            tls = server_context(config.identity, trust=guard.trust)
            gsiftp = GsiftpSettings(**config.gsiftp.model_dump())
            doors["gsiftp"] = GsiftpServer(self.service, tls, guard.gridmap, gsiftp)
        if config.sftp is not None:
            sftp = SftpSettings(**config.sftp.model_dump())
            doors["sftp"] = SftpServer(self.service, config.identity, guard.trust, guard.gridmap, sftp)
        return doors


def build(config: StorageConfig) -> FastAPI:
    """Make the application of an element's HTTPS door alone."""
    return StorageNode(config).app


def run(config: StorageConfig, *, ready: Callable[[tuple[str, ...]], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT; `ready` gets the base URLs of all doors, HTTPS first, once they are open."""
    node = StorageNode(config)
    others = node.open()

    def told(url: str) -> None:
        if ready is not None:
            ready((url, *others))

    settle_memory()
    try:
        serve(node.app, config.server, config.identity, ready=told)
    finally:
        node.close()


def _greets(door: DoorServer) -> Callable[[], str]:
    """Make a check of /health: a connection to the door is greeted (RFC 959: 220, RFC 4253: SSH-2.0)."""

    def check() -> str:
        host, port = door.address
        with socket.create_connection((_ANY_ADDRESS.get(host, host), port), _GREETING_SECONDS) as connection:
            if not connection.recv(64).startswith((b"220", b"SSH-2.0-")):
                raise LocalFault("the door does not greet")
        return f"open at port {port}"

    return check


def _area(config: StorageConfig, table: AreaTable) -> Area:
    store = Store(config.storage.root / table.name, quota=table.quota, reserve=table.reserve)
    rules = AreaRules({role: frozenset(verbs) for role, verbs in table.rules.items()})
    return Area(table.name, store, Uploads(store), rules, Parts(store))
