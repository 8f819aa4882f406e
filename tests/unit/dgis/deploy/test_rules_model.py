"""Rule sets as they are rendered, led through models of nftables and iptables, against what the site file says."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any

import pytest

from dgis.deploy import flows, iptables, nat, plan, routes, topology
from dgis.deploy.model import SiteFile
from dgis.deploy.plan import HostPlan
from tests.helpers import sitefiles
from tests.helpers.frontmodel import FrontMaps
from tests.helpers.iptmodel import IptRules
from tests.helpers.nftmodel import NftRules
from tests.helpers.packets import Firewall
from tests.helpers.sitefacts import Facts
from tests.helpers.siteoracle import AWAY, CLOSED, Call, End
from tests.helpers.sitewalk import Arrival, Walk

PUBLIC, STRANGER, PEER = "198.51.100.10", IPv4Address("9.9.9.9"), IPv4Address("203.0.113.5")
both = pytest.mark.parametrize("kind", ("nft", "iptables"))


def walk(document: dict[str, Any], kind: str) -> Walk:
    """The site with its rule sets of one kind in force."""
    assert sitefiles.fits(document)
    site = topology.resolve(SiteFile.model_validate(document))
    known = flows.derive(site)
    return Walk(Facts.read(document), {host.name: read(plan.plan(site, known, host), kind) for host in site.hosts})


def read(made: HostPlan, kind: str) -> Firewall:
    """A host's plan as one kind of text, read by that kind's model."""
    return NftRules.parse(nat.ruleset(made)) if kind == "nft" else IptRules.parse(iptables.ruleset(made))


def front(document: dict[str, Any], gateway: str = "host0") -> FrontMaps:
    """The maps of a gateway's front, as they are written and read."""
    site = topology.resolve(SiteFile.model_validate(document))
    made = plan.plan(site, flows.derive(site), site.host(gateway)).front
    assert made is not None
    texts = {name: routes.text(entries) for name, entries in routes.maps(made).items()}
    return FrontMaps.parse(texts[routes.NETWORKS], texts[routes.ROUTES])


def site(*guests: dict[str, Any], hosts: int = 1, peers: int = 0, **changes: Any) -> dict[str, Any]:
    """A small valid document: host0 has the public address, the others are behind it, each with one network."""
    tables: list[dict[str, Any]] = []
    for number in range(hosts):
        network = {"name": "n", "bridge": "br0", "cidr": f"10.77.{number}.0/24"}
        tables.append({"name": f"host{number}", "networks": [network]})
        tables[-1]["inner"] = {"interface": "eth2", "address": f"10.99.0.{number + 1}/24"}
        tables[-1] |= {"behind": "host0"} if number else {"uplink": {"interface": "eth0", "address": f"{PUBLIC}/24"}}
    far = [{"name": "gate", "roles": ["dgis"]}, {"name": "store", "roles": ["storage"]}]
    meta = {"name": "meta", "roles": ["catalog"]}
    document = {
        "site": "here",
        "organisation": "Grid",
        "domain": "here.example",
        "hypervisor": {"kind": "kvm"},
        "admins": ["192.0.2.0/28"],
        "admin_keys": [sitefiles.KEY],
        "hosts": tables,
        "guests": [
            {"name": f"g{number}", "host": "host0", "address": _address(number, guest)} | guest
            for number, guest in enumerate(guests)
        ],
        "peers": [
            {"site": f"peer{n}", "domain": f"peer{n}.example", "address": f"203.0.113.{n + 5}", "guests": far}
            for n in range(peers)
        ],
    } | changes
    if peers:
        document["peers"][0]["guests"] = [*far, meta]
    return document


def _address(number: int, guest: dict[str, Any]) -> str:
    return f"10.77.{str(guest.get('host', 'host0'))[-1]}.{number + 10}"


def tcp(target: str, port: int) -> Call:
    return Call(IPv4Address(target), "tcp", port)


def from_beyond(rules: Walk, source: IPv4Address, call: Call) -> Arrival:
    return rules.from_beyond(rules.facts.hosts["host0"], source, call)


# What was wrong once


@both
def test_a_front_on_a_host_behind_lets_its_clients_in(kind: str) -> None:
    rules = walk(site({"host": "host1", "roles": ["front"]}, {"roles": ["storage"]}, hosts=2, peers=1), kind)
    assert from_beyond(rules, PEER, tcp(PUBLIC, 443)).end == End("guest", "g0", 443)
    assert from_beyond(rules, STRANGER, tcp(PUBLIC, 443)).end == CLOSED


