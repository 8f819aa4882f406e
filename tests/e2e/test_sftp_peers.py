"""OpenSSH's own `sftp` and `ssh` against our SFTP server, with the X.509 keys as they are."""

from __future__ import annotations

import random
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from certs.config import IdentityConfig
from certs.credential import Credential
from storage_provider.checksum import CHUNK_BYTES
from tests.conformance.faulty_wire import FaultyWire, Mood
from tests.conformance.memory_channel import spec_of
from tests.helpers.pki import SiteHome
from tests.helpers.sftpd import Sftpd, admit, sftpd
from tests.helpers.sshd import NEEDS_SFTP, SFTP

pytestmark = [pytest.mark.peer, NEEDS_SFTP]

DATA = random.Random(31).randbytes(700_000)
BIG = random.Random(32).randbytes(4 * CHUNK_BYTES + 33)
SPEC, BIG_SPEC = spec_of(DATA), spec_of(BIG)


def place(key: str) -> str:
    return f"/areas/main/objects/{key}"


def part(sha256: str) -> str:
    return f"/areas/main/stage/{sha256}.0011.part"


class Stock:
    """The stock client as one party; the server's key is known beforehand, from its certificate."""

    def __init__(self, served: Sftpd, identity: IdentityConfig, folder: Path) -> None:
        self.served = served
        self.folder = folder
        self._identity = identity
        self._known = folder / "known_hosts"
        host = Credential(served.site.storage().cert, served.site.storage().key).chain()[0].public_key()
        line = host.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        self._known.write_text(f"dgis-se {line}\n")

    def run(self, *commands: str, port: int | None = None) -> subprocess.CompletedProcess[str]:
        """Run commands of `sftp -b`, which stops at the first that fails."""
        batch = self.folder / "batch"
        batch.write_text("\n".join(commands) + "\n")
        host, own = self.served.address
        argv = [str(SFTP), "-b", str(batch), "-P", str(port or own), *self._options(), host]
        return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)

    def ssh(self, *args: str) -> subprocess.CompletedProcess[str]:
        host, port = self.served.address
        argv = ["/usr/bin/ssh", "-p", str(port), *self._options(), *args, host]
        return subprocess.run([*argv, "id"], capture_output=True, text=True, timeout=30, check=False)

    def good(self, *commands: str) -> str:
        done = self.run(*commands)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def file(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(data)
        return path

    def _options(self) -> list[str]:
        options = {
            "IdentityFile": str(self._identity.key),
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": str(self._known),
            "GlobalKnownHostsFile": "none",
            "HostKeyAlias": "dgis-se",
            "StrictHostKeyChecking": "yes",
            "PreferredAuthentications": "publickey",
            "BatchMode": "yes",
            "LogLevel": "ERROR",
        }
        return ["-F", "none", *(word for pair in options.items() for word in ("-o", "=".join(pair)))]


@pytest.fixture
def served(site: SiteHome, tmp_path: Path) -> Iterator[Sftpd]:
    with sftpd(site, tmp_path / "se", clients=(site.gateway(), site.user("walker", "operator"))) as ready:
        yield ready


@pytest.fixture
def stock(served: Sftpd, tmp_path: Path) -> Stock:
    return Stock(served, served.site.gateway(), tmp_path)


def test_put_rename_list_get_remove(stock: Stock) -> None:
    file, big = stock.file("a", DATA), stock.file("big", BIG)
    stock.good(
        f"put {file} {part(SPEC.sha256)}",
        f"rename {part(SPEC.sha256)} {place(SPEC.key)}",
        f"put {big} {place(BIG_SPEC.key)}",
    )
    assert sorted(path.read_bytes() for path in stock.served.objects()) == sorted([DATA, BIG])
    folder = place(SPEC.key).rpartition("/")[0]
    listed = stock.good("pwd", f"cd {folder}", "ls -l", "ls /areas/main/stage", f"ls -l {place(BIG_SPEC.key)}", "df .")
    assert f"{len(DATA)} " in listed and SPEC.sha256 in listed and f"{len(BIG)} " in listed
    stock.good(f"get {place(SPEC.key)} {stock.folder}/b", f"get -p {place(BIG_SPEC.key)} {stock.folder}/c")
    assert (stock.folder / "b").read_bytes() == DATA and (stock.folder / "c").read_bytes() == BIG
    stock.good(f"rm {place(SPEC.key)}", f"rm {place(BIG_SPEC.key)}")
    assert stock.served.objects() == [] and stock.served.leftovers() == []


def test_many_at_once_and_the_whole_tree_back(stock: Stock) -> None:
    """As a site would copy an SE by hand: `get -r` of the tree."""
    blocks = [DATA[n:] for n in range(40)]
    commands = []
    for number, block in enumerate(blocks):
        commands.append(f"put -p {stock.file(f's{number}', block)} {place(spec_of(block).key)}")
    stock.good(*commands)
    (stock.folder / "all").mkdir()
    stock.good(f"get -R /areas/main/objects {stock.folder}/all")
    back = sorted(path for path in (stock.folder / "all").rglob("*") if path.is_file())
    assert [path.name for path in back] == sorted(spec_of(block).sha256 for block in blocks)
    assert sorted(path.read_bytes() for path in back) == sorted(blocks)


def test_reput_and_reget_go_on(stock: Stock) -> None:
    """The connection is cut in the middle of a put and of a get; `reput` and `reget` send the rest."""
    file, wire = stock.file("big", BIG), FaultyWire(stock.served.address)
    try:
        wire.set(Mood(cut_up=len(BIG) // 2, cuts=1))
        assert stock.run(f"put {file} {part(BIG_SPEC.sha256)}", port=wire.port).returncode != 0
        wire.set(Mood())
        there = _size(stock, part(BIG_SPEC.sha256))
        assert 0 < there < len(BIG)
        stock.good(f"reput {file} {part(BIG_SPEC.sha256)}", f"rename {part(BIG_SPEC.sha256)} {place(BIG_SPEC.key)}")
        wire.set(Mood(cut_down=len(BIG) // 2, cuts=1))
        assert stock.run(f"get {place(BIG_SPEC.key)} {stock.folder}/back", port=wire.port).returncode != 0
        assert 0 < (stock.folder / "back").stat().st_size < len(BIG)
        stock.good(f"reget {place(BIG_SPEC.key)} {stock.folder}/back")
    finally:
        wire.close()
    assert (stock.folder / "back").read_bytes() == BIG


def _size(stock: Stock, path: str) -> int:
    deadline = time.monotonic() + 5
    while True:  # the server may still be working on what it has received
        sizes = {int(stock.good(f"ls -l {path}").split()[-5]) for _ in range(2)}
        if len(sizes) == 1 or time.monotonic() > deadline:
            return sizes.pop()


def test_what_is_wrong_fails_the_command(stock: Stock) -> None:
    file = stock.file("a", DATA[:-1])
    for commands in (
        [f"put {file} {place(SPEC.key)}"],
        [f"put {file} {part(SPEC.sha256)}", f"rename {part(SPEC.sha256)} {place(SPEC.key)}"],
    ):
        assert stock.run(*commands).returncode != 0
    for command in (
        "get /etc/passwd x",
        "put a /areas/main/anything",
        "put a /areas/main/stage/../../../tmp/x",
        f"rm {place(SPEC.key)}",
        f"ln {part(SPEC.sha256)} {place(SPEC.key)}",
        "mkdir /areas/main/mine",
        "rmdir /areas/main/stage",
        "ls /areas/other",
    ):
        assert stock.run(f"lcd {stock.folder}", command).returncode != 0, command
    assert stock.served.objects() == [] and stock.served.taken == 0


def test_an_rsa_user_reads_and_no_more(stock: Stock, tmp_path: Path) -> None:
    stock.good(f"put {stock.file('a', DATA)} {place(SPEC.key)}")
    walker = Stock(stock.served, stock.served.site.user("walker", "operator"), tmp_path)
    walker.good(f"get {place(SPEC.key)} {tmp_path}/seen")
    assert (tmp_path / "seen").read_bytes() == DATA
    assert walker.run(f"rm {place(SPEC.key)}").returncode != 0
    assert walker.run(f"put {tmp_path}/seen {part(SPEC.sha256)}").returncode != 0


def test_no_shell_no_command_no_forwarding(stock: Stock) -> None:
    assert "uid=" not in stock.ssh().stdout
    assert "uid=" not in stock.ssh("-tt").stdout
    with socket.create_server(("127.0.0.1", 0)) as inside:
        done = stock.ssh("-W", f"127.0.0.1:{inside.getsockname()[1]}")
        inside.settimeout(0.1)
        assert done.returncode != 0
        with pytest.raises(TimeoutError):
            inside.accept()


def test_revoked_and_unknown_users_are_refused(fresh_site: SiteHome, tmp_path: Path) -> None:
    leaver, stranger = fresh_site.host("leaver", "gateway"), fresh_site.host("stranger", "gateway")
    with sftpd(fresh_site, tmp_path / "se", clients=(leaver,)) as served:
        stock = Stock(served, leaver, tmp_path)
        assert "areas" in stock.good("ls /")
        assert "denied" in Stock(served, stranger, tmp_path).run("ls /").stderr.lower()
        fresh_site.revoke(leaver)
        assert "denied" in stock.run("ls /").stderr.lower()
        admit(served.peers, stranger)
        assert "areas" in Stock(served, stranger, tmp_path).good("ls /")
