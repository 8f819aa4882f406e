"""Rule sets as they are rendered, led through models of nftables and iptables, against what the site file says."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from dgis.deploy import flows, iptables, nat, plan, routes, topology
from dgis.deploy.decide import Connection, judge
from dgis.deploy.model import SiteFile
from dgis.deploy.plan import HostPlan
from tests.helpers import sitefiles
from tests.helpers.frontmodel import FrontMaps
from tests.helpers.iptmodel import IptRules
from tests.helpers.nftmodel import NftRules
from tests.helpers.packets import Firewall, Hook, Packet
from tests.helpers.sitecalls import STRANGERS, Place, declared, others
from tests.helpers.sitedoors import Door
from tests.helpers.sitefacts import Facts, Host
from tests.helpers.siteoracle import AWAY, CLOSED, Call, End, Oracle
from tests.helpers.sitewalk import Arrival, Walk

PUBLIC, STRANGER, PEER = "198.51.100.10", IPv4Address("9.9.9.9"), IPv4Address("203.0.113.5")
EXAMPLES = sorted((Path(__file__).parents[4] / "vm-images/examples").glob("*.yml"))
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


# What must hold for every site


def keeps_every_promise(document: dict[str, Any], draw: Random) -> None:
    """All of it at one site: the models are made once."""
    oracle, walks = Oracle.of(document), {kind: walk(document, kind) for kind in ("nft", "iptables")}
    assert_declared(oracle, walks, draw)
    assert_nothing_else(oracle, walks, draw)
    assert_inside_is_no_address_outside(oracle, walks, draw)
    for gateway in oracle.facts.gateways:
        if oracle.doors.routes(gateway):
            assert_names(oracle, walks, gateway, draw)
    assert_judged_alike(document, oracle, walks, draw)


def assert_declared(oracle: Oracle, walks: dict[str, Walk], draw: Random) -> None:
    """Every door is reached by each of its clients, ends where it leads, and answers."""
    for door, case in declared(oracle.doors, draw):
        behind = oracle.facts.hosts[oracle.facts.guests[door.guest].host]
        source = case.place.source
        if source is not None and behind.name != door.host and behind.way(source) in behind.outer:
            continue  # its answer would leave by that host's LAN
        gateway = oracle.facts.hosts[door.host]
        front = oracle.facts.front_of(gateway)
        end = End("guest", door.guest, door.leads(case.call.port))
        if door.name:
            end = End("guest", front.name, gateway.front) if front else End("host", gateway.name, gateway.front)
        for walk in walks.values():
            arrival = case.place.arrives(walk, case.call)
            assert (arrival.end, walk.answered(arrival, case.call)) == (end, True), (door, case, arrival)
            if case.place.kind == "beyond":
                assert arrival.source == source, "who comes from outside is seen as who he is"


def assert_nothing_else(oracle: Oracle, walks: dict[str, Walk], draw: Random) -> None:
    """Whatever anybody tries ends where the site file has it end, mostly nowhere; no guest's address gets out."""
    for case in others(oracle.doors, draw, 120):
        end = case.place.expected(oracle, case.call)
        for walk in walks.values():
            arrival = case.place.arrives(walk, case.call)
            assert end in (arrival.end, None), (case, end, arrival)
            assert walk.answered(arrival, case.call), (case, arrival)
            if arrival.end.kind == "away":
                assert any(arrival.source in host.own for host in oracle.facts.hosts.values())
                assert not any(arrival.source in net for net in oracle.facts.guest_networks)


def assert_inside_is_no_address_outside(oracle: Oracle, walks: dict[str, Walk], draw: Random) -> None:
    """No guest's address comes from outside, none is called from there: whatever the kernel checks besides."""
    facts = oracle.facts
    inside = [guest.address for guest in facts.guests.values()]
    for host in facts.hosts.values():
        for interface in host.outer:
            for case in others(oracle.doors, draw, 10):
                spoofed = draw.choice([*inside, *(net[-2] for net in facts.guest_networks)])
                source = draw.choice((spoofed, case.place.source or STRANGERS[0]))
                target = draw.choice([*inside, case.call.target]) if source == spoofed else spoofed
                call = Call(target, case.call.protocol, case.call.port)
                for walk in walks.values():
                    lenient = replace(walk, strict=False)
                    assert lenient.from_beyond(host, source, call, interface=interface).end.kind != "guest"


def assert_names(oracle: Oracle, walks: dict[str, Walk], gateway: Host, draw: Random) -> None:
    """Each client gets the names that have it, nobody else any, and the front reaches what they lead to."""
    routes, facts = oracle.doors.routes(gateway), oracle.facts
    maps = front(dict(facts.document), gateway.name)
    assert gateway.uplink is not None
    call = Call(gateway.uplink.ip, "tcp", gateway.front)
    places = [case.place for _, case in declared(oracle.doors, draw)] + [Place("guest", name) for name in facts.guests]
    places += [case.place for case in others(oracle.doors, draw, 10)]
    for place in dict.fromkeys(places):
        for walk in walks.values():
            arrival = place.arrives(walk, call)
            if place.kind == "host" or arrival.end.kind not in ("guest", "host"):
                continue
            real = facts.guests[place.name].address if place.kind == "guest" else place.source
            hidden = arrival.source != real
            if place.kind == "guest" and facts.gateway_of(facts.guests[place.name]) is not gateway:
                real, hidden = arrival.source, False
            assert real is not None
            due = {door.name for door in routes if any(real in net for net in oracle.doors.clients(door))}
            led = {door.name for door in routes if maps.lead(arrival.source, door.name) is not None}
            shared = {door.name for door in routes if door.guests} | _named_guests(oracle, routes)
            assert due <= led and led <= (due | shared if hidden else due), (place, arrival, due, led)
    for door in routes:
        source = next(iter(oracle.doors.clients(door))).network_address
        end = facts.guests[door.guest].address, door.inside
        assert maps.lead(source, door.name) == end and maps.lead(source, f"x{door.name}") is None
        for walk in walks.values():
            way = Call(end[0], "tcp", end[1])
            server = facts.front_of(gateway)
            arrival = walk.from_guest(server, way) if server else walk.from_host(gateway, way)
            assert arrival.end == End("guest", door.guest, door.inside), (door, arrival)


