"""A guest booted from our image with a rendered seed, as its rendered libvirt domain says, behind the rendered NAT.

One guest with every role, on a host of two, lives through the whole file in the order of the tests: first boot, the
services asked from outside by name, by door and from the LAN, a restart, a move to the other host. Hosts are network
namespaces on which `dgis deploy apply` was run; the guest is emulated. Four to five minutes with an image at hand
(DGIS_IMAGE_DIR), two more to build one.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Interface
from pathlib import Path

import pytest
import tomli_w

from certs import ca
from dgis.deploy import certificates, check, move, names, tree
from dgis.deploy.render import render
from dgis.deploy.topology import Guest, Site
from tests.helpers import dcmtk, domain, guestimage
from tests.helpers.dicomfiles import images, synth
from tests.helpers.domain import DomainGuest, Operator
from tests.helpers.guestimage import Image
from tests.helpers.netlab import Bridge, Lab, require_netlab
from tests.helpers.netnode import Node
from tests.helpers.sitelab import World

pytestmark = [dcmtk.NEEDS, pytest.mark.soak, pytest.mark.timeout(3600)]

PUBLIC, LAN = "198.51.100.10", "10.20.1.10"
BIN = Path(sys.executable).parent
FILE = """\
# a host for now, and one behind it for later
site: booted
organisation: Booted Grid
domain: booted.example
hypervisor: {kind: kvm}
copies: 1
admins: [192.0.2.0/28]
admin_keys: [KEY]
operators: [/O=Booted Grid/OU=People/CN=operator]
hosts:
  - name: kvm1
    uplink: {interface: eth0, address: 198.51.100.10/24, gateway: 198.51.100.1}
    lan: {interface: eth1, address: 10.20.1.10/24}
    inner: {interface: eth2, address: 10.76.0.1/24}
    images: IMAGES
    networks: [{name: grid, bridge: dgisbr0, cidr: 10.77.0.0/24}]
  - name: kvm2
    behind: kvm1
    inner: {interface: eth0, address: 10.76.0.2/24}
    images: IMAGES
    networks: [{name: grid, bridge: dgisbr1, cidr: 10.77.1.0/24}]
guests:
  - name: node
    host: kvm1
    address: 10.77.0.11
    roles: [front, catalog, storage, dgis]
    memory: 1 GiB
    cpus: 2
    data: 4 GiB
    gridftp: {data: 50000-50049}
    sftp: 443
    dimse:
      aet: BOOTED
      networks: [10.20.1.0/24]
      aes:
        - {title: MR1, networks: [10.20.1.70], rights: [echo, store, find, get]}
peers:
  - site: lf1
    domain: lf1.example
    address: 203.0.113.20
    guests: [{name: node, roles: [dgis, storage], gridftp: {data: 50000-50099}, sftp: 443}]
"""
SERVICES = ("catalog", "storage", "node")
# Seconds; a free machine takes a third of these
BOOT, SERVED, ASKED = 500.0, 700.0, 240.0


class Cards(World):
    """A world whose guests are emulated: instead of a namespace each has a card on its host's bridge."""

    def put(self, site: Site, guest: Guest) -> Node:
        """Make the card where the site file has the guest now."""
        host = self.node(site.name, guest.host)
        host.tap(f"tap-{guest.name}")
        Bridge(self.lab, host, site.network_of(guest).bridge).attach(f"tap-{guest.name}")
        return host


