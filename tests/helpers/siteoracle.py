"""Where a connection must end at a site, said by its document alone: what every rule set has to come down to.

Answers with an `End`, or with None where the file leaves it open: a client of a door may also come straight to the
guest from another bridge, or not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Literal

from tests.helpers.sitedoors import Door, Doors
from tests.helpers.sitefacts import Document, Facts, Guest, Host, network


@dataclass(frozen=True, slots=True)
class End:
    """Where a connection ends: at a port of a guest, at the host itself, away from the site, or nowhere."""

    kind: Literal["guest", "host", "away", "closed"]
    name: str = ""
    port: int = 0


CLOSED, AWAY = End("closed"), End("away")


@dataclass(frozen=True, slots=True)
class Call:
    """What a connection asks for, before any translation."""

    target: IPv4Address
    protocol: str
    port: int


@dataclass(frozen=True, slots=True)
class Oracle:
    """One site."""

    facts: Facts
    doors: Doors

    @classmethod
    def of(cls, document: Document) -> Oracle:
        facts = Facts.read(document)
        return cls(facts, Doors(facts))

    # From where

    def from_beyond(self, host: Host, source: IPv4Address, call: Call) -> End:
        """One that reaches a host from a network that is not the site's."""
        if call.target not in host.own and not self._translated(host, call):
            return CLOSED  # guests have no address outside, and a host is no router for others
        end = self._at(host, source, call)
        if end.kind == "guest" and self.facts.hosts[self.facts.guests[end.name].host] is not host:
            # What a host behind would answer by its own LAN cannot have come by its gateway
            behind = self.facts.hosts[self.facts.guests[end.name].host]
            if behind.lan is not None and behind.way(source) == behind.lan.interface:
                return CLOSED
        return end

    def from_guest(self, guest: Guest, call: Call) -> End | None:
        """One of a guest."""
        host, target = self.facts.hosts[guest.host], call.target
        if target in guest.bridge.cidr and target != guest.bridge.gateway:
            return End("guest", self._name_at(target), call.port)  # neighbours on a bridge
        if target in host.own or self._translated(host, call):
            return self._at(host, guest.address, call)
        if any(target in net for net in self.facts.guest_networks):
            return self._straight(guest.address, call)
        if not self.doors.may_leave(guest, target, call.protocol, call.port):
            return CLOSED
        gateway = self.facts.gateway_of(guest)
        if host is not gateway and host.way(target) in host.outer:
            return AWAY
        return self._beyond(gateway, guest.address, call)

    def from_host(self, host: Host, call: Call) -> End | None:
        """One of a host itself, which nothing holds back there."""
        target = call.target
        if target in host.own:
            door = self._door(host, call)
            if door is not None:
                return End("guest", door.guest, door.leads(call.port))
            front = self._front_guest(host, call)
            return front or End("host", host.name, call.port)
        if any(target in bridge.cidr for bridge in host.bridges):
            return End("guest", self._name_at(target), call.port)
        address = host.address_at(host.way(target))
        if any(target in net for net in self.facts.guest_networks):
            return self._from_gateway(host, address, call)
        if host.way(target) in host.outer and target == host.public:
            return AWAY  # its other address is the firewall's outside
        gateway = self.facts.hosts[host.gateway]
        if host is not gateway and host.way(target) in host.outer:
            return AWAY
        if host is not gateway and not self._at_gateway(gateway, call):
            return self._beyond(gateway, address, call) if self._basic(call) else CLOSED
        return self._beyond(gateway, address, call)

    def _at_gateway(self, gateway: Host, call: Call) -> bool:
        """Whether a call ends at the gateway, or beside it on the wire, and is not forwarded."""
        wires = (other.inner for other in self.facts.hosts.values() if other.gateway == gateway.name)
        beside = {wire.ip for wire in wires if wire is not None}
        return call.target in gateway.own | beside or self._translated(gateway, call)

    def _basic(self, call: Call) -> bool:
        return self.doors.used_by_hosts(call.target, call.protocol, call.port)

    # What then

    def _translated(self, host: Host, call: Call) -> bool:
        """Whether a call is for this host at the address that only the firewall outside has."""
        front = (call.protocol, call.port) == ("tcp", host.front) and bool(self.doors.routes(host))
        return call.target == host.public and (front or self._door(host, call) is not None)

    def _at(self, host: Host, source: IPv4Address, call: Call) -> End:
        """At an address of a host, for a source as it sees it."""
        door = self._door(host, call)
        if door is not None:
            inside = door.leads(call.port)
            served = self.doors.serves(door.guest, call.protocol, inside, source)
            served = served or self._front_to(door.guest, source, Call(call.target, call.protocol, inside))
            return End("guest", door.guest, inside) if served else CLOSED
        front = self._front_guest(host, call)
        routes = self.doors.routes(host)
        if front is not None:
            return front if self._caller(host, source) else CLOSED
        own = (call.protocol, call.port) == ("tcp", host.front) and self.facts.front_of(host) is None
        here = [door for door in routes if call.target in door.addresses]
        if own and self._client(here, source):
            return End("host", host.name, call.port)
        if (call.protocol, call.port) == ("tcp", host.ssh) and self._admin(host, source, call.target):
            return End("host", host.name, call.port)
        return CLOSED

    def _door(self, host: Host, call: Call) -> Door | None:
        for door in self.doors.every:
            at = (door.host, door.protocol) == (host.name, call.protocol) and call.target in door.addresses
            if at and call.port in door and not door.name:
                return door
        return None

    def _front_guest(self, host: Host, call: Call) -> End | None:
        """The guest behind the shared port, where a call is for it."""
        front = self.facts.front_of(host)
        at = any(call.target in door.addresses for door in self.doors.routes(host))
        if front is None or not at or (call.protocol, call.port) != ("tcp", host.front) or not self.doors.routes(host):
            return None
        return End("guest", front.name, host.front)

    def _client(self, routes: Iterable[Door], source: IPv4Address) -> bool:
        return any(source in net for door in routes for net in self.doors.clients(door))

    def _caller(self, gateway: Host, source: IPv4Address) -> bool:
        """Whether a source may call a front in a guest, which sees all of the site's guests as one.

        Where that one has rights, a guest must be named to come, itself or by a network of guests.
        """
        nets = [net for door in self.doors.routes(gateway) for net in self.doors.clients(door)]
        named = [net for net in nets if any(net.subnet_of(guests) for guests in self.facts.guest_networks)]
        inside = (other for other in self.facts.hosts.values() if other.gateway == gateway.name)
        hidden = [net for other in inside for net in self._hidden(other, gateway)]
        if named and any(source in net for net in hidden):
            nets = named
        return any(source in net for net in nets)

    def _hidden(self, host: Host, gateway: Host) -> list[IPv4Network]:
        wire = [IPv4Network(host.inner.ip)] if host.inner is not None and host is not gateway else []
        return [bridge.cidr for bridge in host.bridges] + wire

    def _admin(self, host: Host, source: IPv4Address, target: IPv4Address) -> bool:
        """Whether a source may administer a host at that address: by the side that leads back to it.

        A host behind that administrators reach no other way is administered from its gateway.
        """
        gateway = self.facts.hosts[host.gateway]
        if host is not gateway and host.lan is None and host.inner is not None and gateway.inner is not None:
            return (source, target) == (gateway.inner.ip, host.inner.ip)
        for each in map(network, self.facts.document["admins"]):
            near = host.lan is not None and any(each.overlaps(net) for net in host.lan.reach)
            wire = host.lan if near or host.uplink is None else host.uplink
            if source in each and wire is not None and target == wire.ip:
                return True
        return False

    def _front_to(self, name: str, source: IPv4Address, call: Call) -> bool:
        """Whether that is the front in a guest, on its way to where a server name leads."""
        gateway = self.facts.gateway_of(self.facts.guests[name])
        front = self.facts.front_of(gateway)
        ends = [door.inside for door in self.doors.routes(gateway) if door.guest == name]
        return front is not None and front.address == source and call.protocol == "tcp" and call.port in ends

    def _straight(self, source: IPv4Address, call: Call) -> End | None:
        """To a guest's own address from another bridge: open to none but those who might use its door."""
        guest = self.facts.guest_at(call.target)
        if guest is None:
            return CLOSED
        gateway = self.facts.gateway_of(guest)
        if self._front_to(guest.name, source, call):
            return End("guest", guest.name, call.port)
        shared = guest is self.facts.front_of(gateway) and (call.protocol, call.port) == ("tcp", gateway.front)
        if shared and self._client(self.doors.routes(gateway), source):
            return None
        return None if self.doors.serves(guest.name, call.protocol, call.port, source) else CLOSED

    def _from_gateway(self, host: Host, address: IPv4Address, call: Call) -> End | None:
        """A host's own connection to a guest of another one: the front's must come through."""
        owner = next(h for h in self.facts.hosts.values() if any(call.target in bridge.cidr for bridge in h.bridges))
        if owner.gateway != host.gateway:  # another gateway's guests have no address here
            return AWAY if host.uplink is not None else CLOSED
        if call.target in owner.own and host.gateway in (host.name, owner.name):
            return self._at(owner, address, call)
        guest = self.facts.guest_at(call.target)
        if guest is None or self.facts.gateway_of(guest) is not host:
            return self._straight(address, call)
        ends = [door for door in self.doors.every if door.guest == guest.name and door.protocol == call.protocol]
        if self.facts.front_of(host) is None and any(door.name and door.inside == call.port for door in ends):
            return End("guest", guest.name, call.port)
        front = guest is self.facts.front_of(host) and call.port == host.front
        return None if front or any(door.has_inside(call.port) for door in ends) else CLOSED

    def _beyond(self, gateway: Host, source: IPv4Address, call: Call) -> End:
        """Further on at the gateway, for one who may leave."""
        if call.target in gateway.own or self._translated(gateway, call):
            return self._at(gateway, source, call)
        for other in self.facts.hosts.values():
            if other.gateway == gateway.name and other.inner is not None and call.target == other.inner.ip:
                return self._at(other, source, call)
        for other in self.facts.gateways:
            if other is not gateway and other.uplink is not None and call.target in (other.uplink.ip, other.public):
                return self.from_beyond(other, self.seen_as(gateway, call.target), call)
        return AWAY

    def seen_as(self, gateway: Host, target: IPv4Address) -> IPv4Address:
        """Whose address a gateway's connections have at a target: the firewall outside translates what passes it."""
        assert gateway.uplink is not None and gateway.public is not None
        return gateway.uplink.ip if target in gateway.uplink.address.network else gateway.public

    def _name_at(self, address: IPv4Address) -> str:
        guest = self.facts.guest_at(address)
        return guest.name if guest is not None else ""
