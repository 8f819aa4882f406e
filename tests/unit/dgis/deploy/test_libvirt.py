"""libvirt's XML: valid by its schema, taken by libvirt itself, and nothing of a site file breaks out of it."""

from __future__ import annotations

import functools
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from dgis.deploy import libvirt, sitefile, topology
from dgis.deploy.errors import DeployError
from dgis.deploy.topology import Guest, Site

EXAMPLES = sorted((Path(__file__).parents[4] / "vm-images/examples").glob("*.yml"))
TITLE = st.text(st.characters(exclude_characters="\r\n"), min_size=1, max_size=60)


@functools.cache
def load(path: Path) -> Site:
    return topology.resolve(sitefile.read(path)[0])


def site(name: str) -> Site:
    return load(next(path for path in EXAMPLES if path.stem == name))


def guests(kind: str) -> list[tuple[Site, Guest]]:
    sites = map(load, EXAMPLES)
    return [(site, guest) for site in sites for guest in site.guests if site.host(guest.host).hypervisor == kind]


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, words)], capture_output=True, text=True, check=False, timeout=60)


@functools.cache
def missing(*words: str) -> str:
    """Why a tool cannot be used here; "" when it can."""
    try:
        done = run(*words)
    except OSError as error:
        return f"{words[0]} cannot be run: {error.strerror}"
    return "" if done.returncode == 0 else f"{words[0]} does not work: {done.stderr.strip()[:200]}"


@pytest.fixture
def validator() -> None:
    if why := missing("virt-xml-validate", "--version"):
        pytest.skip(why)


@pytest.fixture
def virsh() -> None:
    if why := missing("virsh", "-c", "test:///default", "list", "--all"):
        pytest.skip(why)


def names(root: etree._Element, path: str) -> list[str]:
    return [str(each) for each in root.xpath(path)]


@pytest.mark.parametrize(("site", "guest"), guests("kvm"), ids=lambda each: each.name)
def test_the_schema_and_libvirt_take_every_domain(
    site: Site, guest: Guest, tmp_path: Path, validator: None, virsh: None
) -> None:
    file = tmp_path / "guest.xml"
    file.write_bytes(libvirt.domain(site, guest))
    valid = run("virt-xml-validate", file, "domain")
    assert valid.returncode == 0, valid.stdout + valid.stderr
    taken = run("virsh", "-c", "test:///default", "define", "--validate", file)
    assert taken.returncode == 0, taken.stderr


def test_a_wrong_domain_is_refused_by_both(tmp_path: Path, validator: None, virsh: None) -> None:
    own = site("pilot-uvn")
    file = tmp_path / "guest.xml"
    file.write_bytes(libvirt.domain(own, own.guest("node")).replace(b"<vcpu>", b"<vcqu>").replace(b"vcpu>", b"vcqu>"))
    assert run("virt-xml-validate", file, "domain").returncode != 0
    assert run("virsh", "-c", "test:///default", "define", "--validate", file).returncode != 0


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_schema_and_libvirt_take_every_network(path: Path, tmp_path: Path, validator: None, virsh: None) -> None:
    own = load(path)
    for host in own.hosts:
        for network in host.networks:
            file = tmp_path / "network.xml"
            file.write_bytes(libvirt.network(own, host, network))
            valid = run("virt-xml-validate", file, "network")
            assert valid.returncode == 0, valid.stdout + valid.stderr
            taken = run("virsh", "-c", "test:///default", "net-define", "--validate", file)
            assert taken.returncode == 0, taken.stderr
            root = etree.fromstring(file.read_bytes())
            assert names(root, "name/text()") == [f"dgis-{network.name}"]
            # No address here, and a bridge that exists: libvirt then adds no rules to the host's firewall
            assert names(root, "forward/@mode") == ["bridge"] and names(root, "bridge/@name") == [network.bridge]
            assert not root.findall("ip")


