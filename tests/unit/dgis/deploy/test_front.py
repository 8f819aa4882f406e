"""The running front: a real HAProxy on loopback, asked and changed while it runs."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from dgis.deploy import routes
from dgis.deploy.errors import HostError
from dgis.deploy.front import Look, RunningFront, Session, _sessions, without_route
from dgis.deploy.machine import Machine
from dgis.deploy.plan import Front, FrontRoute

HAPROXY = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
needs_haproxy = pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed (Debian: haproxy)")
LOOPBACK = IPv4Address("127.0.0.1")
HERE, ELSEWHERE = IPv4Network("127.0.0.0/8"), IPv4Network("192.0.2.0/24")
GREETING = b"SSH-2.0-Guest\r\n"
# As HAProxy 2.6 says it, shortened
SESSIONS = """\
0x5604ee362e10: [30/Nov/2026:20:37:24.337432] id=0 proto=tcpv4 source=203.0.113.20:45290
  flags=0x4e, conn_retries=0, conn_exp=<NEVER> conn_et=0x000 srv_conn=0x55a, pend_pos=(nil) waiting=0 epoch=0
  frontend=front (id=2 mode=tcp), listener=? (id=1) addr=198.51.100.10:443
  backend=guests (id=3 mode=tcp) addr=10.77.0.1:47000
  server=guest (id=1) addr=10.77.0.11:9441
  task=0x55 (state=0x00 nice=0 calls=3 rate=0 exp=59m59s tmask=0x1 age=1s)
0x5604ee362e99: [30/Nov/2026:20:37:25.337432] id=1 proto=tcpv4 source=100.64.0.10:45291
  frontend=front (id=2 mode=tcp), listener=? (id=1) addr=198.51.100.10:443
  backend=<NONE> (id=-1 mode=-)
  server=<NONE> (id=-1)
0x5604ee36aaaa: [30/Nov/2026:20:37:26.488558] id=2 proto=unix_stream source=unix:1
  server=<NONE> (id=-1)
"""


def front_of(port: int, target: int, *sources: IPv4Network) -> Front:
    """A front on loopback that leads SSH to a port of loopback."""
    return Front(port, None, LOOPBACK, (LOOPBACK,), (FrontRoute("ssh:", LOOPBACK, target, sources),))


class Running:
    """HAProxy with the files of a front in a folder of its own."""

    def __init__(self, folder: Path, front: Front) -> None:
        self.folder, self.socket, self.master = folder, str(folder / "front.sock"), str(folder / "master.sock")
        self.front = RunningFront(Machine(), self.socket, self.master)
        self.write(front)
        words = [str(HAPROXY), "-W", "-S", self.master, "-f", str(folder / routes.CONFIG)]
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.wait_for(routes.digest(front, socket=self.socket))

    def write(self, front: Front) -> None:
        for name, text in routes.files(front, socket=self.socket).items():
            (self.folder / name).write_text(text)

    def reload(self, front: Front) -> None:
        self.write(front)
        self.process.send_signal(signal.SIGUSR2)
        self.wait_for(routes.digest(front, socket=self.socket))

    def wait_for(self, digest: str) -> None:
        until = time.monotonic() + 10
        while (look := self.front.look()) is None or look.config != digest:
            assert time.monotonic() < until, (self.folder / "log").read_text()
            time.sleep(0.02)

    def look(self) -> Look:
        look = self.front.look()
        assert look is not None
        return look

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)


@pytest.fixture
def guest() -> Iterator[socket.socket]:
    """What listens where the front leads to; a test accepts what it wants."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(5)
        yield server


@pytest.fixture
def running(tmp_path: Path, guest: socket.socket) -> Iterator[Running]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    made = Running(tmp_path, front_of(port, guest.getsockname()[1], HERE))
    yield made
    made.stop()


def port_of(running: Running) -> int:
    config = (running.folder / routes.CONFIG).read_text()
    return int(config.partition("bind 127.0.0.1:")[2].split()[0])


def through(running: Running, guest: socket.socket) -> tuple[socket.socket, socket.socket]:
    """A connection through the front, both its ends."""
    outer = socket.create_connection(("127.0.0.1", port_of(running)), timeout=5)
    outer.sendall(b"SSH-2.0-Client\r\n")
    inner, _ = guest.accept()
    inner.settimeout(5)
    assert inner.recv(64).startswith(b"SSH-2.0-")
    inner.sendall(GREETING)
    assert outer.recv(64) == GREETING
    return outer, inner


def ended(link: socket.socket) -> bool:
    """Whether the other side is told so."""
    try:
        return link.recv(1) == b""
    except ConnectionError:
        return True


@needs_haproxy
def test_it_says_how_it_runs(running: Running, guest: socket.socket) -> None:
    port = guest.getsockname()[1]
    front = front_of(port_of(running), port, HERE)
    outer, inner = through(running, guest)
    with closing(outer), closing(inner):
        look = running.look()
        assert look.config == routes.digest(front, socket=running.socket)
        assert look.maps == routes.maps(front)
        assert [(each.source, each.target, each.worker) for each in look.sessions] == [
            (LOOPBACK, f"127.0.0.1:{port}", 0)
        ]


