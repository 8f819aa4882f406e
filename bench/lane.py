"""The C-STORE lane alone beside DCMTK's storescp: CPU per image, by size of image, plain and over DICOM TLS.

One receiver process of dgis, without worker, catalog and storage elements, in two ways: `write` writes each fragment to
a file and promises nothing, which is what `storescp +B` does; `durable` is the product's own ingest: two digests, the
header cut out, the record, fsync, rename, fsync of the directory. DCMTK's storescu sends, one process, with
TCP_NODELAY=1; both servers offer PDUs of 131072. All is interleaved, medians of `ROUNDS`.

CPU is user + system time of the server process over all its threads, to the nanosecond; the rate is one sender's, so it
is mostly the sender's and the machine's.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from certs import ca
from certs.config import IdentityConfig
from dgis.record import Arrival
from tests.helpers import dcmtk
from tests.helpers.dicomfiles import synth
from tests.helpers.grid import free_port, wait_until

ROUNDS = 3
RESULTS = Path(__file__).parent / "results"
DCMTK, WRITE, DURABLE = "DCMTK storescp +B", "dgis, write", "dgis, durable"
SERVERS = (DCMTK, WRITE, DURABLE)


@dataclass(frozen=True, slots=True)
class Size:
    """Square CT images of one size: `files` of them, sent `times` over."""

    name: str
    edge: int  # rows and columns of 16 bits
    files: int
    times: int = 1

    @property
    def images(self) -> int:
        return self.files * self.times


SIZES = (
    Size("4 KiB", 36, 150, 4),
    Size("128 KiB", 256, 100, 4),
    Size("512 KiB", 512, 100, 2),
    Size("50 MiB", 5120, 2, 2),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One server, one size, one round."""

    server: str
    size: str
    tls: bool
    images: int
    seconds: float
    cpu_ms_per_image: float
    peak_rss_mib: float


@dataclass(frozen=True, slots=True)
class People:
    """Who shows what over TLS."""

    server: IdentityConfig
    client: IdentityConfig
    ca: Path

    @property
    def client_options(self) -> tuple[str, ...]:
        return ("+tls", str(self.client.key), str(self.client.cert), "+cf", str(self.ca))


@dataclass(frozen=True, slots=True)
class Server:
    """A running server of either kind."""

    process: subprocess.Popen[bytes]
    port: int
    tls_port: int = 0

    def cpu_seconds(self) -> float:
        """User + system time of the process, ended threads too (the clock of clock_getcpuclockid(3))."""
        return time.clock_gettime((~self.process.pid << 3) | 2)

    def peak_rss_mib(self) -> float:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        assert found is not None
        return int(found[1]) / 1024


def main() -> None:
    """Measure, print, write bench/results/lane.json."""
    with tempfile.TemporaryDirectory(prefix="dgis-bench-") as place:
        spread(Path(place))
        people = make_people(Path(place))
        samples = [
            measure(Path(place), server, size, folder, people if tls else None)
            for size in SIZES
            for folder in [images(Path(place), size)]
            for _ in range(ROUNDS)
            for tls in (False, True)
            for server in SERVERS
        ]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "lane.json").write_text(json.dumps([asdict(s) for s in samples], indent=1) + "\n")
    Console(width=140).print(table(samples))


def spread(place: Path) -> None:
    """Have each directory that is made in `place` in a block group of its own, where the file system knows that.

    On ext4 without a journal, making a file looks at every inode that was deleted nearby within a minute: up to half a
    millisecond. So nothing is deleted between two runs either, only emptied.
    """
    with contextlib.suppress(FileNotFoundError):
        subprocess.run(["chattr", "+T", str(place)], capture_output=True, check=False)


def empty(folder: Path) -> None:
    """Give the space back, not the inodes."""
    for path in folder.rglob("*"):
        if path.is_file():
            os.truncate(path, 0)


