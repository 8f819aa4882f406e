"""A site file as the tests read it: plain YAML values in, hosts, guests and their routes out.

Nothing of `dgis.deploy` is asked, so that what is wrong there is not wrong here, too. Wants a document that is valid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any

ANYWHERE = IPv4Network("0.0.0.0/0")
Document = Mapping[str, Any]
Ports = tuple[int, int]


def network(text: object) -> IPv4Network:
    """A network as a site file writes it."""
    return ANYWHERE if text == "any" else IPv4Network(str(text))


def ports(value: object) -> Ports:
    """A port or a range, both ends included."""
    first, _, last = str(value).partition("-")
    return int(first), int(last or first)


@dataclass(frozen=True, slots=True)
class Wire:
    """An interface that leads away from the guests."""

    interface: str
    address: IPv4Interface
    gateway: IPv4Address | None = None
    networks: tuple[IPv4Network, ...] = ()

    @classmethod
    def read(cls, table: Document | None) -> Wire | None:
        if table is None:
            return None
        gateway = IPv4Address(table["gateway"]) if "gateway" in table else None
        behind = tuple(network(each) for each in table.get("networks", ()))
        return cls(table["interface"], IPv4Interface(table["address"]), gateway, behind)

    @property
    def ip(self) -> IPv4Address:
        return self.address.ip

    @property
    def reach(self) -> tuple[IPv4Network, ...]:
        return (self.address.network, *self.networks)


@dataclass(frozen=True, slots=True)
class Bridge:
    """A network of guests."""

    name: str
    interface: str
    cidr: IPv4Network
    gateway: IPv4Address
    zone: str


@dataclass(frozen=True, slots=True)
class Host:
    """A machine that runs guests. `own`: addresses at which its kernel answers, `routes`: (network, interface)."""

    name: str
    uplink: Wire | None
    public: IPv4Address | None
    inner: Wire | None
    lan: Wire | None
    gateway: str
    bridges: tuple[Bridge, ...]
    front: int
    ssh: int
    own: frozenset[IPv4Address]
    routes: tuple[tuple[IPv4Network, str], ...]

    @property
    def wires(self) -> tuple[Wire, ...]:
        return tuple(wire for wire in (self.uplink, self.inner, self.lan) if wire is not None)

    @property
    def outer(self) -> tuple[str, ...]:
        """Interfaces towards networks that are not the site's."""
        return tuple(wire.interface for wire in (self.uplink, self.lan) if wire is not None)

    def way(self, address: IPv4Address) -> str:
        """The interface to an address: the longest network that has it; `lo` for the host's own."""
        if address in self.own:
            return "lo"
        found = [(net.prefixlen, name) for net, name in self.routes if address in net]
        return max(found, key=lambda each: each[0])[1]

    def address_at(self, interface: str) -> IPv4Address:
        """The host's address at an interface."""
        for wire in self.wires:
            if wire.interface == interface:
                return wire.ip
        return next(bridge.gateway for bridge in self.bridges if bridge.interface == interface)

    def bridge_at(self, interface: str) -> Bridge | None:
        return next((bridge for bridge in self.bridges if bridge.interface == interface), None)


@dataclass(frozen=True, slots=True)
class Guest:
    """A virtual machine; `table` is what the file says of it."""

    name: str
    host: str
    bridge: Bridge
    address: IPv4Address
    roles: tuple[str, ...]
    table: Document

    @property
    def services(self) -> tuple[str, ...]:
        return tuple(role for role in self.roles if role != "front")


@dataclass(frozen=True, slots=True)
class Facts:
    """All of it."""

    document: Document
    hosts: Mapping[str, Host]
    guests: Mapping[str, Guest]

    @classmethod
    def read(cls, document: Document) -> Facts:
        hosts = {table["name"]: _host(document, table) for table in document["hosts"]}
        return cls(document, hosts, {each["name"]: _guest(each, hosts) for each in document.get("guests", ())})

    @property
    def gateways(self) -> tuple[Host, ...]:
        return tuple(host for host in self.hosts.values() if host.uplink is not None)

    @property
    def guest_networks(self) -> tuple[IPv4Network, ...]:
        return tuple(bridge.cidr for host in self.hosts.values() for bridge in host.bridges)

    @property
    def lans(self) -> tuple[IPv4Network, ...]:
        return tuple(net for host in self.hosts.values() if host.lan for net in host.lan.reach)

    def gateway_of(self, guest: Guest) -> Host:
        return self.hosts[self.hosts[guest.host].gateway]

    def guest_at(self, address: IPv4Address) -> Guest | None:
        return next((guest for guest in self.guests.values() if guest.address == address), None)

    def front_of(self, gateway: Host) -> Guest | None:
        """The guest that serves a gateway's shared port; None when the host does."""
        able = (guest for guest in self.guests.values() if "front" in guest.roles)
        return next((guest for guest in able if self.gateway_of(guest) is gateway), None)


def _host(document: Document, table: Document) -> Host:
    uplink, inner, lan = (Wire.read(table.get(key)) for key in ("uplink", "inner", "lan"))
    bridges = tuple(_bridge(each) for each in table["networks"])
    public = None if uplink is None else IPv4Address(table["uplink"].get("public", uplink.ip))
    wires = [wire for wire in (uplink, inner, lan) if wire is not None]
    return Host(
        name=table["name"],
        uplink=uplink,
        public=public,
        inner=inner,
        lan=lan,
        gateway=table.get("behind", table["name"]),
        bridges=bridges,
        front=table.get("front", 443),
        ssh=table.get("ssh", 22),
        own=frozenset((*(wire.ip for wire in wires), *(bridge.gateway for bridge in bridges))),
        routes=tuple(_routes(document, table, (uplink, inner, lan), bridges)),
    )


def _bridge(table: Document) -> Bridge:
    cidr = IPv4Network(table["cidr"])
    gateway = IPv4Address(table.get("gateway", cidr.network_address + 1))
    return Bridge(table["name"], table["bridge"], cidr, gateway, table.get("zone", "open"))


def _routes(
    document: Document, table: Document, wires: tuple[Wire | None, ...], bridges: tuple[Bridge, ...]
) -> list[tuple[IPv4Network, str]]:
    uplink, inner, lan = wires
    found = [(bridge.cidr, bridge.interface) for bridge in bridges]
    found += [(wire.address.network, wire.interface) for wire in wires if wire is not None]
    if lan is not None and lan.gateway is not None:
        found += [(net, lan.interface) for net in lan.networks]
    behind = [other for other in document["hosts"] if other.get("behind") == table["name"]]
    if inner is not None:
        found += [(IPv4Network(each["cidr"]), inner.interface) for other in behind for each in other["networks"]]
    last = uplink or inner
    return [*found, (ANYWHERE, last.interface)] if last is not None else found


def _guest(table: Document, hosts: Mapping[str, Host]) -> Guest:
    bridges = hosts[table["host"]].bridges
    bridge = next(each for each in bridges if table.get("network") in (None, each.name))
    roles = tuple(dict.fromkeys(table.get("roles", ())))
    return Guest(table["name"], table["host"], bridge, IPv4Address(table["address"]), roles, table)
