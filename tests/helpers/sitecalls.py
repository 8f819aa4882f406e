"""Who calls what at a site: every declared client at its door, and as many others as one likes, near what is declared.

A `Place` is where a connection comes from, a `Case` is one connection from there. Draws by a `random.Random` that the
test gives, so that a failure comes again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from random import Random
from typing import Literal

from tests.helpers.sitedoors import Door, Doors
from tests.helpers.sitefacts import Facts, Host
from tests.helpers.siteoracle import Call, End, Oracle
from tests.helpers.sitewalk import Arrival, Walk

STRANGERS = (IPv4Address("9.9.9.9"), IPv4Address("192.0.3.1"))
# What is open somewhere by mistake more often than other ports
USUAL = (22, 53, 80, 443, 2222, 2811, 8443, 9441, 9442, 9443, 11112)


@dataclass(frozen=True, slots=True)
class Place:
    """A guest, a host itself, or an address beyond a host, behind one of its outer interfaces."""

    kind: Literal["guest", "host", "beyond"]
    name: str
    source: IPv4Address | None = None

    def expected(self, oracle: Oracle, call: Call) -> End | None:
        """Where the site file has it end."""
        if self.kind == "guest":
            return oracle.from_guest(oracle.facts.guests[self.name], call)
        host = oracle.facts.hosts[self.name]
        if self.kind == "host":
            return oracle.from_host(host, call)
        assert self.source is not None
        return oracle.from_beyond(host, self.source, call)

    def arrives(self, walk: Walk, call: Call) -> Arrival:
        """Where rules have it end."""
        if self.kind == "guest":
            return walk.from_guest(walk.facts.guests[self.name], call)
        host = walk.facts.hosts[self.name]
        if self.kind == "host":
            return walk.from_host(host, call)
        assert self.source is not None
        return walk.from_beyond(host, self.source, call)


@dataclass(frozen=True, slots=True)
class Case:
    """One connection."""

    place: Place
    call: Call


def one_of(net: IPv4Network, draw: Random) -> IPv4Address:
    """Some address of a network; its ends more often than others."""
    last = net.num_addresses - 1
    return net[draw.choice((0, last, draw.randint(0, last)))]


def beyond(facts: Facts, host: Host, address: IPv4Address) -> Place | None:
    """The place of an address as a host meets it, None where it cannot be: it is the site's own, or lies inside."""
    own = {each for other in facts.hosts.values() for each in (*other.own, other.public)}
    inside = address in own or any(address in net for net in facts.guest_networks)
    wire = any(other.inner is not None and address in other.inner.address.network for other in facts.hosts.values())
    if inside or wire or host.way(address) not in host.outer:
        return None
    return Place("beyond", host.name, address)


def clients(facts: Facts, door: Door, draw: Random) -> Iterator[Place]:
    """Every client of a door, one address of each network."""
    host = facts.hosts[door.host]
    for net in door.networks:
        place = beyond(facts, host, one_of(net, draw))
        if place is not None:
            yield place
    yield from (Place("guest", name) for name in door.guests)


def declared(doors: Doors, draw: Random) -> Iterator[tuple[Door, Case]]:
    """Every door at each of its addresses and both ends of its ports, for each of its clients.

    Guests are told the public address alone.
    """
    for door in doors.every:
        public = doors.facts.hosts[door.host].public
        for place in clients(doors.facts, door, draw):
            for address in sorted(door.addresses) if place.kind == "beyond" else [public]:
                assert address is not None
                for port in dict.fromkeys(door.ports):
                    yield door, Case(place, Call(address, door.protocol, port))


def others(doors: Doors, draw: Random, count: int) -> Iterator[Case]:
    """So many connections of anybody to anything of the site."""
    places, calls = _places(doors, draw), _Calls.near(doors, draw)
    for _ in range(count):
        yield Case(draw.choice(places), calls.one(draw))


def _places(doors: Doors, draw: Random) -> list[Place]:
    facts = doors.facts
    found = [Place("guest", name) for name in facts.guests] + [Place("host", name) for name in facts.hosts]
    nets = sorted({net for door in doors.every for net in door.networks} | set(facts.lans))
    for _ in range(12):
        address = draw.choice((*STRANGERS, *(one_of(net, draw) for net in nets)))
        place = beyond(facts, draw.choice(list(facts.hosts.values())), address)
        found += [place] if place is not None else []
    return found


@dataclass(frozen=True, slots=True)
class _Calls:
    """What may be called: every address of the site and some beyond, ports that are declared and those beside them."""

    targets: list[IPv4Address]
    ports: list[int]

    @classmethod
    def near(cls, doors: Doors, draw: Random) -> _Calls:
        facts = doors.facts
        exits = [each for guest in facts.guests.values() for each in doors.exits(guest)]
        known = {guest.address for guest in facts.guests.values()}
        known |= {each for host in facts.hosts.values() for each in (*host.own, host.public) if each is not None}
        away = {*STRANGERS, *(one_of(each.target, draw) for each in exits)}
        away = {each for each in away if not any(each in net for net in facts.guest_networks)}
        ends = {port for door in doors.every for port in (*door.ports, door.inside)}
        ends |= {port for each in exits for port in each.ports}
        ports = {port + by for port in ends for by in (-1, 0, 1)} | {
            *USUAL,
            *(draw.randint(1, 65535) for _ in range(5)),
        }
        return cls(sorted(known | away), sorted(port for port in ports if 0 < port < 65536))

    def one(self, draw: Random) -> Call:
        """Some call."""
        return Call(draw.choice(self.targets), draw.choice(("tcp", "tcp", "tcp", "udp")), draw.choice(self.ports))
