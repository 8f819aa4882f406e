"""One process, the doors that its configuration names."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli_w

from certs.config import IdentityConfig, load_toml
from certs.errors import ConfigError
from certs.https.session import GridSession
from storage_provider.channels import open_channels
from storage_provider.config import StorageConfig
from storage_provider.errors import DoorURL, Unreachable
from storage_provider.gridftp.client.channel import GsiftpChannel
from storage_provider.https.client import HttpsChannel
from storage_provider.node import StorageNode
from storage_provider.sftp.client import SftpChannel
from tests.conformance.memory_channel import spec_of
from tests.conformance.rigs import write
from tests.helpers.pki import SiteHome

Named = GsiftpChannel | SftpChannel | HttpsChannel
RULES = {"gateway": ["read", "write", "delete", "list"], "operator": ["read"]}


@pytest.fixture
def peers(site: SiteHome, tmp_path: Path) -> Path:
    """The certificates of a provider and a gateway, for SSH."""
    folder = tmp_path / "peers"
    folder.mkdir()
    for identity in (site.storage(), site.gateway()):
        (folder / f"{identity.cert.name}.pem").write_bytes(identity.cert.read_bytes())
    return folder


@pytest.fixture
def session(site: SiteHome, peers: Path) -> Iterator[GridSession]:
    made = GridSession(site.gateway().model_copy(update={"ssh_peers": peers}))
    yield made
    made.close()


def config_file(identity: IdentityConfig, tmp_path: Path, **tables: object) -> Path:
    known = identity.model_dump(mode="json", exclude_none=True)
    storage = {"name": "se1", "root": str(tmp_path / "store")}
    area = {"name": "main", "quota": "1GB", "rules": RULES}
    path = tmp_path / "se.toml"
    path.write_text(tomli_w.dumps({"identity": known, "storage": storage, "area": [area], **tables}))
    return path


def test_three_doors_to_the_same_objects(site: SiteHome, peers: Path, session: GridSession, tmp_path: Path) -> None:
    identity = site.storage().model_copy(update={"ssh_peers": peers})
    config = config_file(identity, tmp_path, gsiftp={"port": 0}, sftp={"port": 0})
    command = [sys.executable, "-m", "storage_provider.cli", "serve", "--config", str(config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        assert child.stdout is not None
        name, _, urls = child.stdout.readline().strip().removeprefix("ready: ").partition(" at ")
        bases = urls.split(", ")
        assert (name, [url.split(":")[0] for url in bases]) == ("se1", ["https", "gsiftp", "sftp"])
        channels = [open_channels(session)(f"{url}/areas/main") for url in bases]
        for number, channel in enumerate(channels):
            data = b"by door %d" % number
            channel.put(spec_of(data), write(tmp_path, data))
            for other in channels:
                with other.get(spec_of(data).key) as blocks:
                    assert b"".join(blocks) == data
        assert [channel.element() for channel in channels if isinstance(channel, Named)] == ["se1"] * 3
        assert len({(c.space().total, c.space().used) for c in channels}) == 1
        health = session.json("GET", f"{bases[0]}/health")
        assert health["status"] == "ok" and {"gsiftp", "sftp"} < set(health["checks"])
        child.send_signal(signal.SIGTERM)  # with sessions open at each door
        assert child.wait(10) == 0
        for channel in channels:
            with pytest.raises(Unreachable):
                channel.stat(spec_of(data).key)
            channel.close()


def test_a_door_that_is_taken_is_named_and_none_stays_open(site: SiteHome, peers: Path, tmp_path: Path) -> None:
    identity = site.storage().model_copy(update={"ssh_peers": peers})
    with socket.create_server(("127.0.0.1", 0)) as taken:
        tables = {"gsiftp": {"port": 0}, "sftp": {"port": taken.getsockname()[1]}}
        node = StorageNode(load_toml(config_file(identity, tmp_path, **tables), StorageConfig))
        with pytest.raises(ConfigError, match=r"\[sftp\]: the door cannot be opened"):
            node.open()
        with pytest.raises(OSError):
            socket.create_connection(node.doors["gsiftp"].address, 1).close()
    node.service.close()


def test_health_tells_which_door_is_closed(site: SiteHome, peers: Path, tmp_path: Path) -> None:
    identity = site.storage().model_copy(update={"ssh_peers": peers})
    tables = {"gsiftp": {"port": 0}, "sftp": {"port": 0}}
    node = StorageNode(load_toml(config_file(identity, tmp_path, **tables), StorageConfig))
    assert [url.split(":")[0] for url in node.open()] == ["gsiftp", "sftp"]
    checks = node.app.state.health.checks
    assert "open at port" in checks["gsiftp"]() and "open at port" in checks["sftp"]()
    node.doors["gsiftp"].stop()
    with pytest.raises(OSError):
        checks["gsiftp"]()
    assert "open at port" in checks["sftp"]()
    node.close()
    node.service.close()


def test_mistakes_in_the_doors_are_told(site: SiteHome, tmp_path: Path) -> None:
    for tables, told in (
        ({"sftp": {}}, "needs ssh_peers"),
        ({"gsiftp": {"data_ports": [50199, 50000]}}, "lowest and the highest"),
        ({"gsiftp": {"ports": [1, 2]}}, "unknown key 'ports'"),
    ):
        with pytest.raises(ConfigError, match=told):
            load_toml(config_file(site.storage(), tmp_path, **tables), StorageConfig)


def test_doors_that_nothing_speaks_are_told(session: GridSession) -> None:
    open_channel = open_channels(session)
    for url in ("ftp://h:1/areas/main", "se1", "https://h:1/other", "gsiftp:///areas/main", "sftp://h:x/areas/main"):
        with pytest.raises(DoorURL) as caught:
            open_channel(url)
        assert caught.value.door == url or url in str(caught.value)