def test_a_guest_has_what_the_site_file_gives_it() -> None:
    own = site("hospital")
    gate = own.guest("gate")
    root = etree.fromstring(libvirt.domain(own, gate))
    assert names(root, "name/text()") == ["gate"] and names(root, "uuid/text()") == [gate.uuid]
    assert names(root, "memory/text()") == ["4096"] and names(root, "memory/@unit") == ["MiB"]
    assert names(root, "vcpu/text()") == ["2"]
    assert names(root, "os/kernel/text()") == ["/var/lib/dgis/images/vmlinuz"]
    assert names(root, "os/initrd/text()") == ["/var/lib/dgis/images/initrd.gz"]
    words = names(root, "os/cmdline/text()")[0].split()
    assert {"root=LABEL=dgisroot", "ro", "console=ttyS0", "net.ifnames=0"} <= set(words)
    images = "/var/lib/dgis/images/gate"
    assert names(root, "devices/disk/source/@file") == [
        f"{images}.root.raw",
        f"{images}.data.raw",
        f"{images}.seed.iso",
    ]
    assert names(root, "devices/disk/target/@dev") == ["vda", "vdb", "vdc"]
    assert names(root, "devices/disk[readonly]/source/@file") == [f"{images}.seed.iso"]
    assert names(root, "devices/interface/mac/@address") == [gate.mac]
    assert names(root, "devices/interface/source/@bridge") == ["dgisbr0"]


def test_without_a_data_disk_the_seed_is_the_second() -> None:
    own = site("hospital")
    root = etree.fromstring(libvirt.domain(own, own.guest("front")))
    assert names(root, "devices/disk/target/@dev") == ["vda", "vdb"]
    assert names(root, "devices/disk[readonly]/target/@dev") == ["vdb"]


def test_memory_is_whole_mebibytes_and_never_none() -> None:
    own = site("hospital")
    gate = own.guest("gate")
    for size, mebibytes in ((1_500_000_000, 1430), (2**20 - 1, 1)):
        root = etree.fromstring(libvirt.domain(own, replace(gate, memory=size)))
        assert names(root, "memory/text()") == [str(mebibytes)]


def test_the_same_file_gives_the_same_xml_and_every_network_an_identity_of_its_own() -> None:
    one, other = site("pilot-lf1"), site("pilot-lf1")
    assert [libvirt.network(one, host, host.networks[0]) for host in one.hosts] == [
        libvirt.network(other, host, host.networks[0]) for host in other.hosts
    ]
    uuids = {
        names(etree.fromstring(libvirt.network(own, host, net)), "uuid/text()")[0]
        for own in map(load, EXAMPLES)
        for host in own.hosts
        for net in host.networks
    }
    assert len(uuids) == sum(len(host.networks) for own in map(load, EXAMPLES) for host in own.hosts)


def test_a_guest_of_a_xen_host_has_no_domain_here() -> None:
    own = site("pilot-lf1")
    with pytest.raises(DeployError, match="xen"):
        libvirt.domain(own, own.guest("node"))


@given(title=TITLE)
def test_no_title_breaks_out_of_the_xml(title: str) -> None:
    own = replace(site("pilot-uvn"), title=title)
    root = etree.fromstring(libvirt.domain(own, own.guest("node")))
    plain = etree.fromstring(libvirt.domain(site("pilot-uvn"), own.guest("node")))
    assert [each.tag for each in root.iter()] == [each.tag for each in plain.iter()]
    (found,) = names(root, "title/text()")
    expected = f"node of {title}"
    assert len(found) == len(expected)
    assert all(one == other or one == "\ufffd" for one, other in zip(found, expected, strict=True))


def test_libvirt_takes_an_awkward_title(tmp_path: Path, virsh: None) -> None:
    own = replace(site("pilot-uvn"), title="""<a b='c'>&amp; "d" ]]> \u2028 \x01 é""")
    file = tmp_path / "guest.xml"
    file.write_bytes(libvirt.domain(own, own.guest("node")))
    taken = run("virsh", "-c", "test:///default", "define", "--validate", file)
    assert taken.returncode == 0, taken.stderr
