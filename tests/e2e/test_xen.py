"""Real Xen under emulation: the real `xl create` of rendered PV and PVH configurations, reached from outside by the
rendered rules alone; `dgis deploy apply` and `watch` at work in a real dom0.

Everything that the host is given comes from `render`: the guests' files, the rules, the addresses in their seeds. Only
what the guests run is a stand-in: a busybox that says who it is, at the ports of the services.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from dgis.deploy import apply, check, flows, guests, plan
from dgis.deploy import topology as t
from dgis.deploy.apply import Way
from dgis.deploy.render import render
from dgis.deploy.watch import Watch, Watched
from tests.helpers.xen import (
    PROGRAMS,
    BootFailed,
    Call,
    Dom0,
    Lease,
    Site,
    Unavailable,
    Uplink,
    XenHost,
    XenTree,
    cache_folder,
    fetch_xen,
    normalise,
    probe_xen,
    python_files,
    xen_host,
    xl_dryrun,
)
from tests.helpers.xen.outside import client_hello, fetch, knock, speak, who

# A boot and a guest take 10 s each on a free machine, four times that where ten others work; the limit is for a hang
pytestmark = [pytest.mark.soak, pytest.mark.peer, pytest.mark.timeout(900)]

EXAMPLES = Path(__file__).resolve().parents[2] / "vm-images" / "examples"
OUTSIDE = f"dgisx{os.getpid()}"
ADMIN, STRANGER = "192.0.2.2", "100.64.0.9"
# Services' ports inside a guest, and some where nothing of the grid is: all of them answer, whoever gets there
HTTP = (22, 80, 2762, 2811, 11112, 50005, 50099, 50100)
RAW = (2222, 9441, 9442, 9443)
MIXED = """\
site: mixed
organisation: Xen Grid
domain: mixed.example
hypervisor: {kind: xen, type: TYPE}
admins: [192.0.2.0/28]
admin_keys:
  - ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDIhz2GK/XCUj4i6Q5yQJNL1MKb0dAOGh4U1mxNMDvUq operator@mixed.example
hosts:
  - name: xen1
    uplink: {interface: pub0, address: 198.51.100.10/24, gateway: 198.51.100.1}
    networks:
      - {name: grid, bridge: dgisbr0, cidr: 10.77.0.0/24}
guests:
  - name: node
    host: xen1
    address: 10.77.0.11
    roles: [dgis, storage]
    memory: 160 MiB
    data: 1 GiB
    cpus: 1
    dimse: {aet: MIXED, networks: [198.51.100.64/26], aes: [{title: V, host: 198.51.100.70, port: 104}]}
    gridftp: {data: 50000-50099}
    sftp: 443
  - name: meta
    host: xen1
    address: 10.77.0.12
    roles: [catalog]
    memory: 160 MiB
    cpus: 2
peers:
  - site: lf1
    domain: lf1.example
    address: 203.0.113.20
    guests: [{name: node, roles: [dgis, storage], gridftp: {data: 50000-50099}, sftp: 443}]
"""
PEER, VIEWER = "203.0.113.20", "198.51.100.70"
VIEWERS = (VIEWER, "203.0.113.70")


@dataclass
class Rig:
    """A site, its first host emulated, and the names of its guests that run."""

    site: t.Site
    host: XenHost
    tree: XenTree
    made: dict[str, str]
    folder: Path
    names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.names = tuple(self.host.site.configs)

    @property
    def public(self) -> str:
        return str(self.site.hosts[0].public)

    @property
    def machine(self) -> Dom0:
        return Dom0(host=self.host)

    @property
    def way(self) -> Way:
        root = "/etc/dgis/deploy"
        start = (
            f'if [ -s {root}/pid ] && kill -0 "$(cat {root}/pid)"; then kill -USR2 "$(cat {root}/pid)"; '
            f"else haproxy -W -D -S {root}/master.sock -p {root}/pid -f {root}/haproxy.cfg; fi"
        )
        return Way(self.machine, root, f"{root}/dgis.sock", ("sh", "-c", start))

    def running(self) -> set[str]:
        return set(guests.running(self.site, self.site.hosts[0], self.machine, "xl"))

    def start(self) -> None:
        for name in self.names:
            self.host.create(name)
        for name in self.names:
            self.host.wait(name)

    def knocks(self, ports: tuple[int, ...], source: str) -> dict[int, str]:
        with ThreadPoolExecutor(len(ports)) as pool:
            return dict(
                zip(ports, pool.map(lambda p: knock(OUTSIDE, self.public, p, source=source), ports), strict=True)
            )


def rendered(site: t.Site) -> dict[str, str]:
    """The artefacts of a site's first host, without its name in front; images are left out."""
    prefix = f"{site.hosts[0].name}/"
    made = {path: each for path, each in render(site).items() if path.startswith(prefix) and path[-4:] != ".iso"}
    return {path.removeprefix(prefix): each.content.decode() for path, each in made.items()}


