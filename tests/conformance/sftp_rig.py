"""A rig over our own SFTP server behind a faulty wire."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from certs.trust import Trust
from storage_provider.channel import Channel, ObjectSpec
from storage_provider.sftp.client import OWN, SftpChannel
from storage_provider.timeouts import Timeouts
from tests.conformance.faulty_wire import FaultyWire, Wired, spoil
from tests.conformance.rigs import QUOTA, TIMEOUT, Declared
from tests.helpers.pki import SiteHome
from tests.helpers.sftpd import Sftpd, sftpd


class SftpRig(Wired):
    """Our own storage element over SFTP."""

    def __init__(self, site: SiteHome, tmp_path: Path) -> None:
        self.site = site
        self.gateway = site.gateway()
        self.hosts = tmp_path / "hosts"
        self.hosts.mkdir()
        shutil.copy(site.storage("se1").cert, self.hosts)
        self._root = tmp_path / "se1"
        self._stack = ExitStack()
        self.far = self._started()
        self.wire = FaultyWire(self.far.address)
        self.door = f"sftp://127.0.0.1:{self.wire.port}/areas/main"
        self.opened: list[SftpChannel] = []
        self.channel: Channel = self.open()
        self.declared = Declared(OWN, permits=False)
        self.nowhere = "sftp://127.0.0.2:1/areas/main"

    def _started(self) -> Sftpd:
        return self._stack.enter_context(sftpd(self.site, self._root, quota=QUOTA, clients=(self.gateway,)))

    def open(self) -> SftpChannel:
        identity = self.gateway.model_copy(update={"ssh_peers": self.hosts})
        patience = Timeouts(answer=TIMEOUT, write=TIMEOUT)
        channel = SftpChannel(identity, Trust(self.site.trust), self.door, timeouts=patience)
        self.opened.append(channel)
        return channel

    def rot(self, key: str) -> None:
        spoil(self.far.root / "main" / "objects" / key)

    def revoke(self) -> None:
        self.site.revoke(self.gateway)

    def restart(self) -> None:
        self._stack.close()
        self.wire.drop_all()
        self.far = self._started()
        self.wire.target = self.far.address

    def leftovers(self) -> list[str]:
        return self.far.leftovers()

    def source(self, data: bytes) -> tuple[ObjectSpec, str, str]:
        raise NotImplementedError("SFTP pulls from nobody")

    def close(self) -> None:
        for channel in self.opened:
            channel.close()
        self.wire.close()
        self._stack.close()


@contextmanager
def sftp_rig(site: SiteHome, tmp_path: Path) -> Iterator[SftpRig]:
    rig = SftpRig(site, tmp_path)
    try:
        yield rig
    finally:
        rig.close()
