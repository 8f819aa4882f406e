"""The rig over a stock GridFTP server (GCT): its data ports behind faulty wires as well.

The door leads to a wire in front of the control port, and the channel dials its data connections through a wire for
each port that the server names (GCT listens for data on every address, so nothing else could stand in its place).
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from certs.tls import client_context
from storage_provider.channel import Channel, ObjectSpec
from storage_provider.gridftp.client.channel import FOREIGN, GsiftpChannel
from storage_provider.timeouts import Timeouts
from tests.conformance.faulty_wire import FaultyWire, Mood
from tests.conformance.memory_channel import spec_of
from tests.conformance.rigs import TIMEOUT, Declared, write
from tests.helpers import gct
from tests.helpers.pki import SiteHome

HOST = "127.0.0.1"


class Wires:
    """A wire for the control port, and one for each data port that is asked for, all in one mood."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.control = FaultyWire(target)
        self.data: dict[int, FaultyWire] = {}
        self._mood = Mood()
        self._lock = threading.Lock()

    def dial(self, endpoint: tuple[str, int], seconds: float) -> socket.socket:
        """Connect to a data port of the far side through a wire."""
        with self._lock:
            wire = self.data.get(endpoint[1])
            if wire is None:
                wire = self.data[endpoint[1]] = FaultyWire((self.control.target[0], endpoint[1]))
                wire.set(self._mood)
        return socket.create_connection((wire.host, wire.port), seconds)

    def set(self, mood: Mood) -> None:
        with self._lock:
            self._mood = mood
            for wire in (self.control, *self.data.values()):
                wire.set(mood)

    def drop_all(self) -> None:
        for wire in (self.control, *self.data.values()):
            wire.drop_all()

    def close(self) -> None:
        for wire in (self.control, *self.data.values()):
            wire.close()


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
            self.tls, door or self.door, timeouts=Timeouts(answer=TIMEOUT, write=TIMEOUT), dial=self.wires.dial
        )

    def disconnect(self) -> None:
        self.wires.drop_all()

    def refuse(self) -> None:
        self.wires.control.refuse()
        self.wires.drop_all()

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
