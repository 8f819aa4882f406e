"""What does not fit together in a site file: each rule with the line it blames and what it says to write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgis.deploy import check, flows, iptables, nat, plan, render, routes, sitefile
from dgis.deploy.errors import SiteFileError
from tests.helpers import sitefiles

EXAMPLES = sorted((Path(__file__).parents[4] / "vm-images/examples").glob("*.yml"))
DOMAIN = f"{'y' * 45}.example"
SECOND = """  - {site: other, domain: other.example, address: 203.0.113.6, guests: [{name: meta, roles: [catalog]}]}
"""
FILE = f"""\
site: here
organisation: Grid
domain: here.example
hypervisor: {{kind: kvm}}
admins: [192.0.2.0/28]
admin_keys: [{sitefiles.KEY}]
hosts:
  - name: front1
    uplink: {{interface: eth0, address: 10.31.0.10/24, gateway: 10.31.0.1, public: 198.51.100.10}}
    inner: {{interface: eth1, address: 10.99.0.1/24}}
    networks:
      - {{name: dmz, bridge: br0, cidr: 10.77.0.0/24, zone: dmz}}
      - {{name: open, bridge: br1, cidr: 10.77.1.0/24}}
      - {{name: proj, bridge: br2, cidr: 10.77.2.0/24, zone: dmz}}
  - name: back1
    behind: front1
    inner: {{interface: eth1, address: 10.99.0.2/24}}
    lan: {{interface: eth2, address: 10.20.1.10/24, gateway: 10.20.1.1, networks: [10.20.0.0/16]}}
    networks:
      - {{name: in, bridge: br0, cidr: 10.78.0.0/24, zone: inside}}
  - name: back2
    behind: front1
    inner: {{interface: eth1, address: 10.99.0.3/24}}
    lan: {{interface: eth2, address: 10.20.2.10/24, gateway: 10.20.2.1}}
    networks:
      - {{name: own, bridge: br0, cidr: 10.79.0.0/24, gateway: 10.79.0.254}}
      - {{name: tools, bridge: br3, cidr: 10.79.1.0/24}}
guests:
  - {{name: front, host: front1, network: dmz, address: 10.77.0.10, roles: [front]}}
  - name: store
    host: front1
    network: dmz
    address: 10.77.0.11
    roles: [storage]
    gridftp: {{data: 50000-50009}}
    sftp: 443
  - name: gate
    host: back1
    address: 10.78.0.11
    roles: [dgis]
    dimse: {{aet: GATE, networks: [10.20.0.0/16]}}
  - name: wiki
    host: front1
    network: proj
    address: 10.77.2.12
    forwards: [{{public: 8080, guest: 80, from: [any]}}]
    names: [{{name: wiki.here.example, port: 8443, from: [any]}}]
    egress: [{{to: any, ports: 443}}]
  - name: gate2
    host: back2
    network: own
    address: 10.79.0.11
    roles: [dgis]
    active: 50100-50109
    dimse: {{aet: GATE2, tls_port: 2762, networks: [10.20.2.0/24]}}
  - name: tool
    host: back2
    network: tools
    address: 10.79.1.12
    forwards: [{{public: 9000-9009, from: [203.0.113.0/24]}}]
peers:
  - site: there
    domain: there.example
    address: 203.0.113.5
    guests: [{{name: meta, roles: [catalog]}}, {{name: gct, roles: [storage], stock: true}}]
