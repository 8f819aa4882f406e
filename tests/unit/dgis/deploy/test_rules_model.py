"""Rule sets as they are rendered, led through models of nftables and iptables, against what the site file says."""

from __future__ import annotations

import itertools
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from dgis.deploy import iptables, nat
from dgis.deploy.decide import Connection, judge
from tests.helpers import sitefiles
from tests.helpers.packets import Firewall, Hook, Packet
from tests.helpers.ruletools import IPTABLES, NFT, refusals, require
from tests.helpers.sitecalls import STRANGERS, Case, Place, declared, others
from tests.helpers.sitedoors import Door
from tests.helpers.sitefacts import Host
from tests.helpers.siteoracle import CLOSED, Call, End, Oracle
from tests.helpers.siterules import KINDS, front, plans_of, walk
from tests.helpers.sitewalk import Walk

EXAMPLES = sorted((Path(__file__).parents[4] / "vm-images/examples").glob("*.yml"))
seeds = st.integers(0, 2**32)


def keeps_every_promise(document: dict[str, Any], draw: Random) -> None:
    """All of it at one site: the models are made once."""
    oracle, walks = Oracle.of(document), {kind: walk(document, kind) for kind in KINDS}
    assert_declared(oracle, walks, draw)
    assert_nothing_else(oracle, walks, draw)
    assert_inside_is_no_address_outside(oracle, walks, draw)
    assert_nobody_speaks_for_another(oracle, walks, draw)
    for gateway in oracle.facts.gateways:
        if oracle.doors.routes(gateway):
            assert_names(oracle, walks, gateway, draw)
    assert_judged_alike(document, oracle, walks, draw)


def assert_declared(oracle: Oracle, walks: dict[str, Walk], draw: Random) -> None:
    """Every door is reached by each of its clients, ends where it leads, and answers."""
    for door, case in declared(oracle.doors, draw):
        source, gateway = case.place.source, oracle.facts.hosts[door.host]
        front = oracle.facts.front_of(gateway)
        end = End("guest", door.guest, door.leads(case.call.port))
        if door.name:
            end = End("guest", front.name, gateway.front) if front else End("host", gateway.name, gateway.front)
        last = oracle.facts.hosts[oracle.facts.guests[end.name].host if end.kind == "guest" else end.name]
        if source is not None and last is not gateway and last.way(source) in last.outer:
            continue  # its answer would leave by that host's LAN, past the gateway
        for rules in walks.values():
            arrival = case.place.arrives(rules, case.call)
            assert (arrival.end, rules.answered(arrival, case.call)) == (end, True), (door, case, arrival)
            if case.place.kind == "beyond":
                assert arrival.source == source, "who comes from outside is seen as who he is"


def assert_nothing_else(oracle: Oracle, walks: dict[str, Walk], draw: Random) -> None:
    """Whatever anybody tries ends where the site file has it end, mostly nowhere; no guest's address gets out."""
    asking = [Call(IPv4Address(each), "udp", 53) for each in oracle.facts.document.get("resolvers", ())]
    names = [Case(Place("host", host), call) for host in oracle.facts.hosts for call in asking]
    for case in [*others(oracle.doors, draw, 120), *names]:
        end = case.place.expected(oracle, case.call)
        for rules in walks.values():
            arrival = case.place.arrives(rules, case.call)
            assert end in (arrival.end, None), (case, end, arrival)
            assert rules.answered(arrival, case.call), (case, arrival)
            if arrival.end.kind == "away":
                faces = [host.address_at(name) for host in oracle.facts.hosts.values() for name in host.outer]
                assert arrival.source in faces, (case, arrival)


