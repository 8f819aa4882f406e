"""The life of a guest, each step by its playbook: it grows, moves to another host with its disks, and goes.

Two hosts, each with libvirt's test driver behind its own daemon; the disks go from host to host by rsync over ssh.
"""

from __future__ import annotations

import hashlib
import shlex
import shutil
import sys
from collections.abc import Iterator
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

import pytest

from certs import ca
from dgis.deploy import check
from tests.helpers.ansiblelab import BIN, GUEST, HYPERVISOR, NEEDS, VIRSH, Controller, Machine, machine, storage_service
from tests.helpers.netlab import Lab, require_netlab
from tests.helpers.sitelab import World

pytestmark = [
    NEEDS,
    pytest.mark.soak,
    pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed"),
]

# As on a host that has had a firewall before: connections that are open when our rules come are known to be open
_TRACKING = """nft 'table inet seen { chain arriving { type filter hook input priority -300; ct state new counter; }; }'
"""
_THEIRS = "<domain type='test'><name>store</name><memory>1024</memory><os><type>hvm</type></os></domain>"
_IMAGES = "var/lib/dgis/images"


def _site(key: str) -> dict[str, Any]:
    network = {"name": "grid", "bridge": "dgisbr0"}
    uplink = {"interface": "eth0", "address": "198.51.100.10/24"}
    return {
        "site": "pair",
        "organisation": "Lab Grid",
        "domain": "pair.example",
        "hypervisor": {"kind": "kvm"},
        "admins": ["198.51.100.2"],
        "admin_keys": [key],
        "hosts": [
            {
                "name": "one",
                "uplink": uplink,
                "inner": {"interface": "eth1", "address": "10.76.0.1/24"},
                "networks": [{**network, "cidr": "10.77.0.0/24"}],
            },
            {
                "name": "two",
                "behind": "one",
                "inner": {"interface": "eth0", "address": "10.76.0.2/24"},
                "networks": [{**network, "cidr": "10.77.1.0/24"}],
            },
        ],
        "guests": [
            {
                "name": "store",
                "host": "one",
                "address": "10.77.0.13",
                "roles": ["storage"],
                "memory": "1 GiB",
                "disk": "64 MiB",
                "data": "32 MiB",
                "gridftp": {"data": "50000-50009"},
            }
        ],
        "peers": [
            {
                "site": "far",
                "domain": "far.example",
                "address": "198.51.100.99",
                "guests": [{"name": "gate", "roles": ["dgis"]}],
            }
        ],
    }


@pytest.fixture
def pair() -> Iterator[tuple[Controller, Machine, Machine]]:
    require_netlab()
    with Lab("guests") as lab:
        world = World(lab)
        admin = world.place("admin", IPv4Interface("198.51.100.2/24"))
        home = lab.folder / "ca"
        ca.init_site(home, organisation="Lab Grid")
        operator = Controller(lab, admin, _site(lab.ssh.public_key), home, {"dgis_service_health": ["true"]})
        operator.render()
        world.add(check.load(operator.folder / "site.yml"))
        one = machine(lab, world.node("pair", "one"), "one.pair.example", "root", HYPERVISOR + _TRACKING)
        two = machine(lab, world.node("pair", "two"), "two.pair.example", "root", HYPERVISOR + _TRACKING)
        machine(lab, world.node("pair", "store"), "store.pair.example", "operator", GUEST)
        yield operator, one, two


