"""C-MOVE and C-GET of 1300 CT images of 512 KiB and of one object of 50 MiB: dgis beside Orthanc, interleaved.

dgis stands there three times: with everything still in its spool (its storage elements do not run), with everything on
two storage elements behind gsiftp doors, and the same behind https doors, over mutual TLS. The clients are DCMTK's
movescu (to a storescp that writes what it gets) and getscu, the same for every server, with TCP_NODELAY=1 in the
environment of clients, destination and Orthanc: five studies of 260 images, one request after the other. The time to
the first image is taken by a client of raw PDUs: from writing the request to the last fragment of the first C-STORE-RQ.
CPU is that of the server's processes and, apart, of client and destination. Every image must have arrived.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
import pydicom
from pydicom.uid import UID
from rich.console import Console
from rich.table import Table

from dgis.dimse import command as dimse
from dgis.dimse.ask import Key, encode, identifier, request
from dgis.dimse.command import Field
from dgis.dimse.negotiation import STUDY_ROOT_GET, STUDY_ROOT_MOVE
from tests.helpers import dcmtk
from tests.helpers.dicomfiles import synth
from tests.helpers.grid import Grid, free_port, wait_until
from tests.helpers.orthanc import PROGRAM as ORTHANC_PROGRAM
from tests.helpers.orthanc import Orthanc
from tests.unit.dgis.dimse.raw import associate, associate_rq, item, read_pdu

ROUNDS = 3
RESULTS = Path(__file__).parent / "results"
EXPLICIT, CT, ENHANCED_CT = "1.2.840.10008.1.2.1", "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1"
ORTHANC = "Orthanc, NODELAY"
SPOOL, GSIFTP, HTTPS = "dgis, in the spool", "dgis, two SEs, gsiftp", "dgis, two SEs, https"
VERBS = ("move", "get")


@dataclass(frozen=True, slots=True)
class Sample:
    """One retrieve of a set in one round; `first_ms` is another retrieve, of the first study alone."""

    server: str
    verb: str
    set: str
    round: int
    images: int
    megabytes: float
    seconds: float
    first_ms: float
    cpu_ms_per_image: dict[str, float]
    client_cpu_ms_per_image: float
    peak_rss_mib: dict[str, float]


@dataclass(frozen=True, slots=True)
class Images:
    """A set of files: what is asked for is its studies, one after the other."""

    name: str
    folder: Path
    studies: tuple[str, ...]
    count: int
    size: int


@dataclass(frozen=True, slots=True)
class Server:
    """Something that answers C-MOVE and C-GET."""

    name: str
    port: int
    title: str
    cpu: Callable[[], dict[str, float]]
    peak: Callable[[], dict[str, float]]


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the destinations of C-MOVE listen: DEST is a storescp, FIRST takes the time."""

    dest: int = field(default_factory=free_port)
    first: int = field(default_factory=free_port)


PARTLY = 3