@dataclass
class Rig:
    """The site, its guest, and the places from where it is asked."""

    world: Cards
    image: Image
    folder: Path
    site: Site
    text: str
    guest: DomainGuest
    peer: Node
    admin: Node
    viewer: Node
    sent: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        return self.folder / "authority"

    def out(self, *parts: str) -> Path:
        return Path(self.folder, "out", self.site.guest("node").host, *parts)

    def render(self) -> None:
        """`dgis deploy certificates`, `render` and `apply` on every host; what the guest's host has to have."""
        certificates.issue(self.site, self.home, self.folder / "issued")
        tree.write(render(self.site, certs=self.folder / "issued"), self.folder / "out")
        self.world.sites[self.site.name] = self.site
        for host in self.site.hosts:
            self.world.apply(self.site.name, host.name)
        self.guest.domain = self.out("libvirt", "node.xml").read_bytes()
        self.guest.way = Operator(self.host.namespace, str(self.site.guest("node").address), self.world.lab.ssh.key)
        seed = self.out("seed", "node.iso").read_bytes()
        size = self.site.guest("node").data
        domain.place_on(self.folder / "images", self.image, self.guest.domain, seed, size=size)

    @property
    def host(self) -> Node:
        return self.world.node("booted", self.site.guest("node").host)

    def boot(self) -> None:
        self.guest.boot(self.host.namespace, "tap-node")

    def await_services(self, name: str) -> None:
        """Until the guest itself says that each of its services is well."""
        for service in SERVICES:
            said = self.guest.wait_for(f"dgis-health: {service} ok", seconds=SERVED)
            self.figures[f"{name}: {service} healthy"] = said

    def curl(self, node: Node, url: str, identity: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Ask a service by name over mutual TLS."""
        base = self.folder / "people" / identity
        trust = ["--cacert", self.home / "trust" / "ca.pem"]
        own = ["--cert", f"{base}.cert.pem", "--key", f"{base}.key.pem"] if identity else []
        return node.run(["curl", "-sS", "-m", "60", *trust, *own, *words, url], check=False, timeout=ASKED)

    def dcm(self, tool: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Speak DIMSE from the modality on the LAN."""
        env = {**os.environ, **dcmtk.environment(nodelay=True)}
        calling = [dcmtk.PLACE / tool, "-aet", "MR1", "-aec", "BOOTED", "-ta", "90", "-td", "90"]
        return self.viewer.run([*calling, *words], check=False, env=env, timeout=ASKED)

    def found(self) -> list[str]:
        """C-FIND: the studies that the grid has."""
        keys = [word for key in ("QueryRetrieveLevel=STUDY", "StudyInstanceUID") for word in ("-k", key)]
        done = self.dcm("findscu", "-v", "-S", *keys, LAN, "11112")
        # not its exit code: that is 0 for rows that lack what a catalog could not be asked for, too
        assert "Received Final Find Response (Success)" in done.stdout + done.stderr, done.stderr
        return re.findall(r"\(0020,000d\) UI \[([\d.]+)", done.stdout + done.stderr)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    require_netlab()
    if (missing := guestimage.missing_tools()) is not None:
        pytest.skip(f"guest image: {missing}")
    made = guestimage.guest_image(tmp_path_factory.mktemp("image"))
    if (reason := guestimage.probe_qemu(made)) is not None:
        pytest.skip(f"guest image: {reason}")
    return made


@pytest.fixture(scope="module")
def rig(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """The guest, switched on; with certificates by file, issued by a grid of this test."""
    folder = tmp_path_factory.mktemp("booted")
    with Lab("booted") as lab:
        world = Cards(lab)
        text = FILE.replace("KEY", lab.ssh.public_key).replace("IMAGES", str(folder / "images"))
        (folder / "site.yml").write_text(text)
        site = world.add(check.load(folder / "site.yml"))
        guest = DomainGuest(image, folder, way=Operator("", "", lab.ssh.key))
        places = {"peer": "203.0.113.20/24", "admin": "192.0.2.2/28", "viewer": "10.20.1.70/24"}
        nodes = {name: world.place(name, IPv4Interface(at)) for name, at in places.items()}
        made = Rig(world, image, folder, site, text, guest, **nodes)
        people(made)
        made.render()
        try:
            made.boot()
            yield made
        finally:
            guest.kill()
            sys.stderr.write("".join(f"\n{what}: {seconds:.0f} s" for what, seconds in made.figures.items()) + "\n")
            for disk in (folder / "images").glob("*.raw"):
                disk.unlink()


def people(rig: Rig) -> None:
    """The authority, an operator, a DGIS of the peer; everybody outside knows the site's names."""
    out = rig.folder / "people"
    ca.init_site(rig.home, organisation=rig.site.organisation)
    ca.issue_user(rig.home, "operator", roles=("operator",), out=out)
    ca.issue_host(rig.home, "dgis.node.lf1.example", dns=("dgis.node.lf1.example",), roles=("gateway",), out=out)
    known = {name: str(address) for name, address in names.addresses(rig.site).items()}
    for node in (rig.peer, rig.admin, rig.viewer):
        node.hosts(known)


def test_the_first_boot_finishes_as_the_seed_says(rig: Rig) -> None:
    rig.figures["first boot: cloud-init done"] = rig.guest.wait_for("dgis-guest: cloud-init finished", seconds=BOOT)
    assert "DataSourceNoCloud" in rig.guest.console
    rig.figures["first boot: login"] = rig.guest.wait_ssh(seconds=ASKED)
    assert json.loads(rig.guest.ssh("cloud-init status --format json"))["errors"] == []
    said = rig.guest.ssh("hostname --fqdn; cat /var/lib/cloud/data/instance-id; ip -4 -o address show eth0; ip route")
    card = rig.site.guest("node")
    for wanted in ("node.booted.example", "dgis-booted-node-", f"{card.address}/24", "default via 10.77.0.1"):
        assert wanted in said
    assert rig.guest.ssh("cat /sys/class/net/eth0/address").strip() == card.mac
    mounted = rig.guest.ssh("findmnt --noheadings --output SOURCE,FSTYPE,LABEL /var/lib/dgis").split()
    assert mounted == ["/dev/vdb", "ext4", "dgisdata"]


def test_its_services_run_and_it_says_so(rig: Rig) -> None:
    rig.await_services("first boot")
    report = json.loads(rig.guest.ssh("cat /run/dgis/health.json"))
    assert {name: each["status"] for name, each in report["services"].items()} == dict.fromkeys(SERVICES, "ok")
    assert rig.guest.ssh("systemctl --failed --no-legend --plain").strip() == ""
    assert rig.guest.ssh("stat -c '%U %a' /etc/dgis/*/*.key.pem").split() == [
        "dgis-catalog", "600", "dgis-node", "600", "dgis-storage", "600",
    ]  # fmt: skip


@pytest.mark.parametrize(("service", "roles"), [("catalog", ["gateway"]), ("storage", ["gateway"])])
def test_a_peer_is_served_by_name_over_mutual_tls(rig: Rig, service: str, roles: list[str]) -> None:
    """The guest's own HAProxy, its configuration from the seed, passes TLS on by its server name."""
    url = f"https://{service}.node.booted.example"
    health = rig.curl(rig.peer, f"{url}/health", "dgis.node.lf1.example")
    assert json.loads(health.stdout)["status"] == "ok", health.stderr
    assert json.loads(rig.curl(rig.peer, f"{url}/v1/whoami", "dgis.node.lf1.example").stdout)["roles"] == roles
    nobody = rig.curl(rig.peer, f"{url}/health", "")
    assert nobody.returncode != 0 and "alert" in nobody.stderr, nobody.stderr


def test_the_operator_watches_every_service(rig: Rig) -> None:
    for service in ("catalog", "storage", "dgis"):
        said = rig.curl(rig.admin, f"https://{service}.node.booted.example/v1/whoami", "operator")
        assert json.loads(said.stdout)["roles"] == ["operator"], said.stderr
    # A name that the peer has no business with
    refused = rig.curl(rig.peer, "https://dgis.node.booted.example/health", "dgis.node.lf1.example")
    assert refused.returncode != 0 and refused.stdout == ""


def test_only_the_doors_of_the_file_are_open(rig: Rig) -> None:
    tried = (22, 80, 104, 443, 2222, 2762, 2811, 9441, 9442, 9443, 11112, 50000, 50050)
    opened = {"peer": {443, 2811}, "admin": {443}, "outside": set()}
    for name, node in (("peer", rig.peer), ("admin", rig.admin), ("outside", rig.world.outside)):
        found = node.scan(PUBLIC, tried)
        # the host's own SSH door: nothing listens in a namespace; a data port of GridFTP: nothing now
        shut = {port for port, state in found.items() if state == "silent"}
        assert {port for port, state in found.items() if state == "open"} == opened[name]
        assert shut >= set(tried) - opened[name] - {22, 50000}
    assert {port for port, state in rig.viewer.scan(LAN, tried).items() if state == "open"} == {11112}


def test_the_grid_keeps_an_image_from_the_lan(rig: Rig, tmp_path: Path) -> None:
    """C-ECHO and C-STORE through the DIMSE door, copied by GridFTP through the site's own public address."""
    registered = register(rig)
    assert "booted-node at gsiftp://storage.node.booted.example:2811" in " ".join(registered.split()), registered
    assert rig.dcm("echoscu", LAN, "11112").returncode == 0
    sent = synth(tmp_path / "in", "--studies", "1", "--series", "1", "--instances", "2", "--rows", "64", "--cols", "64")
    rig.sent = [one.data_sha256 for one in images(sent)]
    done = rig.dcm("storescu", "+sd", "+r", LAN, "11112", sent)
    assert done.returncode == 0, done.stderr
    assert set(rig.found()) == {one.study_uid for one in images(sent)}
    stored = "find /var/lib/dgis/storage/main/objects -type f -name '????????????????????????????????*' | wc -l"
    spool = "find /var/lib/dgis/node/spool/inbox /var/lib/dgis/node/spool/registered -mindepth 2 | wc -l"
    waiting = f"for i in $(seq 300); do [ $({stored}) -ge 2 ] && [ $({spool}) = 0 ] && exit 0; sleep 0.5; done; exit 1"
    rig.guest.ssh(waiting, seconds=200)


def register(rig: Rig) -> str:
    """Run the rendered register.sh as the grid's operator, from where catalog and doors are reached."""
    base = rig.folder / "people" / "operator"
    identity = {"cert": f"{base}.cert.pem", "key": f"{base}.key.pem", "trust": str(rig.home / "trust")}
    identity |= {"gridmap": str(rig.home / "gridmap"), "ssh_peers": str(rig.folder / "issued" / "ssh_peers")}
    node = {"dgis": {"aet": "OPERATOR", "site": "lf1", "spool": str(rig.folder / "spool")}, "identity": identity}
    config = rig.folder / "operator.toml"
    config.write_text(tomli_w.dumps({**node, "catalog": {"url": names.catalog_url(rig.site)}}))
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    done = rig.peer.run(["sh", rig.folder / "out" / "register.sh", "--config", config], env=env, timeout=ASKED)
    return done.stdout + done.stderr


def test_a_restart_keeps_everything(rig: Rig, tmp_path: Path) -> None:
    before = known_by(rig)
    rig.guest.restarted()
    rig.guest.ssh("systemctl reboot", check=False)
    rig.await_services("restart")
    assert known_by(rig) == before
    expect_images(rig, tmp_path)


def known_by(rig: Rig) -> str:
    """What tells this guest from all others: to its operators, to itself, to the grid."""
    return rig.guest.ssh("cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub; sha256sum /etc/dgis/*/*.cert.pem")


def expect_images(rig: Rig, out: Path) -> None:
    """C-GET gives back what was stored, byte for byte."""
    (study,) = rig.found()
    keys = [word for key in ("QueryRetrieveLevel=STUDY", f"StudyInstanceUID={study}") for word in ("-k", key)]
    (out / "got").mkdir()
    done = rig.dcm("getscu", "-S", "+B", "-od", out / "got", *keys, LAN, "11112")
    assert done.returncode == 0, done.stderr
    assert sorted(one.data_sha256 for one in images(out / "got")) == sorted(rig.sent)


def test_a_guest_that_moves_takes_its_new_address_and_keeps_its_state(rig: Rig, tmp_path: Path) -> None:
    """`dgis deploy move`: another host, another seed, the same disks; nobody outside has to learn anything."""
    before, instance = known_by(rig), rig.guest.ssh("cat /var/lib/cloud/data/instance-id")
    rig.guest.ssh("systemctl poweroff", check=False)
    rig.guest.wait_for("Power down", seconds=ASKED)
    rig.guest.kill()
    rig.text, rig.site = move.moved(rig.text, "site.yml", "node", "kvm2")
    rig.render()
    assert str(rig.site.guest("node").address) == "10.77.1.11"
    rig.world.put(rig.site, rig.site.guest("node"))
    rig.boot()
    rig.await_services("after the move")
    said = rig.guest.ssh("cat /var/lib/cloud/data/instance-id; ip -4 -o address show eth0; ip route")
    assert "10.77.1.11/24" in said and "default via 10.77.1.1 " in said and instance.strip() not in said
    assert "10.77.0." not in said
    assert known_by(rig) == before
    expect_images(rig, tmp_path)
    whoami = rig.curl(rig.peer, "https://storage.node.booted.example/v1/whoami", "dgis.node.lf1.example")
    assert json.loads(whoami.stdout)["roles"] == ["gateway"], whoami.stderr
