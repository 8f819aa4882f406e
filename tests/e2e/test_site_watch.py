"""`dgis deploy watch` as a process on a host, and `dgis deploy move`: doors follow the guests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Interface
from pathlib import Path

import pytest

from dgis.deploy import check
from tests.helpers.frontpeer import Authority, Caller, Stream, TlsEcho, stream
from tests.helpers.netlab import Lab, require_netlab
from tests.helpers.netnode import Node
from tests.helpers.sitelab import World
from tests.helpers.sitescene import EXAMPLES, FORWARDS, PUBLIC, ROOT, Edit, Scene, edited, scene

WIKI = "wiki.cesnet.example"
EVERY, PATIENCE = 0.3, 2
AT_ONCE = 1.0
MOVED_PUBLIC, STORAGE = "203.0.113.20", "storage.node.lf1.example"
# A second guest beside the one that moves, of another project
BESIDE = """\
  - name: other
    host: xen1
    network: more
    address: 10.79.0.30
    forwards:
      - {public: 8080, guest: 80, from: [any], purpose: other}
peers:
"""
BESIDE_IT: tuple[Edit, ...] = (
    ("cidr: 10.77.0.0/24}\n", "cidr: 10.77.0.0/24}\n      - {name: more, bridge: projbr0, cidr: 10.79.0.0/24}\n"),
    ("    host: xen1\n", "    host: xen1\n    network: grid\n"),
    ("peers:\n", BESIDE),
)


@dataclass
class Watcher:
    """The process and what it said."""

    process: subprocess.Popen[bytes]
    log: Path

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()

    def says(self, text: str, *, count: int = 1, within: float = 15.0) -> None:
        """Wait until it has said so, so often."""
        until = time.monotonic() + within
        while sum(text in line for line in self.lines()) < count:
            assert self.process.poll() is None and time.monotonic() < until, f"{text!r} not in {self.lines()}"
            time.sleep(0.02)


def watch(stage: Scene, *options: str) -> Watcher:
    log = stage.world.lab.folder / "watch.log"
    words = stage.words("watch", "--every", str(EVERY), "--patience", str(PATIENCE), *options)
    return Watcher(stage.machine.popen(words, log=log, env={**os.environ, "PYTHONPATH": str(ROOT)}), log)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    require_netlab()
    with scene(tmp_path_factory.mktemp("watch"), prefix="watch") as made:
        yield made


@pytest.fixture(scope="module")
def watcher(stage: Scene) -> Watcher:
    """One process for all tests of this module; the last one ends it."""
    made = watch(stage, "--guests", "heartbeat", "--all-guests")
    made.says("open are the doors of node, wiki", within=30)
    return made


def eventually(true: Callable[[], bool], *, within: float = 15.0) -> float:
    """Wait for it; returns how long that took."""
    begun = time.monotonic()
    while not true():
        assert time.monotonic() - begun < within
        time.sleep(0.02)
    return time.monotonic() - begun


def test_a_guest_that_stops_shuts_its_doors_and_opens_them_again(stage: Scene, watcher: Watcher) -> None:
    wiki, forward = stage.guest("wiki"), stage.stream(stage.outside, PUBLIC, 8080)
    named, others = stage.named(stage.outside, WIKI), stage.stream(stage.peers["lf1"], PUBLIC, 2811)
    wiki.ip("link set eth0 down")
    stopped = time.monotonic()
    for each in (forward, named):
        how, when = each.end(within=20)
        # two looks, each of which waits a second and a half for the heartbeat, and an apply on a busy machine
        assert how in ("reset", "eof") and when - stopped < 12
    assert stage.outside.scan(PUBLIC, [8080, 443], timeout=0.5) == {8080: "silent", 443: "silent"}
    assert others.still_flows()
    wiki.ip("link set eth0 up", "route add default via 10.78.0.1")
    watcher.says("open are the doors of node, wiki", count=2)
    assert stage.outside.ask(PUBLIC, 8080).node == wiki.name
    assert stage.caller(stage.outside).who(WIKI)
    assert others.still_flows()


def test_a_changed_site_file_is_taken(stage: Scene, watcher: Watcher) -> None:
    before = stage.text
    forward = stage.stream(stage.outside, PUBLIC, 8080)
    stage.edit(FORWARDS)
    assert forward.end(within=15)[0] == "reset"
    stage.edit((stage.text, before))
    eventually(lambda: stage.outside.connect(PUBLIC, 8080, timeout=0.3) == "open")


def test_a_broken_site_file_changes_nothing_and_is_said_once(stage: Scene, watcher: Watcher) -> None:
    said = len(watcher.lines())
    stage.file.write_text(stage.text.replace("address: 10.77.0.11", "address: 10.99.0.11"))
    watcher.says("the site file as it was before still counts")
    # it goes on keeping the host in step
    stage.machine.run(["nft", "delete", "table", "inet", "dgis"])
    eventually(lambda: stage.outside.connect(PUBLIC, 8080, timeout=0.3) == "open")
    stage.file.write_text(stage.text)
    watcher.says("all well again")
    assert sum("10.99.0.11" in line or "write an address of" in line for line in watcher.lines()[said:]) == 1


def test_what_somebody_else_changes_is_put_right(stage: Scene, watcher: Watcher) -> None:
    machine, way = stage.machine, stage.way
    machine.run(["nft", "flush", "ruleset"])
    eventually(lambda: stage.outside.connect(PUBLIC, 8080, timeout=0.3) == "open")
    element = f"{{ {PUBLIC} . tcp . 8080 }}"
    machine.run(["nft", "delete", "element", "inet", "dgis", "doors", element])
    eventually(lambda: stage.outside.connect(PUBLIC, 8080, timeout=0.3) == "open")
    machine.sysctl("net.ipv4.ip_forward", 0)
    eventually(lambda: machine.read_sysctl("net.ipv4.ip_forward") == "1")
    (Path(way.root) / "nat.nft").write_text("# by hand\n")
    eventually(lambda: "by hand" not in (Path(way.root) / "nat.nft").read_text())
    way.front._ask([(way.socket, "clear map front-routes.map")])
    eventually(lambda: (look := way.front.look()) is not None and look.maps["front-routes.map"] != {})


def test_it_ends_cleanly_and_leaves_the_doors_as_they_are(stage: Scene, watcher: Watcher) -> None:
    forward = stage.stream(stage.outside, PUBLIC, 8080)
    begun = time.monotonic()
    watcher.process.send_signal(signal.SIGTERM)
    assert watcher.process.wait(10) == 0 and time.monotonic() - begun < 5
    assert "Traceback" not in watcher.log.read_text()
    assert forward.still_flows()


def test_once_looks_once(stage: Scene) -> None:
    stage.guest("wiki").ip("link set eth0 down")
    done = stage.run("watch", "--once", "--guests", "heartbeat", "--all-guests")
    assert done.returncode == 0 and "open are the doors of node" in done.stdout and "wiki" not in done.stdout
    # shut doors are drift from the file, and none from who runs
    assert stage.run("verify").returncode == 3
    done = stage.run("verify", "--guests", "heartbeat", "--all-guests")
    assert done.returncode == 0, done.stdout
    stage.guest("wiki").ip("link set eth0 up", "route add default via 10.78.0.1")
    assert "live rules" in stage.apply().changed


def test_the_hypervisors_tool_is_asked_where_there_is_one(stage: Scene, tmp_path: Path) -> None:
    """With a stand-in for xl, which a namespace has not: this is about asking it, not about what it says."""
    listing = tmp_path / "listing"
    (tmp_path / "xl").write_text(f'#!/bin/sh\n[ "$*" = list ] && cat {listing}\n')
    (tmp_path / "xl").chmod(0o755)
    head = "Name                                        ID   Mem VCPUs\tState\tTime(s)\n"
    both = [f"{name:40} {number:5} 1024     1     {state}      12.3\n" for name, number, state in (
        ("Domain-0", 0, "r-----"), ("node", 3, "-b----"), ("wiki", 4, "---sc-"))]  # fmt: skip
    listing.write_text(head + "".join(both))
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = stage.machine.run(stage.words("watch", "--once", "--all-guests"), env=environment)
    assert "open are the doors of node" in done.stdout and "wiki" not in done.stdout
    listing.write_text("xl: cannot open the privileged command interface\n")
    done = stage.machine.run(stage.words("watch", "--once", "--all-guests"), env=environment, check=False)
    assert "not in step: xl list says what no version known here says" in done.stdout


@contextmanager
def faculty(folder: Path) -> Iterator[tuple[World, Node, Path, Authority]]:
    """The pilot's second site, with its two hosts, as pilot-lf1.yml has it and another guest beside."""
    file = folder / "lf1.yml"
    file.write_text(edited((EXAMPLES / "pilot-lf1.yml").read_text(), *BESIDE_IT))
    with Lab("move") as lab:
        world = World(lab)
        world.add(check.load(file))
        peer = world.place("cesnet", IPv4Interface(f"{PUBLIC}/24"))
        world.apply_all()
        yield world, peer, file, Authority.make(folder / "authority")