def assert_inside_is_no_address_outside(oracle: Oracle, walks: dict[str, Walk], draw: Random) -> None:
    """No guest's address comes from outside, none is called from there: whatever the kernel checks besides."""
    facts = oracle.facts
    guests = [guest.address for guest in facts.guests.values()] + [net[-2] for net in facts.guest_networks]
    sources = [case.place.source or STRANGERS[0] for _, case in declared(oracle.doors, draw)] + [STRANGERS[0]]
    calls = [case.call for _, case in declared(oracle.doors, draw)]
    calls += [case.call for case in others(oracle.doors, draw, 10)]
    for host in facts.hosts.values():
        for interface in host.outer:
            for call in draw.sample(calls, min(20, len(calls))):
                inside = Call(draw.choice(guests), call.protocol, draw.choice((call.port, 22)))
                for source, target in ((draw.choice(guests), call), (draw.choice(sources), inside)):
                    for rules in walks.values():
                        lenient = replace(rules, strict=False)
                        arrival = lenient.from_beyond(host, source, target, interface=interface)
                        assert arrival.end.kind != "guest", (host.name, interface, source, target, arrival)


def assert_nobody_speaks_for_another(oracle: Oracle, walks: dict[str, Walk], draw: Random) -> None:
    """A guest gets nowhere with an address that is not of its bridge; what the file only lets be leads to no guest."""
    calls = [case.call for _, case in declared(oracle.doors, draw)] + [
        case.call for case in others(oracle.doors, draw, 10)
    ]
    for host, bridge in ((each, bridge) for each in oracle.facts.hosts.values() for bridge in each.bridges):
        away = [case.place.source for case in others(oracle.doors, draw, 10) if case.place.source is not None]
        strange = [net[-2] for net in oracle.facts.guest_networks if net != bridge.cidr] + away + [STRANGERS[0]]
        for call in draw.sample(calls, min(8, len(calls))):
            if call.target in bridge.cidr:
                continue  # neighbours, who see one another's frames as they are
            for rules in walks.values():
                lenient, source = replace(rules, strict=False), draw.choice(strange)
                assert lenient.from_beyond(host, source, call, interface=bridge.interface).end == CLOSED
    for table in oracle.facts.document["hosts"]:
        homes = {each["bridge"]: IPv4Network(each["cidr"])[5] for each in table["networks"]}
        homes |= {table["inner"]["interface"]: STRANGERS[0]} if "inner" in table else {}
        outer = {table[key]["interface"]: STRANGERS[0] for key in ("uplink", "lan") if key in table}
        for other, mine in itertools.product(table.get("others", ()), homes | outer):
            for iif, oif, source in ((other, mine, STRANGERS[0]), (mine, other, (homes | outer)[mine])):
                packet = Packet(iif, oif, source, STRANGERS[1], "tcp", 1)
                fates = {rules.rules[table["name"]].fate("forward", packet) for rules in walks.values()}
                assert fates == {"drop" if mine in homes else "accept"}, packet


def assert_names(oracle: Oracle, walks: dict[str, Walk], gateway: Host, draw: Random) -> None:
    """Each client gets the names that have it, nobody else any, and the front reaches what they lead to."""
    routes, facts = oracle.doors.routes(gateway), oracle.facts
    maps = front(dict(facts.document), gateway.name)
    assert gateway.uplink is not None
    call = Call(gateway.uplink.ip, "tcp", gateway.front)
    places = [case.place for _, case in declared(oracle.doors, draw)] + [Place("guest", name) for name in facts.guests]
    places += [case.place for case in others(oracle.doors, draw, 10)]
    for place in dict.fromkeys(places):
        for rules in walks.values():
            arrival = place.arrives(rules, call)
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
        for rules in walks.values():
            way = Call(end[0], "tcp", end[1])
            server = facts.front_of(gateway)
            arrival = rules.from_guest(server, way) if server else rules.from_host(gateway, way)
            assert arrival.end == End("guest", door.guest, door.inside), (door, arrival)


