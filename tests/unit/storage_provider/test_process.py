"""The real process: configuration, start and stop, kill -9 while objects come in, disk full, fsck, memory."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from certs.config import IdentityConfig
from certs.https.session import GridSession
from storage_provider.channel import ObjectSpec
from storage_provider.channels import open_channels
from storage_provider.checksum import CHUNK_BYTES, digests_of
from storage_provider.cli import main
from storage_provider.errors import NoSpace, Unreachable
from storage_provider.fsck import check
from storage_provider.keys import object_key
from storage_provider.transfer.engine import Doors, Engine, Source
from storage_provider.transfer.route import SCHEMES
from tests.conformance.memory_channel import spec_of
from tests.conformance.rigs import write
from tests.helpers.pki import SiteHome

MIB = 1024 * 1024


def config_of(identity: IdentityConfig, root: Path, *, quota: str = "10GB", more: str = "") -> Path:
    path = root.parent / f"{root.name}.toml"
    path.write_text(
        f"""
[server]
port = 0
[identity]
cert = "{identity.cert}"
key = "{identity.key}"
trust = "{identity.trust}"
gridmap = "{identity.gridmap}"
ssh_peers = "{identity.ssh_peers or root.parent}"
[storage]
name = "se1"
root = "{root.name}"
[[area]]
name = "main"
quota = "{quota}"
reserve = "0B"
rules = {{gateway = ["read", "write", "delete", "list"]}}
{more}
"""
    )
    return path


class Process:
    """A `dgis-storage serve` child."""

    def __init__(self, config: Path) -> None:
        command = [sys.executable, "-m", "storage_provider.cli", "serve", "--config", str(config)]
        self.child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.child.stdout is not None
        line = self.child.stdout.readline()
        assert line.startswith("ready: se1 at https://"), line
        urls = line.strip().partition(" at ")[2].split(", ")
        self.by_scheme = {url.split(":")[0]: Doors("se1", (f"{url}/areas/main",)) for url in urls}
        self.doors = self.by_scheme["https"]

    def kill(self) -> None:
        self.child.send_signal(signal.SIGKILL)
        self.child.wait()

    def stop(self) -> int:
        self.child.send_signal(signal.SIGTERM)
        return self.child.wait(10)


@contextmanager
def serving(config: Path) -> Iterator[Process]:
    process = Process(config)
    try:
        yield process
    finally:
        if process.child.poll() is None:
            process.stop()
        assert process.child.stdout is not None
        process.child.stdout.close()


@pytest.fixture
def engine(site: SiteHome) -> Iterator[Engine]:
    session = GridSession(site.gateway())
    yield Engine(open_channels(session))
    session.close()


def test_starts_serves_and_stops_cleanly(site: SiteHome, tmp_path: Path, engine: Engine) -> None:
    with serving(config_of(site.storage(), tmp_path / "se1")) as process:
        spec = spec_of(b"hello")
        engine.store(spec, write(tmp_path, b"hello"), process.doors)
        assert process.stop() == 0
    report = check(tmp_path / "se1" / "main")
    assert report.clean and report.objects == 1


def test_kill_while_putting(site: SiteHome, tmp_path: Path, engine: Engine) -> None:
    """What was acknowledged is there and whole after each kill; nothing else is visible; uploads go on."""
    config, rng = config_of(site.storage(), tmp_path / "se1"), random.Random(3)
    big = rng.randbytes(3 * CHUNK_BYTES)
    acknowledged: set[str] = set()
    for _ in range(3):
        process = Process(config)
        stop = threading.Event()

        def store_until_killed(doors: Doors = process.doors, stop: threading.Event = stop) -> None:
            while not stop.is_set():
                for data in (rng.randbytes(rng.choice([10, 100_000, 600_000])), big + rng.randbytes(1)):
                    try:
                        engine.store(spec_of(data), write(tmp_path, data), doors)
                    except Unreachable:
                        return
                    acknowledged.add(spec_of(data).key)

        thread = threading.Thread(target=store_until_killed)
        thread.start()
        time.sleep(rng.uniform(0.1, 0.5))
        process.kill()
        stop.set()
        thread.join(30)
        report = check(tmp_path / "se1" / "main")
        assert report.clean and not report.foreign
    with serving(config) as process:
        channel = engine.channel(process.doors.urls[0])
        present = {stat.key for stat in channel.list()}
        assert acknowledged <= present and acknowledged
        assert not list((tmp_path / "se1" / "main" / "stage").iterdir())
        for key in present:
            assert channel.checksum(key) == key[-64:]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs takes root")
def test_a_really_full_disk(site: SiteHome, tmp_path: Path, engine: Engine) -> None:
    root = tmp_path / "se1"
    root.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(root)], check=False)
    if mounted.returncode:
        pytest.skip("this machine does not let us mount a tmpfs")
    try:
        with serving(config_of(site.storage(), root)) as process:
            kept = []
            rng = random.Random(4)
            for size in [5 * CHUNK_BYTES] + [700_000] * 12:
                data = rng.randbytes(size)
                try:
                    engine.store(spec_of(data), write(tmp_path, data), process.doors)
                    kept.append(spec_of(data).key)
                except NoSpace as error:
                    assert not error.permanent
            assert 1 <= len(kept) <= 6
            again = rng.randbytes(9 * MIB)
            with pytest.raises(NoSpace):
                engine.store(spec_of(again), write(tmp_path, again), process.doors)
            channel = engine.channel(process.doors.urls[0])
            assert sorted(stat.key for stat in channel.list()) == sorted(kept)
            main_area = root / "main"
            assert not list((main_area / "stage").iterdir()) and not list((main_area / "uploads").iterdir())
            for key in kept:
                channel.delete(key)
            engine.store(spec_of(again), write(tmp_path, again), process.doors)
            assert check(main_area).clean
    finally:
        subprocess.run(["umount", "-l", str(root)], check=True)


def flat_memory(site: SiteHome, tmp_path: Path, size: int, scheme: str) -> tuple[float, float]:
    """Send an object in and out by a door through a client process; peak RSS (MiB) of server and client."""
    peers = tmp_path / "peers"
    peers.mkdir()
    gateway, storage = (each.model_copy(update={"ssh_peers": peers}) for each in (site.gateway(), site.storage()))
    for identity in (gateway, storage):
        (peers / f"{identity.cert.name}.pem").write_bytes(identity.cert.read_bytes())
    config = config_of(storage, tmp_path / "se1", more="[gsiftp]\nport = 0\n[sftp]\nport = 0")
    path = tmp_path / "big"
    with path.open("wb") as file:
        file.truncate(size)
        for at in range(0, size, CHUNK_BYTES):
            file.seek(at)
            file.write(at.to_bytes(8, "big"))
    sha256, chunks = digests_of(path, size=size)
    task = {"gateway": gateway.model_dump(mode="json"), "path": str(path), "size": size, "sha256": sha256}
    with serving(config) as process:
        task["door"] = process.by_scheme[scheme].urls[0]
        code = CLIENT.replace("TASK", repr(json.dumps({**task, "chunks": chunks})))
        client = subprocess.Popen([sys.executable, "-c", code])
        peaks = _peaks([process.child.pid, client.pid], client)
    assert client.returncode == 0
    assert path.with_name("back").stat().st_size == size
    return peaks[0] / MIB, peaks[1] / MIB


CLIENT = """
import json
from pathlib import Path
from certs.config import IdentityConfig
from certs.https.session import GridSession
from storage_provider.channel import ObjectSpec
from storage_provider.channels import open_channels
from storage_provider.keys import object_key
from storage_provider.transfer.engine import Doors, Engine, Source
task = json.loads(TASK)
engine = Engine(open_channels(GridSession(IdentityConfig(**task["gateway"]))))
spec = ObjectSpec(object_key(task["sha256"]), task["size"], task["sha256"], tuple(task["chunks"]))
doors = Doors("se1", (task["door"],))
path = Path(task["path"])
engine.store(spec, path, doors)
engine.fetch(Source((doors,), spec.key, spec.size, spec.sha256, spec.chunks), path.with_name("back"))
"""


def _peaks(pids: list[int], until: subprocess.Popen[bytes]) -> list[int]:
    peaks = [0] * len(pids)
    while until.poll() is None:
        for number, pid in enumerate(pids):
            try:
                peaks[number] = max(peaks[number], psutil.Process(pid).memory_info().rss)
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.02)
    return peaks


@pytest.mark.parametrize("scheme", SCHEMES)
def test_memory_is_flat(site: SiteHome, tmp_path: Path, scheme: str) -> None:
    server, client = flat_memory(site, tmp_path, 160 * MIB, scheme)
    assert server < 150 and client < 150


@pytest.mark.soak
@pytest.mark.parametrize("scheme", SCHEMES)
def test_memory_is_flat_for_1200_mb(site: SiteHome, tmp_path: Path, scheme: str) -> None:
    server, client = flat_memory(site, tmp_path, 1_200_000_000, scheme)
    print(f"peak RSS for 1.2 GB by {scheme}: server {server:.0f} MiB, client {client:.0f} MiB")
    assert server < 150 and client < 150


# -- configuration and fsck -------------------------------------------------------------------------------------


def test_fsck_finds_what_rotted(site: SiteHome, tmp_path: Path, engine: Engine) -> None:
    config = config_of(site.storage(), tmp_path / "se1")
    with serving(config) as process:
        for data in (b"one", b"two"):
            engine.store(spec_of(data), write(tmp_path, data), process.doors)
        runner = CliRunner()
        assert runner.invoke(main, ["fsck", "--config", str(config)]).exit_code == 0
        bad = tmp_path / "se1" / "main" / "objects" / spec_of(b"two").key
        bad.write_bytes(b"tw0")
        (bad.parent / "stray.txt").write_text("x")
        result = runner.invoke(main, ["fsck", "--config", str(config), "--format", "json"])
    assert result.exit_code == 10
    report = json.loads(result.stdout)["main"]
    assert list(report["corrupt"]) == [spec_of(b"two").key]
    assert report["objects"] == 2 and len(report["foreign"]) == 1
    text = runner.invoke(main, ["fsck", "--config", str(config)]).stdout
    assert "1 corrupt" in text and spec_of(b"two").key in text


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("colour = 1", ("area", "colour")),
        ('[[area]]\nname = "../x"\nrules = {}', ("area", "name")),
        ('[[area]]\nname = "main"\nrules = {}', ("two areas",)),
        ('[[area]]\nname = "b"\nquota = "lots"\nrules = {}', ("quota", "500GB")),
        ('[[area]]\nname = "b"\nrules = {gateway = ["fly"]}', ("rules",)),
        ('[[area]]\nname = "b"\nrules = {pilot = ["read"]}', ("pilot",)),
        ("[extra]\nx = 1", ("extra",)),
    ],
)
def test_config_errors_name_their_place(site: SiteHome, tmp_path: Path, more: str, words: tuple[str, ...]) -> None:
    config = config_of(site.storage(), tmp_path / "se1", more=more)
    result = CliRunner().invoke(main, ["serve", "--config", str(config)])
    assert result.exit_code == 1
    for word in (*words, config.name):
        assert word in result.stderr
    assert not (tmp_path / "se1").exists()


def test_two_servers_of_one_store_are_one_too_many(site: SiteHome, tmp_path: Path) -> None:
    config = config_of(site.storage(), tmp_path / "se1")
    with serving(config):
        result = CliRunner().invoke(main, ["serve", "--config", str(config)])
    assert result.exit_code == 1 and "another process serves" in result.stderr


def test_object_spec_refuses_nonsense() -> None:
    from storage_provider.errors import Refused

    sha256 = "ab" * 32
    for bad in (("x", 1, sha256), (object_key(sha256), -1, sha256), (object_key(sha256), 1, "cd" * 32)):
        with pytest.raises(Refused):
            ObjectSpec(*bad)
    with pytest.raises(Refused):
        ObjectSpec(object_key(sha256), 1, sha256, (sha256,))


def test_sources_are_checked_before_anything_is_asked(tmp_path: Path, engine: Engine) -> None:
    from storage_provider.errors import Refused

    with pytest.raises(Refused):
        engine.fetch(Source((), "v1/../../etc/passwd", 1, "ab" * 32), tmp_path / "t")
