"""The rig over a stock GridFTP server (GCT), control and data ports behind faulty wires."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from certs.tls import client_context
from storage_provider.channel import Channel, ObjectSpec
from storage_provider.gridftp.client.channel import FOREIGN, GsiftpChannel
from storage_provider.timeouts import Timeouts
from tests.conformance.faulty_wire import Mood
from tests.conformance.memory_channel import spec_of
from tests.conformance.rigs import Declared, write
from tests.conformance.wires import PATIENCE, Wires
from tests.helpers import gct
from tests.helpers.pki import SiteHome

HOST = "127.0.0.1"


class GctRig:
    """An unprivileged globus-gridftp-server behind wires; a second one to pull from."""

    def __init__(self, site: SiteHome, tmp_path: Path, far: gct.GctServer) -> None:
        self.site = site
        self.gateway = site.gateway()
        self.far = far
        self.peer: gct.GctServer | None = None
        self.wires = Wires((HOST, far.port))
        self.tls = client_context(self.gateway)
        self.door = f"gsiftp://{HOST}:{self.wires.control.port}{far.root}"
        self.channel: Channel = self.open()
        # Nobody limits an unprivileged folder; rights are looked at when one logs in; the account is shared
        self.declared = Declared(FOREIGN, quota=None, exact_space=False, permits=False, ends_sessions=False)
        self.nowhere = "gsiftp://127.0.0.1:1/srv/dgis"
        self._tmp = tmp_path
        self._stack = ExitStack()

    def open(self, door: str | None = None) -> GsiftpChannel:
        return GsiftpChannel(
            self.tls, door or self.door, timeouts=Timeouts(answer=PATIENCE, write=PATIENCE), dial=self.wires.dial
        )

    def disconnect(self) -> None:
        self.wires.drop_all()

    def refuse(self) -> None:
        self.wires.refuse()

    def silence(self) -> None:
        self.wires.set(Mood(silent=True))

    def slow(self, bytes_per_second: float) -> None:
        self.wires.set(Mood(bytes_per_second=bytes_per_second))

    def cut_get(self, after: int) -> None:
        self.wires.set(Mood(cut_down=after, cuts=100))

    def cut_put(self, after: int) -> None:
        self.wires.set(Mood(cut_up=after, cuts=100))

    def heal(self) -> None:
        self.wires.set(Mood())

    def rot(self, key: str) -> None:
        path = self.far.root / "objects" / key
        data = path.read_bytes()
        path.write_bytes(bytes([data[0] ^ 1]) + data[1:])

    def revoke(self) -> None:
        self.site.revoke(self.gateway)
        self.far.sync_trust()

    def restart(self) -> None:
        self.far.stop()
        self.wires.drop_all()
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
        self.wires.close()
        self._stack.close()


@contextmanager
def gct_rig(site: SiteHome, tmp_path: Path) -> Iterator[GctRig]:
    with gct.serve(site, site.gateway()) as far:
        rig = GctRig(site, tmp_path, far)
        try:
            yield rig
        finally:
            rig.close()
