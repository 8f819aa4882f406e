"""The rig over our own GridFTP server, control and data ports behind faulty wires."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from certs.config import IdentityConfig
from certs.credential import Credential
from certs.permit import Permit, sign
from certs.tls import client_context
from storage_provider.channel import Channel, ObjectSpec
from storage_provider.config import AreaTable, GsiftpTable, StorageConfig, StorageTable
from storage_provider.gridftp.client.channel import OWN, GsiftpChannel
from storage_provider.node import StorageNode
from storage_provider.timeouts import Timeouts
from tests.conformance.faulty_wire import Wired, spoil
from tests.conformance.memory_channel import spec_of
from tests.conformance.rigs import FULL_RULES, QUOTA, Declared, write
from tests.conformance.wires import PATIENCE, Wires
from tests.helpers.pki import SiteHome

HOST = "127.0.0.1"
# The peer lets a gateway in, but read only with a permit
PEER_RULES = {"gateway": frozenset({"write", "delete", "list"})}


@dataclass
class GsiftpProvider:
    """A real storage element in this process, its GridFTP door served."""

    identity: IdentityConfig
    name: str
    root: Path
    quota: int | None = QUOTA
    rules: dict[str, frozenset[str]] = field(default_factory=lambda: dict(FULL_RULES))
    host: str = HOST
    url: str = ""
    node: StorageNode | None = None

    def start(self) -> str:
        area = AreaTable(name="main", quota=self.quota, rules=self.rules)  # type: ignore[arg-type]
        config = StorageConfig(
            identity=self.identity,
            storage=StorageTable(name=self.name, root=self.root),
            area=(area,),
            gsiftp=GsiftpTable(host=self.host, port=0),
        )
        self.node = StorageNode(config)
        (self.url,) = self.node.open()
        return self.url

    def stop(self) -> None:
        if self.node is not None:
            self.node.close()
            self.node.service.close()
            self.node = None

    @property
    def door(self) -> str:
        return f"{self.url}/areas/main"

    @property
    def address(self) -> tuple[str, int]:
        assert self.node is not None
        return self.node.doors["gsiftp"].address

    def leftovers(self) -> list[str]:
        main = self.root / "main"
        return [path.name for folder in ("stage", "uploads") for path in (main / folder).iterdir()]


class GsiftpRig(Wired):
    """An SE behind wires, and a second one to pull from."""

    def __init__(self, site: SiteHome, tmp_path: Path) -> None:
        self.site = site
        self.gateway = site.gateway()
        self.far = GsiftpProvider(site.storage("se1"), "se1", tmp_path / "se1")
        self.peer = GsiftpProvider(site.storage("se2"), "se2", tmp_path / "se2", rules=dict(PEER_RULES))
        self.far.start()
        self.wire = Wires(self.far.address)
        self.tls = client_context(self.gateway)
        self.door = f"gsiftp://{HOST}:{self.wire.control.port}/areas/main"
        self.channel: Channel = self.open()
        self.declared = Declared(OWN)
        self.nowhere = f"gsiftp://{HOST}:1/areas/main"
        self._tmp = tmp_path
        self._stack = ExitStack()

    def open(self, door: str | None = None) -> GsiftpChannel:
        patience = Timeouts(answer=PATIENCE, write=PATIENCE)
        return GsiftpChannel(self.tls, door or self.door, timeouts=patience, dial=self.wire.dial)

    def rot(self, key: str) -> None:
        spoil(self.far.root / "main" / "objects" / key)

    def revoke(self) -> None:
        self.site.revoke(self.gateway)

    def restart(self) -> None:
        self.far.stop()
        self.wire.drop_all()
        self.far.start()
        self.wire.control.target = self.far.address

    def leftovers(self) -> list[str]:
        return self.far.leftovers()

    def source(self, data: bytes) -> tuple[ObjectSpec, str, str]:
        if self.peer.node is None:
            self.peer.start()
        spec = spec_of(data)
        source = GsiftpChannel(self.tls, self.peer.door)
        self._stack.callback(source.close)
        source.put(spec, write(self._tmp, data))
        return spec, self.peer.door, self.permit(spec.key)

    def permit(self, *keys: str) -> str:
        """A permit for us at the peer: we tell it to send, so we are who reads."""
        by = self.site.catalog()
        until = datetime.now(UTC) + timedelta(seconds=300)
        permit = Permit(Credential(self.gateway.cert, self.gateway.key).dn(), "se2", keys, ("read",), until)
        return sign(permit, Credential(by.cert, by.key))

    def close(self) -> None:
        self.channel.close()
        self._stack.close()
        self.wire.close()
        self.far.stop()
        self.peer.stop()


@contextmanager
def gsiftp_rig(site: SiteHome, tmp_path: Path) -> Iterator[GsiftpRig]:
    rig = GsiftpRig(site, tmp_path)
    try:
        yield rig
    finally:
        rig.close()
