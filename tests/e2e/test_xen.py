"""Real Xen under emulation: `xl create` of a PV and a PVH guest that share one public address, reached from outside."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.helpers.xen import (
    BootFailed,
    Call,
    Lease,
    Site,
    Unavailable,
    Uplink,
    XenHost,
    XenTree,
    XlGuest,
    cache_folder,
    fetch_xen,
    normalise,
    probe_xen,
    xen_host,
    xl_dryrun,
)
from tests.helpers.xen.outside import fetch, knock, who

# Boot and both guests take 35 s on a free machine, four times that where ten others work; the limit is for a hang
pytestmark = [pytest.mark.soak, pytest.mark.peer, pytest.mark.timeout(400)]

OUTSIDE = f"dgisx{os.getpid()}"
PUBLIC, CALLER = "198.51.100.10", "198.51.100.1"
IMAGES = "/var/lib/dgis/images"
# public port: guest, port inside
FORWARDS = {8443: ("hosp-a-dgis", 443), 2811: ("hosp-a-dgis", 2811), 2222: ("hosp-a-store", 22)}
UNDECLARED = (22, 80, 443, 2810, 8080, 8444)
LEASES = {
    "hosp-a-dgis": Lease("00:16:3e:d9:15:21", "hosp-a-dgis", "10.78.0.21/24", "10.78.0.1", (80, 443, 2811)),
    "hosp-a-store": Lease("00:16:3e:d9:15:22", "hosp-a-store", "10.78.0.22/24", "10.78.0.1", (22, 80, 443)),
}
TYPES = {"hosp-a-dgis": "pv", "hosp-a-store": "pvh"}
UUIDS = {
    "hosp-a-dgis": "6f7e3d4a-9f7b-5c5e-8a55-0123456789a1",
    "hosp-a-store": "6f7e3d4a-9f7b-5c5e-8a55-0123456789a2",
}
MEMORY = 160


def config(name: str) -> str:
    return f"""\
name = "{name}"
uuid = "{UUIDS[name]}"
type = "{TYPES[name]}"
kernel = "{IMAGES}/vmlinuz"
ramdisk = "{IMAGES}/initrd.gz"
extra = "root=LABEL=dgisroot ro console=hvc0"
memory = {MEMORY}
vcpus = 1
disk = [
  "format=raw, vdev=xvda, access=rw, target={IMAGES}/{name}.root.raw",
  "format=raw, vdev=xvdb, access=ro, target={IMAGES}/{name}.seed.raw",
]
vif = ["mac={LEASES[name].mac}, bridge=dgisbr0"]
on_reboot = "restart"
on_crash = "restart"
"""


def ruleset() -> str:
    addresses = {name: lease.address.partition("/")[0] for name, lease in LEASES.items()}
    doors = ", ".join(f"{port} : {addresses[name]} . {inside}" for port, (name, inside) in FORWARDS.items())
    return f"""\
table ip dgis {{
  map doors {{
    type inet_service : ipv4_addr . inet_service
    elements = {{ {doors} }}
  }}
  counter refused {{ }}
  chain prerouting {{
    type nat hook prerouting priority dstnat
    iifname "pub0" ip daddr {PUBLIC} dnat ip to tcp dport map @doors
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat
    oifname "pub0" masquerade
  }}
  chain input {{
    type filter hook input priority filter
    iifname != "pub0" accept
    ct state established,related accept
    counter name refused drop
  }}
  chain forward {{
    type filter hook forward priority filter
    ct state established,related accept
    ct status dnat accept
    iifname "pub0" counter name refused drop
  }}
}}
"""


SITE = Site(
    uplinks=(Uplink(OUTSIDE, "up0", f"{CALLER}/24", device="pub0", address=f"{PUBLIC}/24", gateway=CALLER),),
    bridges={"dgisbr0": "10.78.0.1/24"},
    nft=ruleset(),
    configs={name: config(name) for name in LEASES},
    leases=tuple(LEASES.values()),
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> XenTree:
    try:
        tree = fetch_xen(cache_folder(tmp_path_factory), boot=True)
    except Unavailable as error:
        pytest.skip(f"no Xen: {error}")
    if reason := probe_xen(tree):
        pytest.skip(f"no Xen: {reason}")
    return tree


@pytest.fixture(scope="module")
def outside() -> Iterator[str]:
    """The world: a namespace that knows a way to the guests' own addresses, too, so that closed means closed."""
    subprocess.run(["ip", "netns", "add", OUTSIDE], check=True)
    try:
        yield OUTSIDE
    finally:
        subprocess.run(["ip", "netns", "del", OUTSIDE], check=True)


