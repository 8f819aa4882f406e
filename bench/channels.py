"""The storage channels beside the programs of the trade, in one run, interleaved: 400 x 512 KiB and one 512 MiB object.

Rows are a client and the server it speaks to; put and get of each set, seconds and ratios to the peer's row. Everything
lies in memory (/dev/shm where it exists), so that disks do not decide. Ours include login and what makes a put count:
SHA-256 at the far side, fsync, rename. The peers verify nothing (`globus-url-copy -fast -dcpriv`, `sftp`); the time
that our SFTP channel spends reading back from an sshd is measured by reading all of it once more, and shown apart.
Start-up of the peers' programs is included (some 30 ms), that of our interpreter is not. Every get is compared with
what was put.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import tomli_w
from rich.console import Console
from rich.table import Table

from certs.config import IdentityConfig
from certs.https.session import GridSession
from storage_provider.channel import Channel, ObjectSpec, Put, Want
from storage_provider.channels import open_channels
from storage_provider.checksum import digests_of
from storage_provider.errors import NotFound, StorageError
from storage_provider.gridftp.settings import DataSettings
from storage_provider.keys import object_key
from tests.helpers import gct
from tests.helpers.pki import SiteHome, site_home
from tests.helpers.sshd import SFTP as SFTP_PROGRAM
from tests.helpers.sshd import SSHD, Sshd

ROUNDS = 5
SETS = {"small": (400, 512 * 1024), "big": (1, 512 * 1024 * 1024)}
RESULTS = Path(__file__).parent / "results"
GUC = "globus-url-copy -fast -dcpriv, GCT server"
VERIFIED = "  the same with -verify-checksum (SHA-256)"
SFTP = "sftp, sshd"
PEER = {"gsiftp": GUC, "https": GUC, "sftp": SFTP}


@dataclass(frozen=True, slots=True)
class Sample:
    """One operation of one row in one round; `verify_seconds` is the read-back within a put, where there is one."""

    row: str
    operation: str
    set: str
    round: int
    seconds: float
    verify_seconds: float = 0.0


Timed = tuple[float, float]
"""Seconds in all, and of these for reading back."""
Row = Callable[[str, str, Path], Timed]
"""Runs (operation, set, folder of the files)."""


def main() -> None:
    """Measure, print, write bench/results/channels.json."""
    memory = Path("/dev/shm")
    with (
        tempfile.TemporaryDirectory(prefix="dgis-bench-", dir=memory if memory.is_dir() else None) as folder,
        ExitStack() as stack,
    ):
        place = Path(folder)
        place.chmod(0o755)  # the stock server runs as an account of its own
        sets = {name: _files(place / name, *shape) for name, shape in SETS.items()}
        rows = _rows(place, sets, stack)
        samples = [
            Sample(row, operation, name, number, *run(operation, name, place / name))
            for number in range(ROUNDS)
            for name in SETS
            for operation in ("put", "get")
            for row, run in rows.items()
        ]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "channels.json").write_text(json.dumps([asdict(s) for s in samples], indent=1) + "\n")
    Console(width=160).print(_table(samples))


def _files(folder: Path, count: int, size: int) -> list[ObjectSpec]:
    """Write `count` files named by their digests; their specs."""
    folder.mkdir()
    specs = []
    for number in range(count):
        path = folder / "new"
        with path.open("wb") as stream:
            for block in range(0, size, 1 << 20):
                stream.write(random.Random(f"{number} {block}").randbytes(min(1 << 20, size - block)))
        sha256, chunks = digests_of(path, size=size)
        path.rename(folder / sha256)
        specs.append(ObjectSpec(object_key(sha256), size, sha256, chunks))
    return specs


def _rows(place: Path, sets: dict[str, list[ObjectSpec]], stack: ExitStack) -> dict[str, Row]:
    """Start every server; a row for each client and server that this machine has."""
    site = site_home(place / "site")
    gateway, user = site.gateway(), site.user("bench", "gateway")
    known = place / "ssh_peers"
    known.mkdir()
    gateway = gateway.model_copy(update={"ssh_peers": known})
    shutil.copy(gateway.cert, known / "gateway.cert.pem")
    session = GridSession(gateway)
    stack.callback(session.close)
    channels = open_channels(session, data=DataSettings(active=True))
    rows: dict[str, Row] = {}
    if gct.have_server() and gct.have_client():
        server = stack.enter_context(gct.serve(site, gateway, user, place=place))
        rows[GUC] = lambda operation, name, folder: _guc(server, user, operation, folder, sets[name])
        sha = ("-verify-checksum", "-checksum-alg", "SHA256")
        rows[VERIFIED] = lambda operation, name, folder: _guc(server, user, operation, folder, sets[name], *sha)
        rows["gsiftp: dgis, GCT server"] = _ours(channels, server.url, sets)
    for scheme, door in stack.enter_context(_provider(site, known, place)).items():
        rows[f"{scheme}: dgis, dgis"] = _ours(channels, door, sets)
    if SSHD.exists() and SFTP_PROGRAM.exists():
        identity = site.host("sshd")
        sshd = Sshd(identity, place / "sshd")
        sshd.admit(gateway)
        sshd.start()
        stack.callback(sshd.stop)
        shutil.copy(identity.cert, known / "sshd.cert.pem")
        rows[SFTP] = lambda operation, name, folder: _sftp(sshd, gateway, operation, folder, sets[name])
        rows["sftp: dgis, sshd"] = _ours(channels, sshd.door, sets)
    return rows


@contextmanager
def _provider(site: SiteHome, known: Path, place: Path) -> Iterator[dict[str, str]]:
    """Run a storage provider as a process of its own; its doors by scheme."""
    identity = site.storage("se1")
    shutil.copy(identity.cert, known / "se1.cert.pem")
    config = place / "se1.toml"
    ports = {scheme: gct.free_port() for scheme in ("https", "gsiftp", "sftp")}
    config.write_text(
        tomli_w.dumps(
            {
                "server": {"port": ports["https"]},
                "gsiftp": {"port": ports["gsiftp"]},
                "sftp": {"port": ports["sftp"]},
                "identity": {
                    "cert": str(identity.cert),
                    "key": str(identity.key),
                    "trust": str(identity.trust),
                    "gridmap": str(identity.gridmap),
                    "ssh_peers": str(known),
                },
                "storage": {"name": "se1", "root": str(place / "se1")},
                "area": [{"name": "main", "reserve": 0, "rules": {"gateway": ["read", "write", "delete", "list"]}}],
                "log": {"level": "warning"},
            }
        )
    )
    command = [sys.executable, "-m", "storage_provider.cli", "serve", "--config", str(config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None and process.stdout.readline().startswith(b"ready"), "it did not start"
            yield {scheme: f"{scheme}://127.0.0.1:{port}/areas/main" for scheme, port in ports.items()}
        finally:
            process.terminate()


def _ours(channels: Callable[[str], Channel], door: str, sets: dict[str, list[ObjectSpec]]) -> Row:
    """Put or get a set by a channel opened for it, login included."""

    def run(operation: str, name: str, folder: Path) -> Timed:
        specs = sets[name]
        if operation == "put":
            _clear(channels(door), specs)
        channel = channels(door)
        started = time.monotonic()
        if operation == "put":
            for put, outcome in channel.put_many([Put(spec, folder / spec.sha256) for spec in specs]):
                assert not isinstance(outcome, StorageError), (put.spec.key, outcome)
        else:
            _get(channel, specs, _out(folder))
        seconds = time.monotonic() - started
        verified = 0.0 if operation == "get" or channel.capabilities.far_verify else _read_back(channel, specs)
        channel.close()
        if operation == "get":
            _compare(folder, specs)
        return seconds, verified

    return run


def _clear(channel: Channel, specs: Sequence[ObjectSpec]) -> None:
    for spec in specs:
        with suppress(NotFound):
            channel.delete(spec.key)
    channel.close()


def _read_back(channel: Channel, specs: Sequence[ObjectSpec]) -> float:
    """Do once more what the put did to verify: read everything and hash it."""
    started = time.monotonic()
    with channel.get_many([Want(spec.key) for spec in specs]) as stream:
        for got in stream:
            digest = hashlib.sha256()
            for block in got.blocks:
                digest.update(block)
            assert digest.hexdigest() == got.want.key[-64:]
    return time.monotonic() - started


def _get(channel: Channel, specs: Sequence[ObjectSpec], out: Path) -> None:
    with channel.get_many([Want(spec.key) for spec in specs]) as stream:
        for got in stream:
            with (out / got.want.key[-64:]).open("wb", buffering=0) as target:
                for block in got.blocks:
                    target.write(block)


def _guc(
    server: gct.GctServer,
    user: IdentityConfig,
    operation: str,
    folder: Path,
    specs: list[ObjectSpec],
    *options: str,
) -> Timed:
    far = server.root / "plain"
    far.mkdir(exist_ok=True)
    shutil.chown(far, gct.ACCOUNT)
    if operation == "put":
        for path in far.iterdir():
            path.unlink()
    near = _out(folder) if operation == "get" else folder
    pairs = [(f"file://{near / spec.sha256}", f"{server.url}/plain/{spec.sha256}") for spec in specs]
    listing = folder.parent / "pairs"
    listing.write_text("".join(f"{a} {b}\n" if operation == "put" else f"{b} {a}\n" for a, b in pairs))
    started = time.monotonic()
    done = gct.copy(user, "-fast", "-dcpriv", *options, "-f", listing, timeout=600)
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    if operation == "get":
        _compare(folder, specs)
    return seconds, 0.0


def _sftp(sshd: Sshd, identity: IdentityConfig, operation: str, folder: Path, specs: list[ObjectSpec]) -> Timed:
    far = sshd.store / "plain"
    far.mkdir(exist_ok=True)
    if operation == "put":
        for path in far.iterdir():
            path.unlink()
        lines = [f"put {folder / spec.sha256} {far / spec.sha256}" for spec in specs]
    else:
        out = _out(folder)
        lines = [f"get {far / spec.sha256} {out / spec.sha256}" for spec in specs]
    started = time.monotonic()
    done = sshd.sftp(identity, "\n".join(lines) + "\n", timeout=600)
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    if operation == "get":
        _compare(folder, specs)
    return seconds, 0.0


def _out(folder: Path) -> Path:
    out = folder.parent / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    return out


def _compare(folder: Path, specs: Sequence[ObjectSpec]) -> None:
    for spec in specs:
        with (folder.parent / "out" / spec.sha256).open("rb") as stream:
            assert hashlib.file_digest(stream, "sha256").hexdigest() == spec.sha256


def _table(samples: Sequence[Sample]) -> Table:
    """Medians; the ratio is the peer's seconds by ours, read-back left out: above 1 is faster than the peer."""
    table = Table(title=f"medians of {ROUNDS}: seconds (ratio to the peer; read-back in seconds)")
    table.add_column("client, server")
    columns = [(name, operation) for name in SETS for operation in ("put", "get")]
    for name, operation in columns:
        table.add_column(f"{name} {operation}", justify="right")
    for row in dict.fromkeys(sample.row for sample in samples):
        table.add_row(row, *(_cell(samples, row, name, operation) for name, operation in columns))
    return table


def _cell(samples: Sequence[Sample], row: str, name: str, operation: str) -> str:
    def median(of: str) -> tuple[float, float]:
        chosen = [s for s in samples if (s.row, s.set, s.operation) == (of, name, operation)]
        own = statistics.median(s.seconds - s.verify_seconds for s in chosen)
        return own, statistics.median(s.verify_seconds for s in chosen)

    seconds, verified = median(row)
    text = f"{seconds:.2f}"
    peer = PEER.get(row.split(":")[0])
    if peer and any(s.row == peer for s in samples):
        text += f" ({median(peer)[0] / seconds:.2f}x)"
    return f"{text} +{verified:.2f}" if verified else text


if __name__ == "__main__":
    main()
