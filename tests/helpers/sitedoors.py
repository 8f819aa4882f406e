"""The doors and exits of a site, read from its document alone: what `siteoracle` judges by.

Written from what the keys mean (docstrings of `dgis.deploy.model`), not from how `dgis.deploy` makes rules of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from ipaddress import IPv4Address, IPv4Network

from tests.helpers.sitefacts import Document, Facts, Guest, Host, Ports, network, ports

HTTPS = {"catalog": 9441, "dgis": 9442, "storage": 9443}
SFTP, DIMSE, DICOM_TLS = 2222, 11112, 2762
SSH_NAME = "ssh:"


@dataclass(frozen=True, slots=True)
class Door:
    """Ports of `host` that lead to a guest; `name` tells apart what shares the front's port ("" elsewhere).

    `networks` are clients by their address, `guests` those of this site by name.
    """

    host: str
    addresses: frozenset[IPv4Address]
    protocol: str
    ports: Ports
    guest: str
    inside: int
    name: str
    networks: tuple[IPv4Network, ...]
    guests: tuple[str, ...]

    def __contains__(self, port: int) -> bool:
        return self.ports[0] <= port <= self.ports[1]

    def leads(self, port: int) -> int:
        """The guest's port behind one of the door's."""
        return self.inside + port - self.ports[0]

    def has_inside(self, port: int) -> bool:
        """Whether a guest's port is behind it."""
        return self.inside <= port <= self.leads(self.ports[1])


@dataclass(frozen=True, slots=True)
class Exit:
    """What a guest may connect to."""

    target: IPv4Network
    protocol: str
    ports: Ports