def lease(name: str, seed: str) -> Lease:
    """What a guest with this network-config calls its own."""
    (card,) = yaml.safe_load(seed)["ethernets"].values()
    return Lease(card["match"]["macaddress"], name, card["addresses"][0], card["routes"][0]["via"], HTTP, RAW)


@contextmanager
def calling(*addresses: str) -> Iterator[None]:
    """Have callers at these addresses outside."""

    def lo(word: str) -> None:
        for address in addresses:
            subprocess.run(["ip", "-n", OUTSIDE, "addr", word, f"{address}/32", "dev", "lo"], check=True)

    lo("add")
    try:
        yield
    finally:
        lo("del")


@contextmanager
def booted(tree: XenTree, folder: Path, site: t.Site, made: dict[str, str], *, rules: bool) -> Iterator[Rig]:
    """The first host of a site, its guests defined and not yet created; with or without the rendered rules loaded."""
    host = site.hosts[0]
    assert host.uplink is not None
    configs = {name: made[f"xen/{name}.cfg"] for name in (guest.name for guest in site.guests_at(host) if guest.roles)}
    gateway = f"{host.uplink.gateway}/{host.uplink.address.network.prefixlen}"
    uplink = Uplink(OUTSIDE, "up0", gateway, host.uplink.interface, str(host.uplink.address), str(host.uplink.gateway))
    given = Site(
        uplinks=(uplink,),
        bridges={each.bridge: f"{each.gateway}/{each.cidr.prefixlen}" for each in host.networks},
        configs=configs,
        leases=tuple(lease(name, made[f"seed/{name}/network-config"]) for name in configs),
        nft=made["nat.nft"] if rules else "",
        programs=("haproxy", *PROGRAMS),
        files=python_files(),
    )
    peers = [str(peer.public) for peer in site.peers]
    with xen_host(tree, folder / "host", given) as running, calling(*peers, *VIEWERS, ADMIN, STRANGER):
        for network in host.networks:
            # a way to the guests' own addresses, so that closed means closed
            ip = ["ip", "-n", OUTSIDE, "route", "replace", str(network.cidr), "via", str(host.uplink.ip)]
            subprocess.run(ip, check=True)
        yield Rig(site, running, tree, made, folder)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> XenTree:
    try:
        tree = fetch_xen(cache_folder(tmp_path_factory), boot=True)
    except Unavailable as error:
        pytest.skip(f"no Xen: {error}")
    if reason := probe_xen(tree):
        pytest.skip(f"no Xen: {reason}")
    return tree


@pytest.fixture(scope="module", autouse=True)
def outside() -> Iterator[None]:
    """The world: everybody who may call, and who may not, will be an address of one namespace."""
    subprocess.run(["ip", "netns", "add", OUTSIDE], check=True)
    try:
        subprocess.run(["ip", "-n", OUTSIDE, "link", "set", "lo", "up"], check=True)
        yield
    finally:
        subprocess.run(["ip", "netns", "del", OUTSIDE], check=True)


@pytest.mark.parametrize(
    ("name", "kind", "peer", "viewer"),
    [("cesnet", "PV", "203.0.113.130", "198.51.100.70"), ("lf1", "PVH", "198.51.100.10", "203.0.113.70")],
)
def test_the_pilots_hosts_as_rendered(
    name: str, kind: str, peer: str, viewer: str, tree: XenTree, tmp_path: Path
) -> None:
    """The example's first host: its guest's file to xl, its rules to nft, nothing in between.

    It stands before the tests of `mixed`, so that one host runs at a time.
    """
    site = check.load(EXAMPLES / f"pilot-{name}.yml")
    with booted(tree, tmp_path, site, rendered(site), rules=True) as rig:
        rig.start()
        assert rig.running() == {"node"}
        for source, port in ((peer, 2811), (peer, 50005), (viewer, 11112)):
            said = who(OUTSIDE, rig.public, port, source=source)
            assert (said["name"], said["port"], said["peer"], said["type"]) == ("node", port, source, kind)
        ports = tuple(port for port in (*HTTP, *RAW) if port != 22)
        assert rig.knocks(ports, STRANGER) == dict.fromkeys(ports, "silent")
        assert {port for port, state in rig.knocks(ports, peer).items() if state == "open"} == {2811, 50005, 50099}
        assert {port for port, state in rig.knocks(ports, viewer).items() if state == "open"} == {11112}
        rig.host.destroy("node")
        assert rig.running() == set()
        assert rig.knocks((2811,), peer)[2811] != "open"