"""


def said(text: str) -> list[str]:
    with pytest.raises(SiteFileError) as error:
        check.resolved(*sitefile.parse(text, "f.yml"))
    return [str(finding) for finding in error.value.findings]


def changed(old: str, new: str) -> str:
    assert FILE.count(old) == 1, FILE.count(old)
    return FILE.replace(old, new)


def test_the_file_that_is_spoiled_below_is_well() -> None:
    assert len(check.resolved(*sitefile.parse(FILE, "f.yml")).guests) == 6


MISTAKES = [
    ("- name: back1", "- name: front1", "hosts.front1: front1 stands here twice: give each its own name"),
    ("name: wiki\n", "name: store\n", "guests.store: store stands here twice"),
    ("site: there", "site: here", "peers.here.site: a site is no peer of itself: leave it out"),
    ("name: gct,", "name: meta,", "peers.there.guests.meta: meta stands here twice"),
    ("{name: open, bridge: br1", "{name: dmz, bridge: br1", "hosts.front1.networks.dmz.name: dmz stands here twice"),
    ("{name: open, bridge: br1", "{name: open, bridge: br0", "hosts.front1.networks.open.bridge: br0 stands here"),
    (
        "domain: here.example",
        f"domain: {DOMAIN}",
        f"guests.front.name: a service name ROLE.front.{DOMAIN} has 65 characters; certificates tak",
        "{name: front",
    ),
    (
        "behind: front1\n    inner: {interface: eth1, address: 10.99.0.2",
        "behind: back2\n    inner: {interface: eth1, address: 10.99.0.2",
        "hosts.back1.behind: write the name of a host with an uplink: front1",
    ),
    ("host: back1", "host: back3", "guests.gate.host: no such host; write one of front1, back1, back2"),
    ("network: dmz, address: 10.77.0.10", "address: 10.77.0.10", "guests.front: name its network: one of dmz, open"),
    (
        "network: dmz, address: 10.77.0.10",
        "network: in, address: 10.77.0.10",
        "guests.front.network: front1 has no such network; write one of dmz, open",
    ),
    (
        "    inner: {interface: eth1, address: 10.99.0.1/24}\n",
        "",
        "hosts.back1.inner: front1 has no inner",
        "10.99.0.2",
    ),
    ("10.99.0.2/24", "10.98.0.2/24", "hosts.back1.inner.address: write an address of 10.99.0.0/24, like front1's"),
    ("10.99.0.2/24", "10.99.0.1/24", "hosts.back1.inner.address: is the inner of front1 already: write another"),
    ("10.99.0.3/24", "10.99.0.2/24", "hosts.back2.inner.address: is the inner of back1 already: write another address"),
    ("10.20.2.10/24", "10.20.1.10/24", "hosts.back2.lan.address: is the lan of back1 already: write another address"),
    ("eth2, address: 10.20.2.10", "eth1, address: 10.20.2.10", "hosts.back2.lan.interface: eth1 stands here twice"),
    ("10.20.2.10/24", "10.99.0.10/24", "hosts.back2.lan.address: lies in the network of its inner (10.99.0.0/24)"),
    ("bridge: br1", "bridge: eth1", "hosts.front1.networks.open.bridge: is an interface of this host"),
    (
        "gateway: 10.31.0.1,",
        "gateway: 10.31.1.1,",
        "hosts.front1.uplink.gateway: write another address of 10.31.0.0/24",
    ),
    ("gateway: 10.31.0.1,", "gateway: 10.31.0.10,", "hosts.front1.uplink.gateway: write another address of 10.31.0.0"),
    ("gateway: 10.20.2.1}", "gateway: 10.20.3.1}", "hosts.back2.lan.gateway: write another address of 10.20.2.0/24"),
    (
        "gateway: 10.20.1.1, ",
        "",
        "hosts.back1.lan.networks: nobody leads to 10.20.0.0/16: write the gateway of the LAN",
    ),
    (
        "networks: [10.20.0.0/16]}\n    net",
        "networks: [any]}\n    net",
        "hosts.back1.lan.networks.1: the LAN is not the way to everywhere",
    ),
    ("cidr: 10.77.1.0/24", "cidr: 10.77.0.128/25", "hosts.front1.networks.open.cidr: overlaps 10.77.0.0/24 of the net"),
    ("cidr: 10.77.1.0/24", "cidr: 10.31.0.0/24", "hosts.front1.networks.open.cidr: overlaps 10.31.0.0/24 of an interf"),
    ("cidr: 10.77.1.0/24", "cidr: 10.20.77.0/24", "hosts.front1.networks.open.cidr: overlaps 10.20.0.0/16 of the LAN"),
    ("cidr: 10.77.1.0/24", "cidr: 203.0.113.0/24", "hosts.front1.networks.open.cidr: overlaps 203.0.113.5/32 of the "),
    ("cidr: 10.77.1.0/24", "cidr: 192.0.2.0/24", "hosts.front1.networks.open.cidr: overlaps 192.0.2.0/28 of admins: t"),
    ("cidr: 10.77.1.0/24", "cidr: 10.77.1.0/30", "hosts.front1.networks.open.cidr: write a network with a prefix of 8"),
    (
        "gateway: 10.79.0.254",
        "gateway: 10.78.0.1",
        "hosts.back2.networks.own.gateway: write an address of 10.79.0.0/24",
    ),
    ("gateway: 10.79.0.254", "gateway: 10.79.0.255", "hosts.back2.networks.own.gateway: write an address of 10.79.0.0"),
    ("address: 203.0.113.5", "address: 198.51.100.10", "peers.there.address: is front1's own public address"),
    ("admins: [192.0.2.0/28]", "admins: [any]", "admins.1: SSH to the hosts from anybody"),
    (
        "inner: {interface: eth1, address: 10.99.0.1/24}\n",
        "inner: {interface: eth1, address: 10.99.0.1/24}\n    ssh: 443\n",
        "hosts.front1.ssh: is the port of HTTPS and SFTP, too",
        "ssh: 443",
    ),
    (
        "address: 10.77.2.12",
        "address: 10.78.0.12",
        "guests.wiki.address: write an address of 10.77.2.0/24, the network",
    ),
    (
        "address: 10.77.2.12",
        "address: 10.77.2.1",
        "guests.wiki.address: is the network's own; write another address of",
    ),
    ("address: 10.77.2.12", "address: 10.77.2.255", "guests.wiki.address: is the network's own; write another address"),
    (
        "address: 10.77.0.11",
        "address: 10.77.0.10",
        "guests.store.address: is front's; write another address of 10.77.0.0",
    ),
    (
        "[catalog]}",
        "[dgis]}",
        "guests: no catalog anywhere: give a guest the role catalog, or name a peer's",
        "guests:\n",
    ),
    (
        "domain: here.",
        "catalog: elsewhere\ndomain: here.",
        "catalog: no such site with the role catalog; write one of: there",
    ),
    (
        "stock: true}]\n",
        f"stock: true}}]\n{SECOND}",
        "catalog: several peers have one: name the VO's, catalog: there or o",
        "site: here",
    ),
    ("aet: GATE2", "aet: GATE", "guests.gate2.dimse.aet: is the AE title of gate, too"),
    ("tls_port: 2762", "tls_port: 11112", "guests.gate2.dimse.tls_port: plain and TLS need ports of their own"),
    (
        "networks: [10.20.2.0/24]",
        "networks: [any]",
        "guests.gate2.dimse.networks.1: DIMSE is for the institution's own",
    ),
    ("aet: GATE,", "aet: GATE, port: 22,", "guests.gate.dimse.port: port 22 is taken by ssh of the host back1 (22)"),
    (
        "    roles: [dgis]\n    dimse",
        "    roles: [dgis, storage]\n    dimse",
        "guests.gate.roles: the role storage faces other",
    ),
    (
        "    roles: [dgis]\n    dimse",
        "    roles: [dgis]\n    active: 60000\n    dimse",
        "guests.gate.active: this guest is in a network inside",
        "active: 60000",
    ),
    (
        "active: 50100-50109",
        "active: 50000-50109",
        "guests.gate2.active: port 50000-50109 is taken by gridftp data of st",
    ),
    (
        "data: 50000-50009",
        "data: 500-509",
        "guests.store.gridftp.data: services listen without privileges: take ports fr",
    ),
    ("data: 50000-50009", "data: 9440-9449", "guests.store.gridftp.data: port 9443 is this guest's HTTPS: take others"),
    ("data: 50000-50009", "port: 2222, data: 50000-50009", "guests.store.gridftp.port: port 2222 is this guest's SFTP"),
    (
        "active: 50100-50109",
        "active: 11100-11200",
        "guests.gate2.active: port 11112 is this guest's DIMSE: take others",
    ),
    (
        "active: 50100-50109",
        "active: 2700-2800",
        "guests.gate2.active: port 2762 is this guest's DICOM TLS: take others",
    ),
    (
        "to: any, ports: 443",
        "to: 10.20.4.0/24",
        "guests.wiki.egress.1.to: is the institution's own, and guests in the DMZ",
    ),
    (
        "public: 8080, guest: 80",
        "public: 8080-8081, guest: 80",
        "guests.wiki.forwards.1.guest: a range keeps its numbers",
    ),
    (
        "public: 8080, guest: 80",
        "public: 8080, guest: 80-81",
        "guests.wiki.forwards.1.guest: one public port leads to on",
    ),
    ("public: 8080, guest: 80", "public: 10000-40000", "guests.wiki.forwards.1.public: that is a third of all ports"),
    (
        "public: 8080, guest: 80",
        "public: 22",
        "guests.wiki.forwards.1.public: port 22 is taken by ssh of the host front1",
    ),
    (
        "public: 8080, guest: 80",
        "public: 443, guest: 80",
        "guests.wiki.forwards.1.public: port 443 is taken by the front",
    ),
    ("from: [203.0.113.0/24]", "from: [10.20.2.0/24]", "guests.tool.forwards.1.from.1: these are in the LAN of back2"),
    (
        "roles: [front]}",
        "roles: [front], names: [{name: x.example, port: 443, from: [any]}]}",
        "guests.front.names.x.example.port: is the front itself",
    ),
    (
        "name: wiki.here.example",
        "name: storage.store.here.example",
        "guests.wiki.names.storage.store.here.example.name: is a name of store already",
    ),
]


PLACES = [
    ("- name: wiki\n", "- name: back2\n", "guests.back2.name: back2 is a host of this site: give the guest another"),
    ("- name: wiki\n", "- name: trust\n", "guests.trust.name: trust is a directory of certificates: choose another"),
    ("- name: back1\n", "- name: inventory\n", "hosts.inventory.name: inventory is a directory of the rendered tree"),
    ("bridge: br1", "bridge: lo", "hosts.front1.networks.open.bridge: write an interface name of at most 15"),
    ("bridge: br1", "bridge: all", "hosts.front1.networks.open.bridge: write an interface name of at most 15"),
    ("bridge: br1", "bridge: default", "hosts.front1.networks.open.bridge: write an interface name of at most 15"),
    ("interface: eth0", "interface: lo", "hosts.front1.uplink.interface: write an interface name of at most 15"),
    ("10.99.0.3/24", "10.99.0.0/24", "hosts.back2.inner.address: is the network address of 10.99.0.0/24: write the"),
    ("10.20.2.10/24", "10.20.2.255/24", "hosts.back2.lan.address: is the broadcast address of 10.20.2.0/24"),
    ("10.31.0.10/24", "10.31.0.0/24", "hosts.front1.uplink.address: is the network address of 10.31.0.0/24"),
    ("10.31.0.10/24", "10.31.0.10/7", "hosts.front1.uplink.address: no network is that wide: write the prefix length"),
    ("10.20.2.10/24", "127.0.0.10/24", "hosts.back2.lan.address: 127.0.0.10 is nobody's (127.0.0.0/8 is the loopback"),
    ("public: 198.51.100.10", "public: 127.0.0.1", "hosts.front1.uplink.public: 127.0.0.1 is nobody's (127.0.0.0/8"),
    ("public: 198.51.100.10", "public: 224.0.0.1", "hosts.front1.uplink.public: 224.0.0.1 is nobody's (224.0.0.0/4"),
    ("public: 198.51.100.10", "public: 0.0.0.0", "hosts.front1.uplink.public: 0.0.0.0 is nobody's (0.0.0.0/8"),
    ("public: 198.51.100.10", "public: 255.255.255.255", "hosts.front1.uplink.public: 255.255.255.255 is nobody's"),
    ("public: 198.51.100.10", "public: 10.79.0.7", "hosts.front1.uplink.public: lies in the network own of back2 (10"),
    ("public: 198.51.100.10", "public: 10.99.0.7", "hosts.front1.uplink.public: lies in the inner of front1 (10.99.0"),
    ("address: 203.0.113.5", "address: 127.0.0.1", "peers.there.address: 127.0.0.1 is nobody's"),
    (
        "10.99.0.1/24}",
        "10.99.0.1/24}\n    images: /var/../../etc",
        "hosts.front1.images: write the directory itself, without",
    ),
    (
        "domain: there.example",
        "domain: there.example\n    sources: [any]",
        "peers.there.sources.1: a site's connections",
    ),
    (
        "domain: there.example",
        "domain: there.example\n    sources: [128.0.0.0/1]",
        "peers.there.sources.1: a site's con",
    ),
    ("[192.0.2.0/28]", "[0.0.0.0/1, 128.0.0.0/1]", "admins.2: SSH to the hosts from anybody: name the networks"),
    ("networks: [10.20.2.0/24]}", "networks: [128.0.0.0/1]}", "guests.gate2.dimse.networks.1: DIMSE is for the instit"),
    (
        "networks: [10.20.0.0/16]}\n    net",
        "networks: [128.0.0.0/1]}\n    net",
        "hosts.back1.lan.networks.1: the LAN is",
    ),
    *(
        ("cidr: 10.77.1.0/24", f"cidr: {net}", f"hosts.front1.networks.open.cidr: {owner} is {what}: take a private")
        for net, owner, what in (
            ("224.0.0.0/24", "224.0.0.0/4", "multicast"),
            ("127.5.0.0/16", "127.0.0.0/8", "the loopback"),
            ("169.254.7.0/24", "169.254.0.0/16", "link-local"),
            ("250.0.0.0/8", "240.0.0.0/4", "reserved, and broadcast"),
            ("0.0.0.0/8", "0.0.0.0/8", "this network itself"),
        )
    ),
]


@pytest.mark.parametrize(("old", "new", "words"), PLACES)
def test_names_and_addresses_that_nobody_can_have(old: str, new: str, words: str) -> None:
    text = FILE.replace(old, new, 1).replace("behind: back1", "behind: inventory")
    text = text.replace("host: back1", "host: inventory") if "inventory" in new else text
    found = said(text)
    assert [each for each in found if words in each], found


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "network: proj\n    address: 10.77.2.12",
            "network: dmz\n    address: 10.77.0.12",
            "guests.wiki.network: has no roles and shares the network dmz with front, which it would reach past every",
        ),
        (
            "network: tools\n    address: 10.79.1.12",
            "network: own\n    address: 10.79.0.12",
            "guests.tool.network: has no roles and shares the network own with gate2, which it would reach past every",
        ),
    ],
)
def test_what_is_not_ours_does_not_sit_beside_services(old: str, new: str, words: str) -> None:
    found = said(changed(old, new))
    assert len(found) == 1 and words in found[0], found
    assert found[0].endswith("give other projects a network of their own")


@pytest.mark.parametrize(("old", "new"), [("10.99.0.2/24", "10.99.0.254/24"), ("10.77.1.0/24", "203.0.114.0/24")])
def test_addresses_at_the_edge_that_somebody_can_have(old: str, new: str) -> None:
    assert check.resolved(*sitefile.parse(changed(old, new), "f.yml"))


def test_an_uplink_of_two_addresses_has_neither_network_nor_broadcast() -> None:
    text = changed("10.31.0.10/24, gateway: 10.31.0.1", "10.31.0.0/31, gateway: 10.31.0.1")
    assert check.resolved(*sitefile.parse(text, "f.yml"))


@pytest.mark.parametrize("path", EXAMPLES)
def test_what_stands_beside_the_hosts_in_a_tree_no_host_can_be_called(path: Path) -> None:
    site = check.load(path)
    beside = {name.split("/")[0] for name in render.render(site)} - {host.name for host in site.hosts}
    for name in beside:
        text = FILE.replace("front1", name)
        assert said(text), name


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_does_not_fit_is_told_with_its_line(mistake: tuple[str, ...]) -> None:
    """Each: what is changed, into what, what is said of it, and where that stands if not where the change is."""
    old, new, words, *at = mistake
    text = changed(old, new)
    place = text.index(at[0]) if at else FILE.index(old)
    found = said(text)
    assert [each for each in found if words in each], found
    lines = {int(each.split(":")[1]) for each in found if f": {words}" in each}
    first = text.count("\n", 0, place) + 1
    assert lines & set(range(first, first + new.rstrip("\n").count("\n") + 1)), (found, first)


def test_doors_at_the_lan_of_a_gateway_are_told_apart_wherever_their_guests_are() -> None:
    """The doors of guests behind a gateway without a LAN of their own host's are at the gateway's LAN, too."""
    lan = "    lan: {interface: eth9, address: 10.20.7.10/24, gateway: 10.20.7.1}\n"
    text = changed("    networks:\n      - {name: dmz", f"{lan}    networks:\n      - {{name: dmz").replace(
        "    lan: {interface: eth2, address: 10.20.2.10/24, gateway: 10.20.2.1}\n", ""
    )
    text = text.replace("back1\n    address: 10.78.0.11", "front1\n    network: open\n    address: 10.77.1.11")
    text = text.replace("networks: [10.20.0.0/16]}\n  - name: wiki", "networks: [10.20.7.0/24]}\n  - name: wiki")
    text = text.replace("networks: [10.20.2.0/24]", "networks: [10.20.7.0/24]")
    ours = [each for each in said(text) if "is taken by dimse of gate (" in each]
    assert len(ours) == 1 and "guests.gate2.dimse.port" in ours[0], said(text)


def test_a_gateway_has_one_front_one_sftp_on_its_port_and_one_catalog() -> None:
    more = """\
  - {name: front2, host: front1, network: open, address: 10.77.1.10, roles: [front]}
  - {name: store2, host: front1, network: open, address: 10.77.1.11, roles: [storage], sftp: 443}
  - {name: meta1, host: front1, network: open, address: 10.77.1.12, roles: [catalog]}
  - {name: meta2, host: front1, network: open, address: 10.77.1.13, roles: [catalog]}
