"""A rig over OpenSSH's own server, which knows nothing of us: a directory, keys that come and go, a disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from certs.config import IdentityConfig
from certs.sshpeers import SshPeers
from certs.sshsync import Targets, sync
from certs.trust import Trust
from storage_provider.channel import Channel, ObjectSpec
from storage_provider.sftp.client import FOREIGN, SftpChannel
from storage_provider.timeouts import Timeouts
from tests.conformance.faulty_wire import FaultyWire, Wired, spoil
from tests.conformance.rigs import TIMEOUT, Declared
from tests.helpers.pki import SiteHome
from tests.helpers.sshd import Sshd, account


class SshdRig(Wired):
    """An sshd behind a faulty wire; its authorized_keys are written from certificates as a site does it."""

    def __init__(self, site: SiteHome, tmp_path: Path) -> None:
        self.site = site
        self.gateway = site.gateway()
        host = site.storage("se1")
        self.peers = tmp_path / "ssh-peers"
        self.clients = tmp_path / "ssh-clients"
        for folder, identity in ((self.peers, host), (self.clients, self.gateway)):
            folder.mkdir()
            shutil.copy(identity.cert, folder)
        self.far = Sshd(host, tmp_path / "sshd")
        self.sync()
        assert len(self.admitted) == 1
        self.far.start()
        self.wire = FaultyWire(("127.0.0.1", self.far.port))
        self.door = f"sftp://{account()}@127.0.0.1:{self.wire.port}{self.far.store}"
        self.opened: list[SftpChannel] = []
        self.channel: Channel = self.open()
        # The disk is everybody's; OpenSSH authenticates once, so a revoked peer goes at its next login
        self.declared = Declared(FOREIGN, quota=None, exact_space=False, permits=False, ends_sessions=False)
        self.nowhere = "sftp://127.0.0.2:1/srv"

    @property
    def identity(self) -> IdentityConfig:
        return self.gateway.model_copy(update={"ssh_peers": self.peers})

    def sync(self) -> None:
        peers = SshPeers(self.clients, Trust(self.site.trust))
        self.admitted = sync(peers, Targets(self.far.authorized_keys, self.far.revoked_keys)).admitted

    def open(self) -> SftpChannel:
        trust = Trust(self.site.trust)
        channel = SftpChannel(self.identity, trust, self.door, timeouts=Timeouts(answer=TIMEOUT, write=TIMEOUT))
        self.opened.append(channel)
        return channel

    def rot(self, key: str) -> None:
        spoil(self.far.store / "objects" / key)

    def revoke(self) -> None:
        self.site.revoke(self.gateway)
        self.sync()

    def restart(self) -> None:
        self.far.stop()
        self.wire.drop_all()
        self.far.start()

    def leftovers(self) -> list[str]:
        stage = self.far.store / "stage"
        return [path.name for path in stage.iterdir()] if stage.exists() else []

    def source(self, data: bytes) -> tuple[ObjectSpec, str, str]:
        raise NotImplementedError("an sshd pulls from nobody")

    def close(self) -> None:
        for channel in self.opened:
            channel.close()
        self.wire.close()
        self.far.stop()


@contextmanager
def sshd_rig(site: SiteHome, tmp_path: Path) -> Iterator[SshdRig]:
    rig = SshdRig(site, tmp_path)
    try:
        yield rig
    finally:
        rig.close()