@pytest.fixture(scope="module")
def mixed(tree: XenTree, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A PV and a PVH guest on one host: the second was made after the file's `type` was changed. Rules by `apply`."""
    folder = tmp_path_factory.mktemp("mixed")
    made = {}
    for kind in ("pvh", "pv"):
        file = folder / "site.yml"
        file.write_text(MIXED.replace("TYPE", kind))
        made[kind] = rendered(check.load(file))
    chosen = {**made["pv"], "xen/meta.cfg": made["pvh"]["xen/meta.cfg"]}
    with booted(tree, folder, check.load(folder / "site.yml"), chosen, rules=False) as rig:
        rig.start()
        done = applied(rig)
        assert {"nat.nft", "live rules", "haproxy.cfg", "front reloaded", "sysctl net.ipv4.conf.all.rp_filter"} <= done
        yield rig


def applied(rig: Rig) -> set[str]:
    """`dgis deploy apply` to the host; what it changed."""
    host = rig.site.hosts[0]
    return set(apply.apply(plan.plan(rig.site, flows.derive(rig.site), host), rig.way).changed)


def test_what_runs_is_what_the_files_say(mixed: Rig) -> None:
    running = mixed.host.domains()
    assert set(running) == {"node", "meta"} == mixed.running()
    for name, port, caller, kind in (("node", 2811, PEER, "pv"), ("meta", 9441, "", "pvh")):
        file = mixed.folder / f"{name}.cfg"
        file.write_text(mixed.made[f"xen/{name}.cfg"])
        wanted = normalise(xl_dryrun(mixed.tree, file, strict=True))
        said = who(OUTSIDE, mixed.public, port, source=caller) if caller else by_name(mixed, f"catalog.{name}", PEER)
        assert (running[name].memory, running[name].vcpus) == (wanted.memory, wanted.vcpus) == (160, said["vcpus"])
        assert said["type"] == wanted.type.upper() == kind.upper()
        assert (said["name"], said["uuid"], said["mac"]) == (name, wanted.uuid, wanted.vifs[0].mac)
        assert {vdev: disk["access"] for vdev, disk in said["disks"].items()} == {
            disk.vdev: disk.access for disk in wanted.disks
        }
    assert fetch(OUTSIDE, mixed.public, 2811, "/cmdline", source=PEER).strip() == (
        "root=LABEL=dgisroot ro net.ifnames=0 panic=10 console=hvc0"
    )


def by_name(rig: Rig, name: str, source: str) -> dict[str, object]:
    """Who answers to a server name at the shared port."""
    return speak(OUTSIDE, rig.public, 443, client_hello(f"{name}.{rig.site.domain}"), source=source)


def test_a_second_apply_changes_nothing(mixed: Rig) -> None:
    assert applied(mixed) == set()


def test_doors_lead_to_their_guest_for_whom_the_file_names(mixed: Rig) -> None:
    for source, ports in ((PEER, (2811, 50005, 50099)), (VIEWER, (11112,))):
        for port in ports:
            said = who(OUTSIDE, mixed.public, port, source=source)
            assert (said["name"], said["port"], said["peer"]) == ("node", port, source)
    undeclared = tuple(port for port in (*HTTP, *RAW) if port != 22)
    opened = {PEER: {2811, 50005, 50099}, VIEWER: {11112}, ADMIN: set(), STRANGER: set()}
    for source, ports in opened.items():
        found = mixed.knocks(undeclared, source)
        assert {port for port, state in found.items() if state == "open"} == ports
        assert {state for port, state in found.items() if port not in ports} == {"silent"}


def test_names_share_one_port(mixed: Rig) -> None:
    """HAProxy in dom0 with the rendered configuration and maps."""
    for name, guest, port in (
        ("catalog.meta", "meta", 9441), ("dgis.node", "node", 9442), ("storage.node", "node", 9443),
    ):  # fmt: skip
        said = by_name(mixed, name, ADMIN)
        assert (said["name"], said["port"]) == (guest, port)
    said = speak(OUTSIDE, mixed.public, 443, b"SSH-2.0-test\r\n", source=PEER)
    assert (said["name"], said["port"]) == ("node", 2222)
    for name, source in (("wiki.node", PEER), ("dgis.node", PEER), ("node", ADMIN)):
        assert by_name(mixed, name, source) == {}
    for source in (VIEWER, STRANGER):
        assert knock(OUTSIDE, mixed.public, 443, source=source) == "silent"


def test_guests_own_addresses_are_closed_from_outside(mixed: Rig) -> None:
    own = [("10.77.0.11", port) for port in HTTP + RAW] + [("10.77.0.12", 9441), ("10.77.0.1", 22)]
    with ThreadPoolExecutor(len(own)) as pool:
        assert set(pool.map(lambda door: knock(OUTSIDE, *door, source=PEER), own)) == {"silent"}
    # That the guests do listen there, seen from dom0: it is the rules that keep it shut
    mixed.host.run("set -e; for port in 80 2222 9443; do : < /dev/tcp/10.77.0.11/$port; done")
    assert "packets 0 " not in mixed.host.run("nft list counter inet dgis refused").out


def test_watch_keeps_the_rules_in_step_with_the_guests_that_xl_lists(mixed: Rig) -> None:
    watch = Watch(Watched(mixed.folder / "site.yml", "xen1", mixed.way, "xl", patience=1))
    assert list(watch.look()) != []  # the first look says what is in force
    assert list(watch.look()) == []
    before = mixed.host.domains()["node"].id
    mixed.host.destroy("node")
    (said,) = watch.look()
    assert said.endswith("doors of meta")
    assert mixed.knocks((2811, 50005, 11112), PEER) == {2811: "silent", 50005: "silent", 11112: "silent"}
    assert by_name(mixed, "storage.node", PEER) == {}
    assert by_name(mixed, "catalog.meta", PEER)["name"] == "meta"
    assert "node" not in mixed.host.run("losetup -a").out
    mixed.host.create("node")
    mixed.host.wait("node")
    (said,) = watch.look()
    assert said.endswith("doors of meta, node")
    assert mixed.host.domains()["node"].id > before
    assert who(OUTSIDE, mixed.public, 2811, source=PEER)["name"] == "node"


def test_a_guest_that_crashes_is_started_again(mixed: Rig) -> None:
    """`on_crash` of the file; `panic=10` is how long it stays in its last words."""
    before = mixed.host.domains()["meta"].id
    mixed.host.crash("meta")
    mixed.host.run(until("xl domid meta", f"grep -qvx {before}"), timeout=180)
    mixed.host.wait("meta")
    assert mixed.running() == {"node", "meta"}


def until(asked: str, wanted: str) -> str:
    """A loop in dom0 until what a command says is as wanted."""
    return f"until {asked} 2> /dev/null | {wanted}; do usleep 100000; done"


def test_a_guest_that_stands_still_or_has_crashed_does_not_run(mixed: Rig) -> None:
    mixed.host.run("xl pause meta")
    assert mixed.running() == {"node"}
    mixed.host.run("xl unpause meta")
    assert mixed.running() == {"node", "meta"}
    # One that crashed stays for whoever looks into it, if an administrator wants that
    mixed.host.destroy("meta")
    mixed.host.run("rm /var/log/xen/guest-meta.log; xl create /etc/xen/meta.cfg 'on_crash=\"preserve\"'", timeout=120)
    mixed.host.wait("meta")
    mixed.host.crash("meta")
    mixed.host.run(until("xl list meta", "grep -q 'sc-'"), timeout=180)
    assert set(mixed.host.domains()) == {"node", "meta"}
    assert mixed.running() == {"node"}
    mixed.host.destroy("meta")


def test_a_script_in_the_host_gives_status_and_words_and_ends_in_time(mixed: Rig) -> None:
    host = mixed.host
    assert host.run("echo out; echo err >&2; exit 7", check=False) == Call(7, "out\n", "err\n")
    assert host.run("sleep 100", timeout=1, check=False).status == 143
    lost = 'name = "lost"\ntype = "pvh"\nkernel = "/var/lib/dgis/images/vmlinuz"\nmemory = 64\nvif = ["bridge=nobr0"]\n'
    host.write("/tmp/lost.cfg", lost)
    with pytest.raises(AssertionError, match="Could not find bridge device nobr0"):
        host.run("xl create /tmp/lost.cfg")
    assert "lost" not in host.domains()


def test_a_boot_that_fails_is_tried_again_and_leaves_nothing(tree: XenTree, tmp_path: Path) -> None:
    broken = XenTree(tmp_path / "tree", tree.packages)
    shutil.copytree(tree.root, broken.root, symlinks=True)
    broken.hypervisor.write_bytes(b"no hypervisor")
    link = Uplink(OUTSIDE, "up1", "", device="pub0", address="192.0.2.10/24", gateway="192.0.2.1")
    site = Site(uplinks=(link,), bridges={}, configs={})
    with pytest.raises(BootFailed, match="the host is gone"), xen_host(broken, tmp_path / "run", site):
        pass
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["boot-1", "boot-2"]
    assert "up1" not in subprocess.run(["ip", "-n", OUTSIDE, "link"], capture_output=True, text=True, check=True).stdout
