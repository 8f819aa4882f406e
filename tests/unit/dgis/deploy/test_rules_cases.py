"""What was wrong with rendered rules once: each as the smallest site that shows it, for both kinds of text."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from dgis.deploy.decide import Connection, judge
from tests.helpers.siteoracle import AWAY, CLOSED, Call, End
from tests.helpers.siterules import KINDS, PUBLIC, front, plans_of, site, tcp, walk
from tests.helpers.sitewalk import Arrival, Walk

STRANGER, PEER = IPv4Address("9.9.9.9"), IPv4Address("203.0.113.5")
both = pytest.mark.parametrize("kind", KINDS)


def from_beyond(rules: Walk, source: IPv4Address, call: Call) -> Arrival:
    return rules.from_beyond(rules.facts.hosts["host0"], source, call)


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
    document["hosts"][0]["networks"][1]["zone"] = "dmz"
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
    document = site(
        {"roles": ["front"]}, {"roles": ["storage"]}, {"roles": ["storage"]}, anybody, {"roles": ["ca"]}, peers=1
    )
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
    assert maps.lead(STRANGER, wiki) == (IPv4Address("10.78.0.13"), 8443) and maps.lead(STRANGER, store) is None


def test_a_neighbour_on_the_bridge_needs_a_door_for_the_public_address() -> None:
    forward = {"public": 8080, "guest": 80, "from": ["203.0.113.5"]}
    document = site({"forwards": [forward]}, {})
    here = plans_of(document)["host0"]
    neighbour = IPv4Address("10.78.0.11")
    assert judge(here, Connection(neighbour, IPv4Address(PUBLIC), "tcp", 8080)) == "refused"
    assert judge(here, Connection(neighbour, IPv4Address("10.78.0.10"), "tcp", 80)) == "allowed"


def test_the_address_that_only_a_firewall_outside_has_is_the_host_s_at_its_doors_alone() -> None:
    document = site({"forwards": [{"public": 8080, "guest": 80, "from": ["any"]}]})
    document["hosts"][0]["uplink"] = {"interface": "eth0", "address": "10.31.0.10/24", "public": PUBLIC}
    here = plans_of(document)["host0"]
    assert judge(here, Connection(IPv4Address("192.0.2.1"), IPv4Address(PUBLIC), "tcp", 22)) == "foreign"
    assert judge(here, Connection(IPv4Address("192.0.2.1"), IPv4Address("10.31.0.10"), "tcp", 22)) == "allowed"
    assert judge(here, Connection(STRANGER, IPv4Address(PUBLIC), "tcp", 8080)) == "allowed"


@both
def test_a_host_reaches_by_its_lan_address_what_runs_behind_it(kind: str) -> None:
    dimse = {"aet": "GATE", "networks": ["10.20.4.0/24"]}
    document = site({"host": "host1", "roles": ["dgis"], "dimse": dimse}, hosts=2, peers=1)
    lan = {"interface": "eth1", "address": "10.20.1.10/24", "gateway": "10.20.1.1", "networks": ["10.20.0.0/16"]}
    document["hosts"][0]["lan"] = lan
    rules = walk(document, kind)
    assert from_beyond(rules, IPv4Address("10.20.4.31"), tcp("10.20.1.10", 11112)).end == End("guest", "g0", 11112)
    assert rules.from_host(rules.facts.hosts["host0"], tcp("10.20.1.10", 11112)).end == End("guest", "g0", 11112)