peers:
"""
    found = said(changed("peers:\n", more))
    assert [each.split(": ", 1)[1] for each in found] == [
        "guests.front2.roles: front is the front of front1 already: leave front out here",
        "guests.store2.sftp: SFTP on the port of HTTPS leads to store already: give this guest its own, like 2222",
        "guests.meta2.roles: a site has one catalog: leave the role out here",
    ]


def test_a_guest_in_the_dmz_has_no_aes_to_connect_to() -> None:
    gate = "dimse: {aet: GATE, networks: [10.20.0.0/16], aes: [{title: V, host: 10.20.4.31, port: 104}]}"
    text = changed("dimse: {aet: GATE, networks: [10.20.0.0/16]}", gate)
    assert check.resolved(*sitefile.parse(text, "f.yml"))
    found = said(text.replace("zone: inside", "zone: dmz"))
    assert len(found) == 1 and "guests.gate.dimse.aes.V.host: C-MOVE connects to this AE, and guests in" in found[0]


@settings(max_examples=40)
@given(sitefiles.documents(), st.data())
def test_whatever_passes_can_be_planned_and_rendered(document: dict[str, Any], data: st.DataObject) -> None:
    leaves = [(holder, key) for holder, key in sitefiles.places(document) if isinstance(holder[key], str | int)]
    for _ in range(data.draw(st.integers(1, 4))):
        one, other = data.draw(st.sampled_from(leaves)), data.draw(st.sampled_from(leaves))
        one[0][one[1]] = other[0][other[1]]  # a value that is one, but at another place
    try:
        site = check.resolved(*sitefile.parse(json.dumps(document), "f.yml"))
    except SiteFileError:
        return
    for host in site.hosts:
        made = plan.plan(site, flows.derive(site), host)
        assert nat.ruleset(made) and iptables.ruleset(made)
        assert made.front is None or routes.files(made.front)