@pytest.fixture(scope="module")
def host(tree: XenTree, outside: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[XenHost]:
    try:
        with xen_host(tree, tmp_path_factory.mktemp("xen"), SITE) as host:
            subprocess.run(["ip", "-n", outside, "route", "add", "10.78.0.0/24", "via", PUBLIC], check=True)
            for name in LEASES:
                host.create(name)
            for name in LEASES:
                host.wait(name)
            yield host
    except Unavailable as error:
        pytest.skip(f"no Xen: {error}")


@pytest.fixture
def wanted(tree: XenTree, host: XenHost) -> dict[str, XlGuest]:
    return {name: normalise(xl_dryrun(tree, host.folder / f"{name}.cfg", strict=True)) for name in LEASES}


def test_what_runs_is_what_the_files_say(host: XenHost, outside: str, wanted: dict[str, XlGuest]) -> None:
    running = host.domains()
    assert set(running) == set(wanted)
    for port, name in ((8443, "hosp-a-dgis"), (2222, "hosp-a-store")):
        guest, said = wanted[name], who(outside, PUBLIC, port)
        assert (running[name].memory, running[name].vcpus) == (guest.memory, guest.vcpus)
        assert said["type"] == guest.type.upper()
        assert (said["name"], said["uuid"], said["mac"]) == (guest.name, guest.uuid, guest.vifs[0].mac)
        assert {vdev: disk["access"] for vdev, disk in said["disks"].items()} == {
            disk.vdev: disk.access for disk in guest.disks
        }
        assert fetch(outside, PUBLIC, port, "/cmdline").strip() == guest.cmdline


def test_a_declared_port_reaches_its_guest_which_sees_the_caller(host: XenHost, outside: str) -> None:
    for port, (name, inside) in FORWARDS.items():
        said = who(outside, PUBLIC, port)
        assert (said["name"], said["port"], said["peer"]) == (name, inside, CALLER)


def test_everything_else_is_closed(host: XenHost, outside: str) -> None:
    own = [(lease.address.partition("/")[0], port) for lease in LEASES.values() for port in lease.ports]
    doors = [(PUBLIC, port) for port in UNDECLARED] + [("10.78.0.1", 22)] + own
    with ThreadPoolExecutor(len(doors)) as pool:
        heard = dict(zip(doors, pool.map(lambda door: knock(outside, *door), doors), strict=True))
    assert heard == dict.fromkeys(doors, "silent")
    # That the guests do listen there, seen from dom0: it is the rules that keep it shut
    for address, port in own:
        host.run(f": < /dev/tcp/{address}/{port}")
    assert knock(outside, PUBLIC, 8443) == "open"
    assert "packets 0 " not in host.run("nft list counter ip dgis refused").out


def test_a_destroyed_guest_is_gone_and_its_neighbour_stays(host: XenHost, outside: str) -> None:
    before = host.domains()["hosp-a-dgis"].id
    host.destroy("hosp-a-dgis")
    assert set(host.domains()) == {"hosp-a-store"}
    assert knock(outside, PUBLIC, 8443) != "open"
    assert who(outside, PUBLIC, 2222)["name"] == "hosp-a-store"
    assert "hosp-a-dgis" not in host.run("losetup -a").out
    host.create("hosp-a-dgis")
    host.wait("hosp-a-dgis")
    assert host.domains()["hosp-a-dgis"].id > before
    assert who(outside, PUBLIC, 8443)["name"] == "hosp-a-dgis"


def test_a_script_in_the_host_gives_status_and_words_and_ends_in_time(host: XenHost) -> None:
    assert host.run("echo out; echo err >&2; exit 7", check=False) == Call(7, "out\n", "err\n")
    assert host.run("sleep 100", timeout=1, check=False).status == 143
    lost = 'name = "lost"\ntype = "pvh"\nkernel = "/var/lib/dgis/images/vmlinuz"\nmemory = 64\nvif = ["bridge=nobr0"]\n'
    host.write("/tmp/lost.cfg", lost)
    with pytest.raises(AssertionError, match="Could not find bridge device nobr0"):
        host.run("xl create /tmp/lost.cfg")
    assert "lost" not in host.domains()


def test_a_boot_that_fails_is_tried_again_and_leaves_nothing(tree: XenTree, outside: str, tmp_path: Path) -> None:
    broken = XenTree(tmp_path / "tree", tree.packages)
    shutil.copytree(tree.root, broken.root, symlinks=True)
    broken.hypervisor.write_bytes(b"no hypervisor")
    link = Uplink(outside, "up1", "", device="pub0", address="192.0.2.10/24", gateway="192.0.2.1")
    site = Site(uplinks=(link,), bridges={}, configs={})
    with pytest.raises(BootFailed, match="the host is gone"), xen_host(broken, tmp_path / "run", site):
        pass
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["boot-1", "boot-2"]
    assert "up1" not in subprocess.run(["ip", "-n", outside, "link"], capture_output=True, text=True, check=True).stdout
