"""Catalog and storage services as processes of their own, over real mutual TLS on loopback; to be killed at will."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import tomli_w

from catalog.client import CatalogClient
from catalog.wire import Site, StorageElement
from certs.config import IdentityConfig
from certs.errors import ServiceError
from certs.https.session import GridSession
from tests.helpers.pki import SiteHome

RULES = {"gateway": ["read", "write", "delete", "list"], "operator": ["read", "list"], "storage": ["read"]}


@dataclass
class Service:
    """One service; `start` returns when it answers, `kill` is kill -9."""

    command: str
    config: Path
    port: int
    probe: GridSession
    log: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def start(self) -> None:
        with self.log.open("ab") as log:
            argv = [str(Path(sys.executable).parent / self.command), "serve", "--config", str(self.config)]
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while not self._answers():
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.05)

    def kill(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def _answers(self) -> bool:
        try:
            self.probe.json("GET", self.url + "/health")
        except ServiceError:
            return False
        return True


@dataclass
class Services:
    """A catalog and some storage elements of one site."""

    site: SiteHome
    catalog: Service
    elements: dict[str, Service] = field(default_factory=dict)

    def session(self, name: str = "dgis") -> GridSession:
        """A gateway's session."""
        return GridSession(self.site.gateway(name), connect_timeout=1.0, read_timeout=10.0)

    def client(self) -> CatalogClient:
        return CatalogClient(self.session(), self.catalog.url)

    def operator(self) -> CatalogClient:
        """An operator's client."""
        return CatalogClient(GridSession(self.site.operator()), self.catalog.url)


@contextlib.contextmanager
def services(site: SiteHome, root: Path, *names: str) -> Iterator[Services]:
    """Run a catalog and the storage elements with these names, all registered in the catalog."""
    operator = GridSession(site.operator(), connect_timeout=1.0)
    catalog_config = {
        "server": {"port": (port := _free_port())},
        "identity": _identity(site.catalog()),
        "database": {"url": f"sqlite:///{root / 'catalog.sqlite'}"},
        "catalog": {"site": "a"},
    }
    catalog = Service("dgis-catalog", _write(root, "catalog", catalog_config), port, operator, root / "catalog.log")
    made = Services(site, catalog, {name: _element(site, root, name, operator) for name in names})
    try:
        for service in (catalog, *made.elements.values()):
            service.start()
        client = CatalogClient(operator, catalog.url)
        client.put_site(Site(name="a"))
        for name, service in made.elements.items():
            client.put_storage_element(StorageElement(name=name, site="a", doors=(service.url + "/areas/main",)))
        yield made
    finally:
        for service in (catalog, *made.elements.values()):
            service.kill()
        operator.close()


def _element(site: SiteHome, root: Path, name: str, probe: GridSession) -> Service:
    config = {
        "server": {"port": (port := _free_port())},
        "identity": _identity(site.storage(name)),
        "storage": {"name": name, "root": str(root / name)},
        "area": [{"name": "main", "rules": RULES}],
    }
    return Service("dgis-storage", _write(root, name, config), port, probe, root / f"{name}.log")


def _identity(identity: IdentityConfig) -> dict[str, str]:
    return {name: str(value) for name, value in identity.model_dump().items() if value is not None}


def _write(root: Path, name: str, config: dict[str, object]) -> Path:
    path = root / f"{name}.toml"
    path.write_text(tomli_w.dumps(config))
    return path


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