def cli(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dgis.cli", "deploy", *map(str, words)], capture_output=True, text=True, check=False
    )


def test_a_guest_moves_to_another_host_and_its_doors_go_with_it(tmp_path: Path) -> None:
    require_netlab()
    with faculty(tmp_path) as (world, peer, file, authority), ExitStack() as kept:

        def serve(node: Node) -> None:
            node.serve_echo([2811, 50000])
            kept.enter_context(TlsEcho(node, 9443, authority.server(STORAGE)))

        serve(world.node("lf1", "node"))
        world.node("lf1", "other").serve_echo([80])
        caller = kept.enter_context(Caller(peer, MOVED_PUBLIC, 443, authority.client("cesnet")))
        streams = [stream(peer, MOVED_PUBLIC, 2811), stream(peer, MOVED_PUBLIC, 50000), caller.stream(STORAGE)]
        other = kept.enter_context(stream(world.outside, MOVED_PUBLIC, 8080))
        before = file.read_text()
        done = cli("move", file, "node", "xen2")
        assert done.returncode == 0, done.stderr
        assert changed(before, file.read_text()) == [
            ("    host: xen1", "    host: xen2"),
            ("    address: 10.77.0.11", "    address: 10.77.1.11"),
        ]
        site = world.sites["lf1"] = check.load(file)
        serve(world.put(site, site.guest("node")))
        for host in ("xen1", "xen2"):
            world.apply("lf1", host)
        returned = time.monotonic()
        new = world.node("lf1", "node").name
        assert peer.ask(MOVED_PUBLIC, 2811).node == peer.ask(MOVED_PUBLIC, 50000).node == new
        assert caller.who(STORAGE) == f"{new} cesnet"
        assert time.monotonic() - returned < AT_ONCE
        for each in streams:
            how, when = kept.enter_context(each).end(within=5)
            assert how in ("reset", "eof") and when - returned < AT_ONCE
        assert other.still_flows() and other.worst < AT_ONCE
        stays(world, kept, [stream(peer, MOVED_PUBLIC, 2811), caller.stream(STORAGE), other])


def stays(world: World, kept: ExitStack, streams: list[Stream]) -> None:
    """Nothing is cut where nothing changes, on either host."""
    for each in streams[:-1]:
        kept.enter_context(each)
    for host in ("xen1", "xen2"):
        done = world.apply("lf1", host)
        assert (done.changed, done.cut) == ((), 0)
    assert all(each.still_flows() for each in streams)


def changed(before: str, after: str) -> list[tuple[str, str]]:
    pairs = zip(before.splitlines(), after.splitlines(), strict=True)
    return [(old, new) for old, new in pairs if old != new]
