"""Our own SFTP server in this process, over one area, and what clients need to come in."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry

from certs.config import IdentityConfig
from certs.gridmap import Gridmap
from certs.trust import Trust
from storage_provider.access import AreaRules
from storage_provider.metrics import Metrics
from storage_provider.parts import Parts
from storage_provider.service import Area, StorageService
from storage_provider.sftp.server import SftpServer
from storage_provider.sftp.settings import SftpSettings
from storage_provider.store import Store
from storage_provider.transfer.engine import Engine
from storage_provider.uploads import Uploads
from tests.helpers.pki import SiteHome

RULES = {
    "gateway": frozenset({"read", "write", "delete", "list"}),
    "operator": frozenset({"read", "list"}),
    "storage": frozenset({"read"}),
}


@dataclass
class Sftpd:
    """A running server. `peers` is its directory of certificates: who is not in it cannot come in."""

    site: SiteHome
    root: Path
    peers: Path
    area: Area
    server: SftpServer
    url: str

    @property
    def address(self) -> tuple[str, int]:
        return self.server.address

    @property
    def door(self) -> str:
        return f"{self.url}/areas/main"

    def objects(self) -> list[Path]:
        return sorted(path for path in (self.root / "main" / "objects").rglob("*") if path.is_file())

    def leftovers(self) -> list[str]:
        main = self.root / "main"
        return [path.name for folder in ("stage", "uploads", "parts") for path in (main / folder).rglob("*.part")]

    @property
    def taken(self) -> int:
        """Bytes used and promised."""
        ledger = self.area.store.ledger
        return ledger._used + ledger._promised


def admit(peers: Path, identity: IdentityConfig) -> IdentityConfig:
    """Put a party's certificate where the server looks."""
    peers.mkdir(exist_ok=True)
    shutil.copy(identity.cert, peers / identity.cert.name)
    return identity


@contextmanager
def sftpd(
    site: SiteHome,
    root: Path,
    *,
    name: str = "se1",
    quota: int | None = None,
    settings: SftpSettings | None = None,
    clients: tuple[IdentityConfig, ...] = (),
) -> Iterator[Sftpd]:
    """Serve one area `main` below `root` to these clients."""
    peers = root / "peers"
    peers.mkdir(parents=True, exist_ok=True)
    for each in clients:
        admit(peers, each)
    identity = site.storage(name).model_copy(update={"ssh_peers": peers})
    store = Store(root / "main", quota=quota)
    area = Area("main", store, Uploads(store), AreaRules(RULES), Parts(store))
    service = StorageService(name, [area], engine_for=_no_engine, metrics=Metrics(CollectorRegistry()))
    server = SftpServer(service, identity, Trust(site.trust), Gridmap(site.gridmap), settings or SftpSettings())
    try:
        yield Sftpd(site, root, peers, area, server, server.start())
    finally:
        server.stop()
        service.close()


def _no_engine(permit: str | None) -> Engine:
    raise AssertionError("nothing is pulled here")