@needs_haproxy
def test_maps_change_while_it_runs_and_the_process_stays(running: Running, guest: socket.socket) -> None:
    port, process = guest.getsockname()[1], running.process.pid
    first, none = front_of(port_of(running), port, HERE), routes.maps(None)
    assert not running.front.update(running.look().maps, routes.maps(first))
    assert running.front.update(running.look().maps, none) and running.look().maps == none
    with socket.create_connection(("127.0.0.1", port_of(running)), timeout=5) as link:
        link.sendall(b"SSH-2.0-Client\r\n")
        assert ended(link)
    assert running.front.update(none, routes.maps(first)) and running.look().maps == routes.maps(first)
    outer, inner = through(running, guest)
    outer.close()
    inner.close()
    assert running.process.pid == process and running.process.poll() is None


@needs_haproxy
def test_maps_of_any_length(running: Running) -> None:
    name = ".".join(["a" * 60] * 3) + ".example"
    sources = tuple(IPv4Network(f"198.51.{number}.0/24") for number in range(250))
    front = Front(1, None, LOOPBACK, (LOOPBACK,), (FrontRoute(name, LOOPBACK, 9443, sources),))
    wanted = routes.maps(front)
    assert running.front.update(running.look().maps, wanted)
    assert running.look().maps == wanted


@needs_haproxy
def test_sessions_end_at_both_sides_at_once(running: Running, guest: socket.socket) -> None:
    kept, gone = through(running, guest), through(running, guest)
    port = kept[0].getsockname()[1]
    sessions = running.look().sessions
    assert len(sessions) == 2
    ids = {each.id for each in sessions}
    # The one that came second has the later connection; `show sess all` has the source's port
    text = running.front._ask([(running.socket, "show sess all")])[0] or ""
    first = next(each for each in ids if f"source=127.0.0.1:{port}" in text[text.index(each) :].splitlines()[0])
    begun = time.monotonic()
    running.front.end([each for each in sessions if each.id != first])
    assert ended(gone[0]) and ended(gone[1])
    assert time.monotonic() - begun < 2
    kept[1].sendall(b"still here")
    assert kept[0].recv(64) == b"still here"
    for link in (*kept, *gone):
        link.close()


@needs_haproxy
def test_sessions_from_before_a_reload_are_found_and_ended(running: Running, guest: socket.socket) -> None:
    before = through(running, guest)
    front = front_of(port_of(running), guest.getsockname()[1], HERE)
    running.reload(replace(front, routes=(replace(front.routes[0], sources=(HERE, ELSEWHERE)),)))
    after = through(running, guest)
    sessions = running.look().sessions
    assert sorted(each.worker > 0 for each in sessions) == [False, True]
    running.front.end([each for each in sessions if each.worker])
    assert ended(before[0]) and ended(before[1])
    after[1].sendall(b"still here")
    assert after[0].recv(64) == b"still here"
    for link in (*before, *after):
        link.close()


def test_no_front_is_no_error_and_one_that_may_not_be_asked_is(tmp_path: Path) -> None:
    assert RunningFront(Machine(), str(tmp_path / "none.sock"), str(tmp_path / "none")).look() is None
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "left.sock"))
    assert RunningFront(Machine(), str(tmp_path / "left.sock"), str(tmp_path / "none")).look() is None
    with pytest.raises(HostError, match="python3 ...: .*Not a directory"):
        RunningFront(Machine(), f"{__file__}/front.sock").look()


@needs_haproxy
def test_another_haproxy_is_said_to_need_a_reload(running: Running) -> None:
    with pytest.raises(HostError, match="the front knows no map other.map: reload it"):
        running.front._replace(("other.map", {"a": "b"}))
    with pytest.raises(HostError, match="the front did not take its map front-networks.map: "):
        running.front._replace((routes.NETWORKS, {"no network": "x"}))


def test_sessions_are_those_that_have_reached_a_guest() -> None:
    assert list(_sessions(SESSIONS, 7)) == [
        Session("0x5604ee362e10", IPv4Address("203.0.113.20"), "10.77.0.11:9441", 7)
    ]
    assert list(_sessions("", 0)) == []


def test_who_has_no_route_any_more() -> None:
    guest = IPv4Address("10.77.0.11")
    front = Front(443, None, LOOPBACK, (LOOPBACK,), (FrontRoute("a.example", guest, 9443, (ELSEWHERE,)),))
    may = Session("1", IPv4Address("192.0.2.9"), "10.77.0.11:9443")
    others = (replace(may, source=IPv4Address("203.0.113.9")), replace(may, target="10.77.0.11:9441"))
    assert without_route((may, *others), front) == others
    assert without_route((may,), None) == (may,)