def _domain(host: Machine) -> dict[str, str]:
    """What libvirt says of the guest; {} when it knows none."""
    if "store" not in host.run(*VIRSH, "list", "--all", "--name").split():
        return {}
    said = host.run(*VIRSH, "dominfo", "store")
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in said.splitlines())}


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def test_a_guest_grows_moves_and_goes(pair: tuple[Controller, Machine, Machine]) -> None:
    operator, one, two = pair
    guest = operator.site["guests"][0]
    hosts = {"one.pair.example": 0, "two.pair.example": 0}
    operator.play("site.yml", "--limit", "hypervisors")
    here, there = one.root / _IMAGES, two.root / _IMAGES
    assert (_domain(one)["State"], _domain(one)["Max memory"], _domain(one)["Autostart"]) == (
        "running",
        "1048576 KiB",
        "enable",
    )
    assert [(here / f"store.{use}.raw").stat().st_size for use in ("root", "data")] == [64 * 2**20, 32 * 2**20]

    # It grows: told without the playbook for it, done with it
    guest |= {"memory": "2 GiB", "cpus": 4, "data": "48 MiB"}
    operator.render()
    operator.play("site.yml", "--limit", "hypervisors")
    assert "run resize-guest.yml -e guest=store" in " ".join(operator.said.split()).lower()
    assert _domain(one)["Max memory"] == "1048576 KiB"
    marked = here / "store.data.raw"
    with marked.open("r+b") as disk:
        disk.seek(20 * 2**20)
        disk.write(b"what the guest keeps")
    assert operator.play("resize-guest.yml", guest="store")["one.pair.example"] > 0
    assert (_domain(one)["State"], _domain(one)["Max memory"], _domain(one)["CPU(s)"]) == (
        "running",
        "2097152 KiB",
        "4",
    )
    assert marked.stat().st_size == 48 * 2**20
    assert operator.play("resize-guest.yml", guest="store")["one.pair.example"] == 0

    # It moves
    kept = {use: _digest(here / f"store.{use}.raw") for use in ("root", "data")}
    guest |= {"host": "two", "address": "10.77.1.13"}
    operator.render()
    operator.play("move-guest.yml", guest="store")
    assert _domain(one) == {} and _domain(two)["State"] == "running"
    assert {use: _digest(there / f"store.{use}.raw") for use in kept} == kept
    assert sorted(path.name for path in here.glob("store.*")) == ["store.data.raw.moved", "store.root.raw.moved"]
    assert "dgis-move" not in (two.root / "root/.ssh/authorized_keys").read_text()
    assert not list((one.root / "root/.ssh").glob("dgis-move*"))
    assert {**hosts, **operator.play("move-guest.yml", guest="store")}.items() >= hosts.items()

    # It goes; a guest of the same name that is not ours stays
    operator.site["guests"] = []
    operator.render()
    operator.play("remove-guest.yml", guest="store")
    assert _domain(two) == {}
    assert sorted(path.name for path in there.glob("store.*")) == ["store.data.raw", "store.root.raw"]
    assert {**hosts, **operator.play("remove-guest.yml", guest="store")}.items() >= hosts.items()
    two.run(
        "sh",
        "-c",
        "echo '<domain type=\"test\"><name>store</name><memory>1</memory><os><type>hvm</type></os></domain>' > /run/x",
    )
    two.run(*VIRSH, "define", "/run/x")
    with pytest.raises(AssertionError, match="was not made from this site file"):
        operator.play("remove-guest.yml", guest="store")
    assert _domain(two)


# The CA's user has to reach the interpreter, wherever that lies; in this root file system alone
_REACHABLE = """install -d -o dgis-ca -g dgis-ca -m 700 /var/lib/dgis/ca
for each in {parents}; do chmod o+x "$each"; done
"""


def test_the_ca_of_a_site_signs_in_its_own_guest() -> None:
    """A service's key is made where it is used, its request signed in the CA's guest; new lists come by trust.yml."""
    require_netlab()
    parents = shlex.join(str(each) for each in Path(sys.executable).resolve().parents if each != Path("/"))
    with Lab("guests") as lab:
        world = World(lab)
        admin = world.place("admin", IPv4Interface("198.51.100.2/24"))
        site = _site(lab.ssh.public_key)
        site["hosts"], site["peers"] = site["hosts"][:1], []
        site["guests"].append({"name": "authority", "host": "one", "address": "10.77.0.15", "roles": ["ca"]})
        operator = Controller(lab, admin, site, None, storage_service("storage.store.pair.example"))
        operator.render()
        world.add(check.load(operator.folder / "site.yml"))
        machine(lab, world.node("pair", "one"), "one.pair.example", "root", HYPERVISOR)
        store = machine(lab, world.node("pair", "store"), "store.pair.example", "operator", GUEST)
        prepare = GUEST + _REACHABLE.format(parents=parents)
        authority = machine(lab, world.node("pair", "authority"), "authority.pair.example", "operator", prepare)
        home = authority.root / "var/lib/dgis/ca"

        operator.play("site.yml", "--limit", "guests,localhost", dgis_create_ca=True)
        assert {path.stat().st_uid for path in home.rglob("*")} == {home.stat().st_uid} == {944}
        said = store.run("openssl", "x509", "-noout", "-issuer", "-in", "/etc/dgis/storage/storage.cert.pem")
        assert "Lab Grid" in said
        assert set(operator.play("site.yml", "--limit", "guests,localhost").values()) == {0}, operator.said

        before = _lists(store)
        words = ["setpriv", "--reuid=dgis-ca", "--regid=dgis-ca", "--init-groups", str(BIN / "dgis-certs")]
        authority.run(*words, "crl", "--home", "/var/lib/dgis/ca")
        assert operator.play("trust.yml")["store.pair.example"] == 1
        assert before and all(before[name] != now for name, now in _lists(store).items())


def _lists(guest: Machine) -> dict[str, str]:
    """The revocation lists of a guest by name."""
    return {path.name: _digest(path) for path in (guest.root / "etc/dgis/trust").glob("*.r0")}