def images(place: Path, size: Size) -> Path:
    """The images of one size, made at the first call."""
    folder = place / f"images-{size.edge}"
    if not folder.exists():
        edge = str(size.edge)
        synth(folder, "--studies", "1", "--series", "1", "--instances", str(size.files), "--rows", edge, "--cols", edge)
    return folder


def make_people(place: Path) -> People:
    """A CA of its own, a server and a client."""
    home = place / "site"
    ca.init_site(home, organisation="Bench")
    server, client = (
        IdentityConfig(cert=c.cert, key=c.key, trust=home / "trust")
        for c in (
            ca.issue_host(home, name, dns=("localhost",), ips=("127.0.0.1",), roles=(), out=place / "people")
            for name in ("receiver", "modality")
        )
    )
    roots = place / "roots.pem"
    roots.write_bytes(b"".join(p.read_bytes() for p in sorted((home / "trust").iterdir()) if p.suffix == ".0"))
    return People(server, client, roots)


def measure(place: Path, name: str, size: Size, folder: Path, people: People | None) -> Sample:
    """Send all images of one size over one association each time."""
    store = Path(tempfile.mkdtemp(dir=place))
    with serving(name, store, people) as server:
        port = server.port if people is None else server.tls_port
        _send(port, folder, people)  # once not counted: imports, pools, buffers
        before, began = server.cpu_seconds(), time.monotonic()
        for _ in range(size.times):
            _send(port, folder, people)
        seconds, cpu = time.monotonic() - began, server.cpu_seconds() - before
        sample = Sample(
            name, size.name, people is not None, size.images, seconds, cpu * 1000 / size.images, server.peak_rss_mib()
        )
    empty(store)
    return sample


def _send(port: int, folder: Path, people: People | None) -> None:
    options = people.client_options if people is not None else ()
    done = dcmtk.run("storescu", *options, "-aec", "DGIS", "+sd", "+r", "127.0.0.1", str(port), folder)
    assert done.returncode == 0, done.stderr[-2000:]


# --- servers ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(name: str, store: Path, people: People | None) -> Iterator[Server]:
    """Run a server that stores into `store`."""
    server = _storescp(store, people) if name == DCMTK else _receiver(name, store, people)
    try:
        wait_until(lambda: _listens(server.port), seconds=20, what=f"{name} listens")
        yield server
    finally:
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(20)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


def _storescp(store: Path, people: People | None) -> Server:
    port = free_port()
    shown = people.server if people is not None else None
    secure = ("+tls", shown.key, shown.cert, "+cf", people.ca) if shown is not None and people is not None else ()
    process = dcmtk.start("storescp", "+B", "-pdu", "131072", *secure, "-od", store, str(port))
    return Server(process, port, port)


def _receiver(name: str, store: Path, people: People | None) -> Server:
    """This module as a program: one receiver on listening sockets that it inherits, plain and TLS."""
    with (
        socket.create_server(("127.0.0.1", 0), backlog=512) as one,
        socket.create_server(("127.0.0.1", 0), backlog=512) as other,
    ):
        fds = (one.fileno(), other.fileno())
        shown = people.server if people is not None else None
        identity = [] if shown is None else [str(shown.cert), str(shown.key), str(shown.trust)]
        arguments = [name, str(store), *map(str, fds), *identity]
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.lane", *arguments], pass_fds=fds, stderr=subprocess.DEVNULL
        )
        return Server(process, one.getsockname()[1], other.getsockname()[1])


class Written:
    """One object of the `write` server: each fragment goes to the file as it comes."""

    def __init__(self, path: Path, meta: bytes) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.write(self._fd, meta)

    def write(self, data: bytes | memoryview) -> None:
        """Write."""
        os.write(self._fd, data)

    def commit(self) -> None:
        """Close: as safe as at DCMTK's."""
        os.close(self._fd)

    def abort(self) -> None:
        """As `commit`: nobody looks."""
        os.close(self._fd)