def main(arguments: Sequence[str] = ()) -> int:
    """Measure, print, write retrieve.json; the exit code: PARTLY when a retrieve failed, which then has no sample."""
    parser = argparse.ArgumentParser(prog="bench retrieve", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--quick", action="store_true", help="40 images, one round: to try it out")
    parser.add_argument("--servers", default=",".join((ORTHANC, SPOOL, GSIFTP, HTTPS)).replace(", ", "/"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    wanted = [name.replace("/", ", ") for name in options.servers.split(",")]
    with tempfile.TemporaryDirectory(prefix="dgis-bench-") as folder, ExitStack() as stack:
        place = Path(folder)
        sets = image_sets(place / "images", quick=options.quick)
        servers = list(started(place, sets, wanted, stack))
        rounds = 1 if options.quick else options.rounds
        tries = [
            _tried(server, verb, images, number, place / "out", ports)
            for number in range(rounds)
            for images in sets
            for verb in VERBS
            for server, ports in servers
        ]
    samples = [sample for sample in tries if sample is not None]
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "retrieve.json").write_text(json.dumps([asdict(s) for s in samples], indent=1) + "\n")
    Console(width=170).print(table(samples))
    return 0 if len(samples) == len(tries) else PARTLY


# --- files -----------------------------------------------------------------------------------------------------------


def image_sets(place: Path, *, quick: bool) -> list[Images]:
    """Write the files: five studies of 260, one study of 1300, one object of 50 MiB."""
    studies, series, count = (2, 2, 10) if quick else (5, 2, 130)
    many = _synth(place / "many", studies, series, count, first=0)
    long = _synth(place / "long", 1, series * studies, count, first=100)
    frames = 4 if quick else 100
    big = _big(place / "big", next(many.folder.glob("*/*/*/*")), frames)
    return [many, long, big]


def _synth(folder: Path, studies: int, series: int, count: int, *, first: int) -> Images:
    options = {"studies": studies, "series": series, "instances": count, "first-study": first, "seed": 1 + first}
    synth(folder, *(part for name, value in options.items() for part in (f"--{name}", str(value))))
    uids = [_study_of(next(study.glob("*/*/*"))) for study in sorted(folder.iterdir())]
    total = studies * series * count
    return Images(f"{total} x 512 KiB in {studies}", folder, tuple(uids), total, 512 * 1024)


def _study_of(path: Path) -> str:
    return str(pydicom.dcmread(path, stop_before_pixels=True).StudyInstanceUID)


def _big(folder: Path, pattern: Path, frames: int) -> Images:
    """Make one multi-frame object of frames of 512 KiB."""
    folder.mkdir()
    made = pydicom.dcmread(pattern)
    made.StudyInstanceUID, made.SeriesInstanceUID, made.SOPInstanceUID = "2.25.6001", "2.25.6002", "2.25.6003"
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = UID(ENHANCED_CT)
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    made.NumberOfFrames = frames
    made.PixelData = b"".join(made.PixelData[n:] + made.PixelData[:n] for n in range(0, 2 * frames, 2))
    made.save_as(folder / "big.dcm", enforce_file_format=True)
    return Images(f"1 x {frames // 2} MiB", folder, ("2.25.6001",), 1, frames * 512 * 1024)


# --- servers ---------------------------------------------------------------------------------------------------------


def started(
    place: Path, sets: Sequence[Images], wanted: Sequence[str], stack: ExitStack
) -> Iterator[tuple[Server, Ports]]:
    """Start every wanted server and store the sets there."""
    if ORTHANC in wanted and ORTHANC_PROGRAM.exists():
        yield _orthanc(place / "orthanc", sets, stack)
    for number, name in enumerate(name for name in wanted if name != ORTHANC):
        yield _dgis(place / f"dgis{number}", name, sets, stack)


def _orthanc(home: Path, sets: Sequence[Images], stack: ExitStack) -> tuple[Server, Ports]:
    ports = Ports()
    modalities: dict[str, tuple[str, str, int] | dict[str, object]] = {
        "DEST": ("DEST", "127.0.0.1", ports.dest),
        "FIRST": ("FIRST", "127.0.0.1", ports.first),
    }
    peer = stack.enter_context(Orthanc(home, nodelay=True, modalities=modalities))
    for images in sets:
        _store(images, peer.port, "ORTHANC")
    return Server(
        ORTHANC, peer.port, "ORTHANC", lambda: {"Orthanc": peer.cpu_seconds()}, lambda: {"Orthanc": peer.peak_rss_mib()}
    ), ports


def _dgis(home: Path, name: str, sets: Sequence[Images], stack: ExitStack) -> tuple[Server, Ports]:
    ports = Ports()
    peers = (f"DEST:127.0.0.1:{ports.dest}", f"FIRST:127.0.0.1:{ports.first}")
    grid = stack.enter_context(_grid(home, peers, frozen=name == SPOOL))
    if name == HTTPS:
        for provider in ("se1", "se2"):
            grid.cli("se", "add", provider, "--site", "local", "--door", grid.doors(provider)["https"])
        time.sleep(20)  # what processes know of doors may be 15 s old
    for images in sets:
        _store(images, grid.port, "DGIS")
    if name != SPOOL:
        grid.wait_drained(900)
    return Server(name, grid.port, "DGIS", grid.cpu_seconds, grid.peak_rss_mib), ports


@contextmanager
def _grid(home: Path, peers: tuple[str, ...], *, frozen: bool) -> Iterator[Grid]:
    """Run a grid; `frozen`: its storage elements take nothing, so that everything stays in the spool."""
    with Grid(home, peers=peers) as grid:
        elements = [one for role in ("se1", "se2") for one in grid.processes()[role]] if frozen else []
        for process in elements:
            process.send_signal(signal.SIGSTOP)
        try:
            yield grid
        finally:
            for process in elements:
                process.send_signal(signal.SIGCONT)


def _store(images: Images, port: int, called: str) -> None:
    arguments = ("-aec", called, "+sd", "+r", "-xe", "127.0.0.1", str(port), images.folder)
    assert dcmtk.run("storescu", *arguments, timeout=900).returncode == 0, "storescu failed"


# --- measuring -------------------------------------------------------------------------------------------------------


def _tried(server: Server, verb: str, images: Images, number: int, out: Path, ports: Ports) -> Sample | None:
    """Measure; None, told on stderr, when it went wrong: a retrieve of not everything is no figure."""
    try:
        return measure(server, verb, images, number, out, ports)
    except (AssertionError, OSError) as error:
        print(f"{server.name}, {verb}, {images.name}: {error}", file=sys.stderr)
        return None


def measure(server: Server, verb: str, images: Images, number: int, out: Path, ports: Ports) -> Sample:
    """Retrieve a set once, after one retrieve for the time to the first image."""
    first = first_by_get(server, images) if verb == "get" else first_by_move(server, images, ports.first)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    with _destination(out, ports.dest if verb == "move" else None) as destination:
        before, client, began = server.cpu(), 0.0, time.monotonic()
        for study in images.studies:
            client += _client(server, verb, study, out)
        seconds = time.monotonic() - began
        after = server.cpu()
        if destination is not None:
            used = destination.cpu_times()
            client += used.user + used.system
    got = sum(1 for path in out.iterdir() if path.stat().st_size >= images.size)
    assert got == images.count, f"{server.name}, {verb}: {got} of {images.count} arrived"
    shutil.rmtree(out)
    cpu = {role: (after[role] - before[role]) * 1000 / got for role in after if role in before}
    return Sample(
        server.name, verb, images.name, number, got, got * images.size / 1e6, seconds, first * 1000, cpu,
        client * 1000 / got, server.peak(),
    )  # fmt: skip


@contextmanager
def _destination(out: Path, port: int | None) -> Iterator[psutil.Process | None]:
    if port is None:
        yield None
        return
    process = dcmtk.start("storescp", "-aet", "DEST", "-od", out, "+B", str(port))
    try:
        wait_until(lambda: dcmtk.echo("127.0.0.1", port, called="DEST"), seconds=10, what="storescp listens")
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(10)


def _client(server: Server, verb: str, study: str, out: Path) -> float:
    """Run movescu or getscu for one study to its end; the CPU seconds it took."""
    keys = ("-S", "-aec", server.title, "-k", "0008,0052=STUDY", "-k", f"0020,000D={study}")
    way = ("-aem", "DEST") if verb == "move" else ("-od", os.fspath(out), "+B")
    command = [str(dcmtk.PLACE / f"{verb}scu"), *keys, *way, "127.0.0.1", str(server.port)]
    process = subprocess.Popen(
        command, env=dcmtk.environment(nodelay=True), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, wait_status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(wait_status)
    assert process.returncode == 0, f"{verb}scu at {server.name}: {process.returncode}"
    return usage.ru_utime + usage.ru_stime


def first_by_get(server: Server, images: Images) -> float:
    """Seconds from the C-GET-RQ to the end of the first C-STORE-RQ on the same association."""
    roles = b"".join(_role(uid) for uid in (CT, ENHANCED_CT))
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        _get_ready(sock, server, roles)
        return _timed(sock, sock, _ask(Field.C_GET, STUDY_ROOT_GET, images.studies[0]))


def first_by_move(server: Server, images: Images, port: int) -> float:
    """Seconds from the C-MOVE-RQ to the end of the first C-STORE-RQ at a destination."""
    with (
        socket.create_server(("127.0.0.1", port)) as listening,
        socket.create_connection(("127.0.0.1", server.port)) as sock,
    ):
        _nodelay(sock)
        associate(sock, [(STUDY_ROOT_MOVE, EXPLICIT)], called=server.title, max_pdu=131072)
        return _timed(sock, listening, _ask(Field.C_MOVE, STUDY_ROOT_MOVE, images.studies[0], "FIRST"))


def _ask(kind: Field, sop_class: str, study: str, destination: str = "") -> bytes:
    data = encode(identifier("STUDY", [Key.parse(f"StudyInstanceUID={study}")]), EXPLICIT)
    command = request(kind, 1, sop_class, destination=destination)
    out = b"".join(dimse.p_data(1, command, is_command=True, max_pdu=16384))
    return out + b"".join(dimse.p_data(1, data, is_command=False, max_pdu=16384))


def _timed(sock: socket.socket, coming: socket.socket, message: bytes) -> float:
    """Send the request, take the first image where it comes (a listening socket: on a new association), give up."""
    sock.settimeout(30)
    coming.settimeout(30)
    began = time.perf_counter()
    sock.sendall(message)
    if coming is sock:
        seconds = _first_image(sock) - began
    else:
        peer, _ = coming.accept()
        with peer:
            _nodelay(peer)
            _accept_all(peer)
            seconds = _first_image(peer) - began
    sock.sendall(struct.pack(">BBLL", 7, 0, 4, 0))  # A-ABORT
    return seconds


def _first_image(sock: socket.socket) -> float:
    """Read to the last fragment of the first data set; when that was."""
    with sock.makefile("rb", buffering=1 << 18) as stream:
        while True:
            head = stream.read(6)
            assert len(head) == 6 and head[0] == 4, "no image came"
            body = stream.read(int.from_bytes(head[2:], "big"))
            if any(control == 2 for _, control, _ in dimse.pdvs(memoryview(body))):
                return time.perf_counter()


def _accept_all(sock: socket.socket) -> None:
    """Answer an A-ASSOCIATE-RQ: every context in the first of its transfer syntaxes."""
    kind, body = read_pdu(sock)
    assert kind == 1, f"no A-ASSOCIATE-RQ but {kind}"
    answer, at = body[:68] + item(0x10, b"1.2.840.10008.3.1.1.1"), 68
    while at < len(body):
        item_type, length = body[at], int.from_bytes(body[at + 2 : at + 4], "big")
        if item_type == 0x20:
            syntax = body.index(b"\x40\x00", at + 8)
            end = syntax + 4 + int.from_bytes(body[syntax + 2 : syntax + 4], "big")
            answer += item(0x21, bytes((body[at + 4], 0, 0, 0)) + body[syntax:end])
        at += 4 + length
    answer += item(0x50, item(0x51, struct.pack(">L", 131072)) + item(0x52, b"1.2.3.4"))
    sock.sendall(struct.pack(">BBL", 2, 0, len(answer)) + answer)


def _role(uid: str) -> bytes:
    """SCP/SCU role selection: we take the SCP's (PS3.7 D.3.3.4)."""
    return item(0x54, struct.pack(">H", len(uid)) + uid.encode() + b"\x00\x01")


def _get_ready(sock: socket.socket, server: Server, roles: bytes) -> None:
    _nodelay(sock)
    contexts = [(STUDY_ROOT_GET, EXPLICIT), (CT, EXPLICIT), (ENHANCED_CT, EXPLICIT)]
    plain = associate_rq(contexts, called=server.title, max_pdu=131072)
    at = plain.rindex(b"\x50\x00")  # the user information item is the last one
    whole = plain[6:at] + item(0x50, plain[at + 4 :] + roles)
    sock.sendall(struct.pack(">BBL", 1, 0, len(whole)) + whole)
    kind, _ = read_pdu(sock)
    assert kind == 2, f"no A-ASSOCIATE-AC but {kind}"


def _nodelay(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


# --- the table -------------------------------------------------------------------------------------------------------


def table(samples: Sequence[Sample]) -> Table:
    """Medians; the ratio is of images per second to Orthanc's, above 1 is faster."""
    out = Table(title=f"Retrieve, medians of {len({s.round for s in samples})}", title_justify="left")
    for column in ("Set", "", "Server", "Images/s", "MB/s", "Ratio", "First ms", "CPU ms/image", "Client", "Peak RSS"):
        left = column in ("Set", "", "Server", "CPU ms/image", "Peak RSS")
        out.add_column(column, justify="left" if left else "right", overflow="fold")
    for name in dict.fromkeys(s.set for s in samples):
        for verb in VERBS:
            group = [s for s in samples if (s.set, s.verb) == (name, verb)]
            for server in dict.fromkeys(s.server for s in group):
                out.add_row(*_row([s for s in group if s.server == server], group))
        out.add_section()
    return out


def _row(own: Sequence[Sample], group: Sequence[Sample]) -> tuple[str, ...]:
    peer = [s for s in group if s.server == ORTHANC]
    first, rate = own[0], _rate(own)
    cpu = {role: statistics.median(s.cpu_ms_per_image[role] for s in own) for role in first.cpu_ms_per_image}
    return (
        first.set, first.verb, first.server, f"{rate:.0f}" if rate > 20 else f"{rate:.1f}",
        f"{rate * first.megabytes / first.images:.0f}", f"{rate / _rate(peer):.2f}" if peer else "",
        f"{statistics.median(s.first_ms for s in own):.0f}",
        f"{sum(cpu.values()):.2f}: " + ", ".join(f"{role} {ms:.2f}" for role, ms in cpu.items() if ms >= 0.005),
        f"{statistics.median(s.client_cpu_ms_per_image for s in own):.2f}",
        ", ".join(f"{role} {mib:.0f}" for role, mib in _peaks(own).items()),
    )  # fmt: skip


def _rate(samples: Sequence[Sample]) -> float:
    return statistics.median(s.images / s.seconds for s in samples)


def _peaks(samples: Sequence[Sample]) -> dict[str, float]:
    """The highest of each, of those that a retrieve goes through."""
    names = [n for n in samples[0].peak_rss_mib if n.startswith(("Orthanc", "dimse", "se"))]
    return {name: max(s.peak_rss_mib.get(name, 0.0) for s in samples) for name in names}


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # by the way that stops the servers
    sys.exit(main(sys.argv[1:]))