def _named_guests(oracle: Oracle, routes: tuple[Door, ...]) -> set[str]:
    """Names that the file gives to a network of guests."""
    nets = oracle.facts.guest_networks
    return {door.name for door in routes if any(net.subnet_of(guests) for net in door.networks for guests in nets)}


def assert_judged_alike(document: dict[str, Any], oracle: Oracle, walks: dict[str, Walk], draw: Random) -> None:
    """At each host both texts and `decide.judge` agree on every connection, and a cut one is told so."""
    plans = plans_of(document)
    cases = [*others(oracle.doors, draw, 40), *(case for _, case in declared(oracle.doors, draw))]
    sources = [host.address_at(wire.interface) for host in oracle.facts.hosts.values() for wire in host.wires]
    sources += [guest.address for guest in oracle.facts.guests.values()]
    for host in oracle.facts.hosts.values():
        made = plans[host.name]
        for case in draw.sample(cases, min(40, len(cases))):
            source = case.place.source or draw.choice(sources)
            call = case.call
            stray = host.way(source) in host.outer and any(source in net for net in oracle.facts.guest_networks)
            if source == call.target or stray:
                continue  # another gateway's guests come by its address, or not at all
            verdict = judge(made, Connection(source, call.target, call.protocol, call.port))  # type: ignore[arg-type]
            fates = {fate_at(host, each.rules[host.name], source, call) for each in walks.values()}
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
    if hook == "forward":
        assert rules.fate(hook, replace(packet, state="invalid", flags=frozenset({"ack"}))) == "drop"
    return fate


# Not shrunk: each try is a whole site, and the failed assertion names host, source and call
WHOLE_SITES = (Phase.explicit, Phase.reuse, Phase.generate)


@settings(max_examples=40, phases=WHOLE_SITES)
@given(sitefiles.documents(), seeds)
def test_whatever_a_valid_site_file_declares_is_open_and_nothing_else(document: dict[str, Any], seed: int) -> None:
    keeps_every_promise(document, Random(seed))


@pytest.mark.soak
@pytest.mark.timeout(3600)
@settings(max_examples=4000, phases=WHOLE_SITES)
@given(sitefiles.documents(guests=9), seeds)
def test_the_same_for_thousands(document: dict[str, Any], seed: int) -> None:
    keeps_every_promise(document, Random(seed))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_whatever_an_example_declares_is_open_and_nothing_else(path: Path) -> None:
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    for seed in range(5):
        keeps_every_promise(document, Random(seed))


@settings(max_examples=20, phases=WHOLE_SITES)
@given(sitefiles.documents(), st.data())
def test_a_guest_that_does_not_run_is_behind_no_door(document: dict[str, Any], data: st.DataObject) -> None:
    oracle, seed = Oracle.of(document), data.draw(seeds)
    running = frozenset(data.draw(st.sets(st.sampled_from(sorted(oracle.facts.guests)))) if oracle.facts.guests else ())
    every = [(door, case) for door, case in declared(oracle.doors, Random(seed)) if not door.name]
    for kind in KINDS:
        part, whole = walk(document, kind, running=running), walk(document, kind)
        for door, case in every:
            arrival = case.place.arrives(part, case.call)
            wanted = case.place.arrives(whole, case.call).end if door.guest in running else CLOSED
            assert arrival.end == wanted, (door, case, running)


def test_the_tools_take_what_is_rendered(tmp_path: Path) -> None:
    require(NFT, tmp_path)
    require(IPTABLES, tmp_path)
    documents = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in EXAMPLES]

    @settings(max_examples=12, database=None, phases=(Phase.generate,))
    @given(sitefiles.documents(guests=9))
    def collect(document: dict[str, Any]) -> None:
        documents.append(document)

    collect()
    plans = [made for document in documents for made in plans_of(document).values()]
    assert set(refusals(NFT, map(nat.ruleset, plans), tmp_path)) == {""}
    assert set(refusals(IPTABLES, map(iptables.ruleset, plans), tmp_path)) == {""}