class Writing:
    """The `Ingest` of the `write` server."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def begin(self, arrival: Arrival) -> Written:
        """Start one object."""
        from dgis import part10

        meta = part10.file_meta(arrival.sop_class_uid, arrival.instance_uid, arrival.transfer_syntax)
        return Written(self._folder / arrival.instance_uid, meta)

    def settle(self, association_id: str, *, timeout: float = 2.0) -> bool:
        """Nothing to wait for."""
        return True

    def forget(self, association_id: str) -> None:
        """Nothing is remembered."""


def serve(name: str, store: Path, fds: tuple[int, int], identity: IdentityConfig | None, stop: threading.Event) -> None:
    """Receive until `stop`; nothing but C-STORE and C-ECHO is there to be asked for."""
    from prometheus_client import CollectorRegistry

    from dgis.dimse.ae import AeTable, UnknownAe
    from dgis.dimse.limits import Limits
    from dgis.dimse.serve import TlsListener, serve_dimse
    from dgis.dimse.services import DimseSettings, Ingest, Services
    from dgis.ingest import Ingest as SpoolIngest
    from dgis.metrics import make_metrics
    from dgis.spool import Spool

    ingest: Ingest = Writing(store)
    if name == DURABLE:
        ingest = SpoolIngest(Spool(store), make_metrics(CollectorRegistry()))
    table_ = AeTable(store / "ae.toml", unknown=UnknownAe(rights=frozenset(("echo", "store"))))
    nothing: Any = None
    services = Services(ingest, nothing, nothing, table_)
    # Nobody registers anything here; the limits are those of `bench.idle`.
    settings = DimseSettings(settle=0.0, limits=Limits(total=2000, per_ae=2000))
    plain, secure = (socket.socket(fileno=fd) for fd in fds)
    tls = TlsListener(secure, identity) if identity is not None else None
    serve_dimse(plain, settings, services, stop, tls=tls)


def _program(name: str, store: str, fd: str, tls_fd: str, *identity: str) -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    cert, key, trust = map(Path, identity) if identity else (None, None, None)
    shown = IdentityConfig(cert=cert, key=key, trust=trust) if cert and key and trust else None
    serve(name, Path(store), (int(fd), int(tls_fd)), shown, stop)


# --- the table -------------------------------------------------------------------------------------------------------


def table(samples: Sequence[Sample]) -> Table:
    """Medians, with the ratio to DCMTK of the same size and security."""
    out = Table(title=f"C-STORE, one sender, the server's CPU; medians of {ROUNDS} rounds", title_justify="left")
    for column in ("Size", "TLS", "Server", "CPU ms/image", "of DCMTK's", "images/s", "Peak RSS MiB"):
        out.add_column(column, justify="left" if column in ("Size", "TLS", "Server") else "right")
    for size in dict.fromkeys(s.size for s in samples):
        for tls in (False, True):
            group = [s for s in samples if (s.size, s.tls) == (size, tls)]
            for server in dict.fromkeys(s.server for s in group):
                out.add_row(size, "yes" if tls else "", server, *_row(group, server))
        out.add_section()
    return out


def _row(group: Sequence[Sample], server: str) -> list[str]:
    mine = [s for s in group if s.server == server]
    cpu, theirs = _cpu(mine), _cpu([s for s in group if s.server == DCMTK])
    rate = statistics.median(s.images / s.seconds for s in mine)
    ratio = f"{cpu / theirs:.2f}" if theirs else ""
    return [f"{cpu:.2f}", ratio, f"{rate:.0f}" if rate > 10 else f"{rate:.1f}", f"{mine[0].peak_rss_mib:.0f}"]


def _cpu(samples: Sequence[Sample]) -> float:
    return statistics.median(s.cpu_ms_per_image for s in samples) if samples else 0.0


if __name__ == "__main__":
    if sys.argv[1:]:  # a server, for the run that started it
        _program(*sys.argv[1:])
    else:
        main()