@dataclass(frozen=True)
class Doors:
    """Both of one site."""

    facts: Facts

    @cached_property
    def every(self) -> tuple[Door, ...]:
        """Every door that has a client."""
        found = (
            side for guest in self.facts.guests.values() for door in self._doors(guest) for side in self._sides(door)
        )
        return tuple(door for door in found if door.networks or door.guests)

    def _sides(self, door: Door) -> Iterator[Door]:
        """A host answers a network by the side that leads back to it: the LAN's address for whoever is there."""
        lan = self.facts.hosts[door.host].lan
        if lan is None or lan.ip in door.addresses:
            yield door
            return
        near = tuple(net for net in door.networks if any(net.subnet_of(each) for each in lan.reach))
        yield replace(door, addresses=frozenset((lan.ip,)), networks=near, guests=())
        yield replace(door, networks=tuple(net for net in door.networks if net not in near))

    def used_by_hosts(self, target: IPv4Address, protocol: str, port: int) -> bool:
        """Whether a host behind another one may connect there: names, time, packages, as everybody."""
        return any(
            target in each.target and (protocol, (port, port)) == (each.protocol, each.ports) for each in self._basic()
        )

    def _basic(self) -> Iterator[Exit]:
        document = self.facts.document
        for address in document.get("resolvers", ()):
            yield from (Exit(network(address), protocol, (53, 53)) for protocol in ("udp", "tcp"))
        yield from (Exit(network(address), "udp", (123, 123)) for address in document.get("time", ()))
        for each in document.get("updates", ()):
            yield Exit(network(each["address"]), "tcp", ports(each["port"]))

    def _doors(self, guest: Guest) -> Iterator[Door]:
        table, domain = guest.table, self.facts.document["domain"]
        for role in guest.services:
            if role in HTTPS:
                nets, users = self._of_service(guest, role)
                yield self._door(guest, None, HTTPS[role], nets, users, name=f"{role}.{guest.name}.{domain}")
        nets, users = self._of_storage(guest)
        if "gridftp" in table:
            for which in (ports(table["gridftp"].get("port", 2811)), ports(table["gridftp"]["data"])):
                yield self._door(guest, which, which[0], nets, users)
        if table.get("sftp") == self.facts.gateway_of(guest).front:
            yield self._door(guest, None, SFTP, nets, users, name=SSH_NAME)
        elif "sftp" in table:
            yield self._door(guest, ports(table["sftp"]), SFTP, nets, users)
        if "active" in table:
            which = ports(table["active"])
            yield self._door(guest, which, which[0], self._peers(lambda far: far.get("stock", False)), ())
        yield from self._dimse(guest)
        for forward in table.get("forwards", ()):
            which, inside = ports(forward["public"]), ports(forward.get("guest", forward["public"]))[0]
            nets = tuple(map(network, forward["from"]))
            yield self._door(guest, which, inside, nets, (), protocol=forward.get("protocol", "tcp"))
        for entry in table.get("names", ()):
            nets = tuple(map(network, entry["from"]))
            yield self._door(guest, None, entry["port"], nets, (), name=entry["name"])

    def _door(
        self,
        guest: Guest,
        which: Ports | None,
        inside: int,
        networks: tuple[IPv4Network, ...],
        guests: tuple[str, ...],
        *,
        name: str = "",
        protocol: str = "tcp",
    ) -> Door:
        """A door at the public address; `which` None means the front's port."""
        gateway = self.facts.gateway_of(guest)
        assert gateway.uplink is not None and gateway.public is not None
        addresses = frozenset((gateway.uplink.ip, gateway.public))
        at = which or (gateway.front, gateway.front)
        return Door(gateway.name, addresses, protocol, at, guest.name, inside, name, networks, guests)

    def _dimse(self, guest: Guest) -> Iterator[Door]:
        table, host = guest.table.get("dimse"), self.facts.hosts[guest.host]
        if table is None:
            return
        nets = tuple(map(network, table["networks"]))
        for key, usual, inside in (("port", 11112, DIMSE), ("tls_port", None, DICOM_TLS)):
            at = table.get(key, usual)
            if at is not None and host.lan is None:
                yield self._door(guest, (at, at), inside, nets, ())
            elif at is not None and host.lan is not None:
                yield Door(host.name, frozenset((host.lan.ip,)), "tcp", (at, at), guest.name, inside, "", nets, ())

    def _peers(self, wanted: object) -> tuple[IPv4Network, ...]:
        assert callable(wanted)
        return tuple(
            network(source)
            for peer in self.facts.document.get("peers", ())
            if any(wanted(far) for far in peer["guests"])
            for source in (peer.get("sources") or [peer["address"]])
        )

    def _users(self, guest: Guest, *roles: str) -> tuple[str, ...]:
        """Guests of ours with one of these roles; a guest uses itself where it has more services than one."""
        every = self.facts.guests.values()
        found = (other for other in every if set(roles) & set(other.roles))
        return tuple(other.name for other in found if other is not guest or len(guest.services) > 1)

    def _of_storage(self, guest: Guest) -> tuple[tuple[IPv4Network, ...], tuple[str, ...]]:
        peers = self._peers(lambda far: {"dgis", "storage"} & set(far["roles"]))
        return peers, self._users(guest, "dgis", "storage")

    def _of_service(self, guest: Guest, role: str) -> tuple[tuple[IPv4Network, ...], tuple[str, ...]]:
        watching = tuple(map(network, self.facts.document["admins"])) if guest.bridge.zone != "inside" else ()
        if role == "storage":
            peers, users = self._of_storage(guest)
            return peers + watching, users
        if role == "catalog":
            shared = self.catalog == self.facts.document["site"]
            peers = self._peers(lambda far: shared and "dgis" in far["roles"])
            return peers + watching, self._users(guest, "dgis")
        return watching, ()

    @cached_property
    def catalog(self) -> str | None:
        """The site that has the VO's catalog."""
        document = self.facts.document
        if document.get("catalog") is not None:
            return str(document["catalog"])
        if any("catalog" in guest.roles for guest in self.facts.guests.values()):
            return str(document["site"])
        theirs = {p["site"] for p in document.get("peers", ()) if any("catalog" in far["roles"] for far in p["guests"])}
        return str(min(theirs)) if len(theirs) == 1 else None

    def exits(self, guest: Guest) -> tuple[Exit, ...]:
        """What a guest may connect to beyond the guests around it."""
        document = self.facts.document
        found = [
            Exit(IPv4Network(address), door.protocol, door.ports)
            for door in self.every
            if guest.name in door.guests
            for address in [self.facts.hosts[door.host].public]
            if address is not None
        ]
        for peer in document.get("peers", ()):
            found += self._to_peer(guest, peer)
        for entity in guest.table.get("dimse", {}).get("aes", ()):
            if "host" in entity:
                found.append(Exit(network(entity["host"]), "tcp", ports(entity["port"])))
        found += self._basic()
        for each in guest.table.get("egress", ()):
            which = ports(each["ports"]) if "ports" in each else (1, 65535)
            found.append(Exit(network(each["to"]), each.get("protocol", "tcp"), which))
        return tuple(found)

    def _to_peer(self, guest: Guest, peer: Document) -> Iterator[Exit]:
        target, front = network(peer["address"]), ports(peer.get("front", 443))
        if not {"dgis", "storage"} & set(guest.roles):
            return
        if "dgis" in guest.roles and self.catalog == peer["site"]:
            yield Exit(target, "tcp", front)
        for far in peer["guests"]:
            if "storage" in far["roles"]:
                if not far.get("stock", False):  # the Grid Community Toolkit's server has no HTTPS of ours
                    yield Exit(target, "tcp", front)
                if "gridftp" in far:
                    yield Exit(target, "tcp", ports(far["gridftp"].get("port", 2811)))
                    yield Exit(target, "tcp", ports(far["gridftp"]["data"]))
                if "sftp" in far:
                    yield Exit(target, "tcp", ports(far["sftp"]))
            if "active" in far and "storage" in guest.roles:
                yield Exit(target, "tcp", ports(far["active"]))

    def may_leave(self, guest: Guest, target: IPv4Address, protocol: str, port: int) -> bool:
        """Whether a guest may connect there; a guest in the DMZ reaches into the institution only by name."""
        for each in self.exits(guest):
            fits = target in each.target and protocol == each.protocol and each.ports[0] <= port <= each.ports[1]
            wide = guest.bridge.zone == "dmz" and any(target in lan for lan in self._around(each.target))
            if fits and not wide:
                return True
        return False

    def _around(self, target: IPv4Network) -> list[IPv4Network]:
        """The institution's networks that lie within a wider one that somebody typed."""
        return [lan for lan in self.facts.lans if target.prefixlen < lan.prefixlen and lan.subnet_of(target)]

    # Who is a client

    def clients(self, door: Door) -> tuple[IPv4Network, ...]:
        """Every address that may use a door, as its host sees it: guests of another gateway come by that one's."""
        found = list(door.networks)
        for name in door.guests:
            guest = self.facts.guests[name]
            gateway = self.facts.gateway_of(guest)
            if gateway.name == self.facts.hosts[door.host].gateway:
                found.append(IPv4Network(guest.address))
            elif gateway.uplink is not None and gateway.public is not None:
                found += [IPv4Network(gateway.uplink.ip), IPv4Network(gateway.public)]
        return tuple(found)

    def serves(self, guest: str, protocol: str, inside: int, source: IPv4Address) -> bool:
        """Whether a source may use a guest's port; two doors to one port have their clients in common."""
        return any(
            (door.guest, door.protocol) == (guest, protocol) and door.has_inside(inside) and source in net
            for door in self.every
            if not door.name
            for net in self.clients(door)
        )

    def routes(self, gateway: Host) -> tuple[Door, ...]:
        """What shares the front's port of a gateway."""
        return tuple(door for door in self.every if door.name and door.host == gateway.name)
