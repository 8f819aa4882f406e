"""The pilot: three institutions, each with one public address, a DGIS and a storage provider behind rendered NAT.

Real processes in network namespaces, reached only as the site files of `vm-images/examples` say: store at the first
site, find and move at the second, GridFTP through translated control and data ports, SFTP on the port of HTTPS when
those are shut, everything else closed, and a guest that moves to another host while images come from it and go to it.
"""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

import pytest

from dgis.demo.images import Image
from dgis.deploy import check, flows, move, plan, verify
from dgis.deploy.machine import Machine
from dgis.deploy.topology import Site
from tests.helpers import dcmtk
from tests.helpers.dicomfiles import images, synth
from tests.helpers.grid import wait_until
from tests.helpers.netlab import Lab, require_netlab
from tests.helpers.netnode import Node
from tests.helpers.pilot import Grid, mount_points
from tests.helpers.sitelab import World

pytestmark = [dcmtk.NEEDS, pytest.mark.timeout(480)]
EXAMPLES = Path(__file__).resolve().parents[2] / "vm-images" / "examples"
SITES = ("cesnet", "lf1", "uvn")
ADMINS = {"cesnet": "192.0.2.2/24", "lf1": "203.0.113.2/25", "uvn": "172.16.8.2/24"}
VIEWERS = {
    "MR1": "198.51.100.80/24",
    "KPACS1": "198.51.100.70/24",
    "KPACS2": "203.0.113.70/25",
    "KPACS3": "172.16.8.70/24",
}
DGIS = {"CESNET": "198.51.100.10", "LF1": "203.0.113.20", "UVN": "172.16.8.130"}
RESOLVERS = ("192.0.2.53/24", "203.0.113.5/25", "172.16.8.53/24")
HOSTS = {"cesnet": "xen1", "lf1": "xen1", "uvn": "kvm1"}
SMALL = ("--rows", "128", "--cols", "128")


@dataclass
class Pilot:
    """The three sites, up, and the machines of people around them."""

    world: World
    grid: Grid
    sites: dict[str, Site]
    viewers: dict[str, Node]
    folder: Path

    def store(self, title: str, called: str, folder: Path) -> subprocess.CompletedProcess[str]:
        """C-STORE a folder from a modality."""
        words = [dcmtk.PLACE / "storescu", "-aet", title, "-aec", called, "+sd", "+r", DGIS[called], "11112", folder]
        return self._run(title, words)

    def find(self, title: str, called: str, *keys: str) -> list[str]:
        """C-FIND at study level; the study UIDs that came."""
        words: list[str | Path] = [dcmtk.PLACE / "findscu", "-S", "-aet", title, "-aec", called]
        for key in ("QueryRetrieveLevel=STUDY", "StudyInstanceUID", *keys):
            words += ["-k", key]
        done = self._run(title, [*words, DGIS[called], "11112"])
        said = done.stdout + done.stderr
        assert done.returncode == 0, said
        return re.findall(r"\(0020,000d\) UI \[([\d.]+)", said)

    def move(self, title: str, called: str, study: str, out: Path) -> list[Image]:
        """C-MOVE a study to the viewer itself, which listens on port 104; what arrived."""
        out.mkdir(parents=True)
        viewer = self.viewers[title]
        listener = viewer.popen([dcmtk.PLACE / "storescp", "+B", "-od", out, "104"], log=self.folder / f"{title}.log")
        try:
            viewer.await_listening(104, child=listener)
            words = [dcmtk.PLACE / "movescu", "-S", "-aet", title, "-aec", called, "-aem", title]
            words += ["-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study}"]
            done = self._run(title, [*words, DGIS[called], "11112"])
        finally:
            listener.kill()
            listener.wait()
        assert done.returncode == 0, done.stdout + done.stderr
        return images(out)

    def _run(self, title: str, words: list[str | Path]) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, **dcmtk.environment(nodelay=True)}
        return self.viewers[title].run(words, check=False, env=env, timeout=120)

    def drained(self, name: str, *, seconds: float = 60) -> None:
        """Until a site's DGIS has two verified copies of everything."""
        site = self.sites[name]
        spool = self.grid.state(site, site.guest("node")) / "node" / "spool"

        def empty() -> bool:
            return not any(next(spool.glob(pattern), None) for pattern in ("inbox/*", "registered/*/*"))

        wait_until(empty, seconds=seconds, what=f"the spool of {name} is empty")

    def stored(self, name: str) -> int:
        """How many objects lie at a site's storage element."""
        site = self.sites[name]
        objects = self.grid.state(site, site.guest("node")) / "storage" / "main" / "objects"
        return sum(1 for path in objects.rglob("*") if len(path.name) == 64)

    def log(self, name: str, role: str = "dgis") -> str:
        return (self.grid.logs / f"{name}-node-{role}.log").read_text(errors="replace")


