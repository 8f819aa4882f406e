"""The rig over a stock GridFTP server (GCT), control and data ports behind faulty wires."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from certs.tls import client_context
from storage_provider.channel import Channel, ObjectSpec
from storage_provider.gridftp.client.channel import FOREIGN, GsiftpChannel
from storage_provider.timeouts import Timeouts
from tests.conformance.faulty_wire import Wired, spoil
from tests.conformance.memory_channel import spec_of
from tests.conformance.rigs import Declared, write
from tests.conformance.wires import PATIENCE, Wires
from tests.helpers import gct
from tests.helpers.pki import SiteHome

HOST = "127.0.0.1"


class GctRig(Wired):
    """An unprivileged globus-gridftp-server behind wires; a second one to pull from."""

    def __init__(self, site: SiteHome, tmp_path: Path, far: gct.GctServer) -> None:
        self.site = site
        self.gateway = site.gateway()
        self.far = far
        self.peer: gct.GctServer | None = None
        self.wire = Wires((HOST, far.port))
        self.tls = client_context(self.gateway)
        self.door = f"gsiftp://{HOST}:{self.wire.control.port}{far.root}"
        self.channel: Channel = self.open()
        # Nobody limits an unprivileged folder; rights are looked at when one logs in; the account is shared
        self.declared = Declared(FOREIGN, quota=None, exact_space=False, permits=False, ends_sessions=False)
        self.nowhere = "gsiftp://127.0.0.1:1/srv/dgis"
        self._tmp = tmp_path
        self._stack = ExitStack()

    def open(self, door: str | None = None) -> GsiftpChannel:
        return GsiftpChannel(
            self.tls, door or self.door, timeouts=Timeouts(answer=PATIENCE, write=PATIENCE), dial=self.wire.dial
        )

    def rot(self, key: str) -> None:
        spoil(self.far.root / "objects" / key)

    def revoke(self) -> None:
        self.site.revoke(self.gateway)
        self.far.sync_trust()

    def restart(self) -> None:
        self.far.stop()
        self.wire.drop_all()
        self.far.start()

    def leftovers(self) -> list[str]:
        return [path.name for path in (self.far.root / "stage").glob("*")]

    def source(self, data: bytes) -> tuple[ObjectSpec, str, str]:
        if self.peer is None:
            self.peer = self._stack.enter_context(gct.serve(self.site, self.gateway))
        spec = spec_of(data)
        self.open(self.peer.url).put(spec, write(self._tmp, data))
        return spec, self.peer.url, "none"

    def close(self) -> None:
        self.channel.close()
        self.wire.close()
        self._stack.close()


@contextmanager
def gct_rig(site: SiteHome, tmp_path: Path) -> Iterator[GctRig]:
    with gct.serve(site, site.gateway()) as far:
        rig = GctRig(site, tmp_path, far)
        try:
            yield rig
        finally:
            rig.close()
