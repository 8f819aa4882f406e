"""A thousand associations that do nothing, half of them over TLS: what they cost one receiver process of dgis.

A client in this process opens them (C-ECHO once each, so that every one is really served), then all sleep for
`SECONDS`. Beside it Orthanc and dcmqrscp in their own configurations, for as many plain associations as they admit.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from bench.lane import WRITE, People, make_people, serving
from bench.peers import DcmtkServer, OrthancServer
from bench.peers import People as PeersPeople
from bench.report import NotMeasured
from bench.usage import Roles, cpu_seconds
from dgis.dimse import command as dimse
from tests.unit.dgis.dimse.raw import associate, read_pdu

ASSOCIATIONS = (200, 1000)
SECONDS = 20.0
RESULTS = Path(__file__).parent / "results"
VERIFICATION, IMPLICIT = "1.2.840.10008.1.1", "1.2.840.10008.1.2"


@dataclass(frozen=True, slots=True)
class Sample:
    """One server, one number of associations."""

    server: str
    wanted: int
    admitted: int
    tls: int
    percent_of_a_core: float
    rss_mib: float
    rss_kib_per_association: float
    threads_and_processes: int


def main() -> None:
    """Measure, print, write bench/results/idle.json."""
    samples = []
    with tempfile.TemporaryDirectory(prefix="dgis-bench-") as place:
        people = make_people(Path(place))
        for wanted in ASSOCIATIONS:
            store = Path(place) / f"store-{wanted}"
            store.mkdir()
            with serving(WRITE, store, people) as server:
                roles = {"dgis": [psutil.Process(server.process.pid)]}
                samples.append(_measure("dgis", wanted, roles, (server.port, server.tls_port), "DGIS", people))
        samples += _peers(Path(place), max(ASSOCIATIONS))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "idle.json").write_text(json.dumps([asdict(s) for s in samples], indent=1) + "\n")
    Console(width=140).print(_table(samples))


def _peers(place: Path, wanted: int) -> Iterator[Sample]:
    nobody = PeersPeople(place, place)  # both are asked without TLS
    for peer in (OrthancServer(place / "orthanc", nobody), DcmtkServer(place / "qr", nobody, tool="dcmqrscp")):
        try:
            peer.start()
            try:
                door = peer.door()
                yield _measure(peer.name, wanted, peer.roles(), (door.port,), door.called, None)
            finally:
                peer.stop()
        except NotMeasured as error:
            print(f"{peer.name}: {error}")


def _measure(
    name: str, wanted: int, roles: Roles, ports: tuple[int, ...], called: str, people: People | None
) -> Sample:
    """Open associations, in turn to each port, until one is not admitted; then look at the server for a while."""
    with socket.create_connection(("127.0.0.1", ports[0]), timeout=20) as first:
        associate(first, [(VERIFICATION, IMPLICIT)], called=called)  # all is imported once this is answered
        _echo(first)
    empty = _resident(roles)
    with contextlib.ExitStack() as stack:
        context = _context(people) if people is not None else None
        admitted = 0
        with contextlib.suppress(OSError, AssertionError):
            for number in range(wanted):
                which = number % len(ports)
                sock = stack.enter_context(socket.create_connection(("127.0.0.1", ports[which]), timeout=5))
                if which and context is not None:
                    sock = stack.enter_context(context.wrap_socket(sock, server_hostname="127.0.0.1"))
                associate(sock, [(VERIFICATION, IMPLICIT)], called=called)
                _echo(sock)
                admitted += 1
        time.sleep(1.0)  # what opening them left to do
        before, began = sum(cpu_seconds(roles).values()), time.monotonic()
        time.sleep(SECONDS)
        used = (sum(cpu_seconds(roles).values()) - before) / (time.monotonic() - began)
        resident = _resident(roles)
        return Sample(
            name, wanted, admitted, admitted // 2 if context is not None else 0, used * 100, resident / 2**20,
            (resident - empty) / 1024 / max(admitted, 1), _threads(roles),
        )  # fmt: skip


def _echo(sock: socket.socket) -> None:
    for pdu in dimse.p_data(1, dimse.echo_request(1), is_command=True, max_pdu=16384):
        sock.sendall(pdu)
    assert read_pdu(sock)[0] == 4


def _context(people: People) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(people.ca)
    context.load_cert_chain(people.client.cert, people.client.key)
    return context


def _tree(roles: Roles) -> list[psutil.Process]:
    return [one for group in roles.values() for process in group for one in (process, *process.children(True))]


def _resident(roles: Roles) -> int:
    """Resident bytes of the server and its children; pages that they share count in each."""
    return sum(int((Path("/proc") / str(p.pid) / "statm").read_text().split()[1]) for p in _tree(roles)) * os.sysconf(
        "SC_PAGE_SIZE"
    )


def _threads(roles: Roles) -> int:
    return sum(process.num_threads() for process in _tree(roles))


def _table(samples: Sequence[Sample]) -> Table:
    table = Table(title=f"Associations that do nothing for {SECONDS:.0f} s", title_justify="left")
    names = ("Server", "Wanted", "Admitted", "TLS", "% of a core", "RSS MiB", "KiB/association", "Threads")
    for name in names:
        table.add_column(name, justify="left" if name == "Server" else "right")
    for s in samples:
        numbers = (str(s.wanted), str(s.admitted), str(s.tls), f"{s.percent_of_a_core:.2f}", f"{s.rss_mib:.0f}")
        table.add_row(s.server, *numbers, f"{s.rss_kib_per_association:.0f}", str(s.threads_and_processes))
    return table


if __name__ == "__main__":
    main()