@pytest.fixture(scope="module")
def pilot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pilot]:
    require_netlab()
    folder = tmp_path_factory.mktemp("pilot")
    with mount_points(), Lab("pilot") as lab:
        world = World(lab)
        sites = {name: world.add(check.load(EXAMPLES / f"pilot-{name}.yml")) for name in SITES}
        admins = {name: world.place(f"adm{name}", IPv4Interface(at)) for name, at in ADMINS.items()}
        viewers = {title: world.place(title.lower(), IPv4Interface(at)) for title, at in VIEWERS.items()}
        for number, address in enumerate(RESOLVERS):
            world.place(f"dns{number}", IPv4Interface(address)).serve_echo([53])
        grid = Grid(world, folder, admins)
        grid.prepare(*sites.values())
        world.apply_all()
        for site in sites.values():
            grid.start(site, site.guest("node"))
        made = Pilot(world, grid, sites, viewers, folder)
        for site in sites.values():
            grid.await_health(site, site.guest("node"))
            said = grid.register(site, at=world.node("cesnet", "node"))
            assert f"{site.name}-node at gsiftp://" in said.replace("\n", " "), said
        yield made


def same(sent: list[Image], came: list[Image]) -> bool:
    """Whether the same data sets came, byte for byte."""
    return {one.instance_uid: one.data_sha256 for one in sent} == {one.instance_uid: one.data_sha256 for one in came}


def test_the_main_job_across_institutions(pilot: Pilot, tmp_path: Path) -> None:
    sent = synth(tmp_path / "in", "--studies", "2", "--series", "1", "--instances", "20", *SMALL)
    done = pilot.store("MR1", "CESNET", sent)
    assert done.returncode == 0, done.stderr
    wanted = images(sent)
    studies = {one.study_uid for one in wanted}
    assert studies <= set(pilot.find("KPACS2", "LF1"))
    pilot.drained("cesnet")  # what is in one site's spool only is found everywhere at once, moved a moment later
    for number, study in enumerate(sorted(studies)):
        viewer, called = (("KPACS2", "LF1"), ("KPACS3", "UVN"))[number]
        came = pilot.move(viewer, called, study, tmp_path / f"out{number}")
        assert same([one for one in wanted if one.study_uid == study], came)
    pilot.drained("cesnet")
    assert pilot.stored("cesnet") >= len(wanted)
    assert pilot.stored("lf1") + pilot.stored("uvn") >= len(wanted)
    assert "door changed" not in pilot.log("cesnet")  # all by GridFTP, the first door


def rows(pilot: Pilot, name: str, host: str, *vantages: tuple[str, Node, str]) -> list[verify.Row]:
    """What `dgis deploy verify` says of a host, with these places to try from."""
    site = pilot.sites[name]
    derived, way = flows.derive(site), pilot.world.way(name, host)
    wanted = plan.plan(site, derived, site.host(host))
    found = list(verify.of_host(wanted, way))
    for place, node, seen in vantages:
        vantage = verify.Vantage(place, Machine(tuple(node.command([]))), IPv4Address(seen) if seen else None)
        found += verify.from_vantage(site, derived, wanted, vantage)
    return found


def test_what_the_files_name_is_open_and_nothing_else(pilot: Pilot, tmp_path: Path) -> None:
    wiki = pilot.world.node("cesnet", "wiki")
    server = tls_server(wiki, 8443, "wiki.cesnet.example", tmp_path)
    seen = {"cesnet": "198.51.100.10", "lf1": "203.0.113.20", "uvn": "203.0.113.130"}
    with wiki.serve_echo([80]):
        for name, viewer, other in (("cesnet", "KPACS1", "lf1"), ("lf1", "KPACS2", "uvn"), ("uvn", "KPACS3", "cesnet")):
            peer = ("outside", pilot.world.node(other, HOSTS[other]), seen[other])
            node, lan = ("node", pilot.world.node(name, "node"), ""), ("lan", pilot.viewers[viewer], "")
            found = rows(pilot, name, HOSTS[name], ("outside", pilot.world.outside, ""), peer, node, lan)
            assert [row for row in found if row.state == "drift"] == []
            tried = [row for row in found if row.check == "way"]
            assert sum(row.expected == "closed" for row in tried) > 60
            # the peer's way in: names, SFTP by its greeting, GridFTP; the viewer's: DIMSE
            assert sum(row.expected == "open" for row in tried) > 15
            assert {row.found for row in tried if row.expected == "open"} == {"open", "open, nothing listens now"}
    server.kill()


def tls_server(node: Node, port: int, name: str, folder: Path) -> subprocess.Popen[bytes]:
    """A website of another project: a TLS server that shows a certificate of its own."""
    request = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc"]
    request += [
        "-subj",
        f"/CN={name}",
        "-addext",
        f"subjectAltName=DNS:{name}",
        "-keyout",
        folder / "key.pem",
        "-out",
        folder / "cert.pem",
        "-days",
        "1",
    ]
    node.run(request)
    serve = ["openssl", "s_server", "-quiet", "-accept", str(port)]
    child = node.popen([*serve, "-key", folder / "key.pem", "-cert", folder / "cert.pem"], log=folder / "tls.log")
    node.await_listening(port, child=child)
    return child