@both
def test_a_host_reaches_by_its_own_public_address_what_runs_behind_it(kind: str) -> None:
    guest = {"host": "host1", "forwards": [{"public": 8080, "guest": 80, "from": ["203.0.113.5"]}]}
    rules = walk(site(guest, hosts=2), kind)
    assert rules.from_host(rules.facts.hosts["host0"], tcp(PUBLIC, 8080)).end == End("guest", "g0", 80)
    assert rules.from_host(rules.facts.hosts["host1"], tcp(PUBLIC, 8080)).end == CLOSED


@both
def test_a_host_behind_that_uses_a_door_to_its_own_guest_is_answered(kind: str) -> None:
    guest = {"host": "host1", "forwards": [{"public": 8080, "guest": 80, "from": ["any"]}]}
    rules = walk(site(guest, hosts=2), kind)
    call = tcp(PUBLIC, 8080)
    arrival = rules.from_host(rules.facts.hosts["host1"], call)
    assert arrival.end == End("guest", "g0", 80) and rules.answered(arrival, call)
    assert arrival.source == IPv4Address("10.99.0.1"), "by the gateway, which translates the answer"


@both
def test_a_guest_in_the_dmz_that_may_go_anywhere_may_not_reach_in(kind: str) -> None:
    document = site({"egress": [{"to": "any", "ports": 443}]}, resolvers=["10.20.0.53"])
    document["hosts"][0]["networks"][0]["zone"] = "dmz"
    lan = {"interface": "eth1", "address": "10.20.1.10/24", "gateway": "10.20.1.1", "networks": ["10.20.0.0/16"]}
    document["hosts"][0]["lan"] = lan
    rules = walk(document, kind)
    guest = rules.facts.guests["g0"]
    for target in ("9.9.9.9", "10.19.255.255", "10.21.0.0"):
        assert rules.from_guest(guest, tcp(target, 443)).end == AWAY
    for target in ("10.20.0.0", "10.20.1.77", "10.20.4.31", "10.20.255.255"):
        assert rules.from_guest(guest, tcp(target, 443)).end == CLOSED
    assert rules.from_guest(guest, tcp("10.20.0.53", 53)).end == AWAY, "what is named for every guest"


@both
@pytest.mark.parametrize("public", ("198.51.100.11", "198.51.100.81"))
def test_guests_of_another_gateway_use_a_door_by_the_address_that_hides_them(kind: str, public: str) -> None:
    store = {"host": "host1", "roles": ["storage"], "gridftp": {"data": "50000-50009"}}
    gate = {"roles": ["dgis"], "dimse": {"aet": "A", "networks": ["192.0.2.0/24"]}}
    document = site(gate, store, {}, hosts=2, peers=1)
    del document["hosts"][1]["behind"], document["hosts"][1]["inner"]
    document["hosts"][1]["uplink"] = {"interface": "eth0", "address": "198.51.100.11/24", "public": public}
    rules = walk(document, kind)
    for port in (443, 2811, 50009):
        end = rules.from_guest(rules.facts.guests["g0"], tcp(public, port)).end
        assert (end.kind, end.port) == ("host" if port == 443 else "guest", port)
        assert rules.from_guest(rules.facts.guests["g2"], tcp(public, port)).end == CLOSED
        assert rules.from_beyond(rules.facts.hosts["host1"], STRANGER, tcp(public, port)).end == CLOSED


@both
def test_a_guest_that_anybody_s_name_lets_in_gets_no_name_of_others_from_a_front_in_a_guest(kind: str) -> None:
    anybody = {"names": [{"name": "wiki.here.example", "port": 8443, "from": ["any"]}]}
    document = site({"roles": ["front"]}, {"roles": ["storage"]}, {"roles": ["storage"]}, anybody, {}, peers=1)
    rules, maps = walk(document, kind), front(document)
    store, wiki = "storage.g1.here.example", "wiki.here.example"
    call = tcp(PUBLIC, 443)
    for name in ("g3", "g4"):
        arrival = rules.from_guest(rules.facts.guests[name], call)
        assert arrival.end == CLOSED or maps.lead(arrival.source, store) is None, "hidden behind the bridge's address"
    arrival = rules.from_guest(rules.facts.guests["g2"], call)
    assert arrival.end == End("guest", "g0", 443) and rules.answered(arrival, call)
    assert maps.lead(arrival.source, store) and maps.lead(arrival.source, wiki)
    assert from_beyond(rules, STRANGER, call).end == End("guest", "g0", 443)
    assert maps.lead(STRANGER, wiki) == (IPv4Address("10.77.0.13"), 8443) and maps.lead(STRANGER, store) is None