def _named_guests(oracle: Oracle, routes: tuple[Door, ...]) -> set[str]:
    """Names that the file gives to a network of guests."""
    nets = oracle.facts.guest_networks
    return {door.name for door in routes if any(net.subnet_of(guests) for net in door.networks for guests in nets)}


def assert_judged_alike(document: dict[str, Any], oracle: Oracle, walks: dict[str, Walk], draw: Random) -> None:
    """At each host both texts and `decide.judge` agree on every connection, and a cut one is told so."""
    site = topology.resolve(SiteFile.model_validate(document))
    known = flows.derive(site)
    cases = [*others(oracle.doors, draw, 40), *(case for _, case in declared(oracle.doors, draw))]
    sources = [host.address_at(wire.interface) for host in oracle.facts.hosts.values() for wire in host.wires]
    sources += [guest.address for guest in oracle.facts.guests.values()]
    for host in oracle.facts.hosts.values():
        made = plan.plan(site, known, site.host(host.name))
        for case in draw.sample(cases, min(40, len(cases))):
            source = case.place.source or draw.choice(sources)
            call = case.call
            if source == call.target:
                continue
            verdict = judge(made, Connection(source, call.target, call.protocol, call.port))  # type: ignore[arg-type]
            fates = {fate_at(host, walk.rules[host.name], source, call) for walk in walks.values()}
            assert len(fates) == 1, (host.name, source, call, fates)
            wanted = {"allowed": ("accept",), "refused": ("drop",), "foreign": ("accept", "drop")}[verdict]
            assert fates <= set(wanted), (host.name, source, call, verdict, fates)


def fate_at(host: Host, rules: Firewall, source: IPv4Address, call: Call) -> str:
    """What a host does with a connection of a source that comes from where it lies."""
    if source in host.own:
        return "accept"  # what it opens itself passes no rule
    iif = host.way(source)
    packet = Packet(iif, "", source, call.target, call.protocol, call.port)
    found = rules.translated("prerouting", packet)
    if found is not None:
        packet = replace(packet, target=found[0], port=found[1], dnat=True)
    oif = host.way(packet.target)
    hook: Hook = "input" if oif == "lo" else "forward"
    packet = replace(packet, oif="" if oif == "lo" else oif)
    fate = rules.fate(hook, packet)
    middle = rules.fate(hook, replace(packet, flags=frozenset({"ack"})))
    assert (fate, middle) in (("accept", "accept"), ("drop", "reset" if call.protocol == "tcp" else "drop"))
    assert rules.fate(hook, replace(packet, state="established", flags=frozenset({"ack"}))) == "accept"
    return fate


# Not shrunk: each try is a whole site, and the failed assertion names host, source and call
WHOLE_SITES = (Phase.explicit, Phase.reuse, Phase.generate)


@settings(max_examples=60, phases=WHOLE_SITES)
@given(sitefiles.documents(), st.randoms(use_true_random=False))
def test_whatever_a_valid_site_file_declares_is_open_and_nothing_else(document: dict[str, Any], draw: Random) -> None:
    keeps_every_promise(document, draw)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@settings(max_examples=4000, phases=WHOLE_SITES)
@given(sitefiles.documents(guests=9), st.randoms(use_true_random=False))
def test_the_same_for_thousands(document: dict[str, Any], draw: Random) -> None:
    keeps_every_promise(document, draw)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_whatever_an_example_declares_is_open_and_nothing_else(path: Path) -> None:
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    for seed in range(5):
        keeps_every_promise(document, Random(seed))


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


def test_a_neighbour_on_the_bridge_needs_a_door_for_the_public_address() -> None:
    forward = {"public": 8080, "guest": 80, "from": ["203.0.113.5"]}
    document = site({"forwards": [forward]}, {})
    made = topology.resolve(SiteFile.model_validate(document))
    here = plan.plan(made, flows.derive(made), made.host("host0"))
    neighbour = IPv4Address("10.77.0.11")
    assert judge(here, Connection(neighbour, IPv4Address(PUBLIC), "tcp", 8080)) == "refused"
    assert judge(here, Connection(neighbour, IPv4Address("10.77.0.10"), "tcp", 80)) == "allowed"


def test_the_address_that_only_a_firewall_outside_has_is_the_host_s_at_its_doors_alone() -> None:
    document = site({"forwards": [{"public": 8080, "guest": 80, "from": ["any"]}]})
    document["hosts"][0]["uplink"] = {"interface": "eth0", "address": "10.31.0.10/24", "public": PUBLIC}
    made = topology.resolve(SiteFile.model_validate(document))
    here = plan.plan(made, flows.derive(made), made.host("host0"))
    assert judge(here, Connection(IPv4Address("192.0.2.1"), IPv4Address(PUBLIC), "tcp", 22)) == "foreign"
    assert judge(here, Connection(IPv4Address("192.0.2.1"), IPv4Address("10.31.0.10"), "tcp", 22)) == "allowed"
    assert judge(here, Connection(STRANGER, IPv4Address(PUBLIC), "tcp", 8080)) == "allowed"