def test_sftp_on_the_port_of_https_when_gridftp_is_shut(pilot: Pilot, tmp_path: Path) -> None:
    """An institution's firewall drops GridFTP: copies and fetches go by SFTP through 443, without a further hole."""
    router = pilot.world.router
    router.nft(
        "table ip shut { chain c { type filter hook forward priority 0; tcp dport { 2811, 50000-51999 } drop; }; }"
    )
    try:
        sent = synth(tmp_path / "in", "--studies", "1", "--instances", "10", "--seed", "7", *SMALL)
        before = pilot.stored("lf1") + pilot.stored("uvn")
        assert pilot.store("MR1", "CESNET", sent).returncode == 0
        pilot.drained("cesnet", seconds=90)
        assert pilot.stored("lf1") + pilot.stored("uvn") == before + 10
        changed = re.findall(r"door changed +now=(\S+) se=(\S+) ", pilot.log("cesnet"))
        in_use = {element: now for now, element in changed}
        assert in_use and all(now.startswith("sftp://") and ":443/" in now for now in in_use.values())
    finally:
        router.run(["nft", "delete", "table", "ip", "shut"])


def test_a_guest_moves_while_images_come_and_go(pilot: Pilot, tmp_path: Path) -> None:
    """lf1's guest goes to the host behind: its public address stays, no viewer gets an error, others notice nothing."""
    world, grid, old = pilot.world, pilot.grid, pilot.sites["lf1"]
    text = (EXAMPLES / "pilot-lf1.yml").read_text()
    sent = synth(
        tmp_path / "in", "--studies", "1", "--instances", "120", "--seed", "9", "--rows", "512", "--cols", "512"
    )
    wanted = images(sent)
    # the copies at lf1 take some seconds, so that the guest moves in the middle of them
    segment = pilot.world.segments[old.host("xen1").uplink.address.network].dev
    world.router.run(
        ["tc", "qdisc", "add", "dev", segment, "root", "tbf", "rate", "60mbit", "burst", "64k", "latency", "200ms"]
    )
    at_home = pilot.stored("cesnet") + len(wanted)
    assert pilot.store("MR1", "CESNET", sent).returncode == 0
    wait_until(lambda: pilot.stored("cesnet") == at_home, seconds=60, what="the first copies are at home")
    wiki = world.node("cesnet", "wiki")
    with wiki.serve_echo([80]), Stream(world.outside, "198.51.100.10", 8080) as others, ThreadPoolExecutor(1) as pool:
        fetching = pool.submit(pilot.move, "KPACS3", "UVN", wanted[0].study_uid, tmp_path / "out")
        before = pilot.stored("lf1")
        wait_until(lambda: pilot.stored("lf1") > before, seconds=30, what="copies come to lf1", every=0.02)
        grid.stop(old, old.guest("node"))
        _, new = move.moved(text, "pilot-lf1.yml", "node", "xen2")
        pilot.sites["lf1"] = world.sites["lf1"] = new
        world.put(new, new.guest("node"))
        grid.render(new)
        grid.lay_out(new, new.guest("node"))
        for host in ("xen1", "xen2"):
            world.apply("lf1", host)
        grid.start(new, new.guest("node"))
        came = fetching.result()
        grid.await_health(new, new.guest("node"))
    assert same(wanted, came)
    assert others.worst < 1.0 and others.broken is None
    pilot.drained("cesnet", seconds=120)
    # new connections reach it where it is now, by the same public address
    assert pilot.find("KPACS2", "LF1", "PatientName=*")
    again = pilot.move("KPACS2", "LF1", wanted[0].study_uid, tmp_path / "again")
    assert same(wanted, again)
    peer = ("outside", world.node("uvn", "kvm1"), "203.0.113.130")
    found = rows(pilot, "lf1", "xen1", ("outside", world.outside, ""), peer)
    assert [row for row in found if row.state == "drift"] == []


class Stream:
    """A connection that says something every 20 ms and hears it back; `worst` is the longest silence in seconds."""

    def __init__(self, node: Node, address: str, port: int) -> None:
        self._link = node.dial(address, port)
        self._link.settimeout(5)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._talk, daemon=True)
        self.worst = 0.0
        self.broken: OSError | None = None

    def _talk(self) -> None:
        try:
            self._link.recv(4096)  # who answers
            while not self._stop.wait(0.02):
                began = time.monotonic()
                self._link.sendall(b"still here\n")
                if not self._link.recv(4096):
                    raise ConnectionError("the other side closed")
                self.worst = max(self.worst, time.monotonic() - began)
        except OSError as error:
            self.broken = error

    def __enter__(self) -> Stream:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)
        self._link.close()
