"""What crosses the borders of a site, as rows that a firewall administrator can type in. Pure.

Made from `flows.derive` and the site alone: a row is one source, one destination, one protocol and one range of ports,
however many services of ours share it. Directions: `in` and `out` cross the institution's border, `lan` stays within
the institution but leaves our hosts, `inner` stays within our hosts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from typing import Final, Literal, TypeVar

from dgis.deploy.flows import Door, Exit, Flows, derive
from dgis.deploy.topology import DIMSE_PORT, DIMSE_TLS_PORT, Guest, Peer, Site
from dgis.deploy.values import ANYWHERE, PortRange, Protocol

_T = TypeVar("_T")
Direction = Literal["in", "out", "lan", "inner"]
Kind = Literal[
    "https", "gridftp", "gridftp data", "connect back", "sftp", "dimse", "dicom tls", "dns", "ntp", "packages", "front",
    "other",
]  # fmt: skip
DIRECTIONS: Final[tuple[Direction, ...]] = ("in", "out", "lan", "inner")
# RFC 1918: nobody meets these on the Internet, so whoever has one is of the institution
PRIVATE: Final = tuple(IPv4Network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"))
# How `flows` begins the purpose of an exit; only guests without roles have words of their own there
_EXIT_KINDS: Final[tuple[tuple[str, Kind], ...]] = (
    ("HTTPS of ", "https"),
    ("GridFTP control ", "gridftp"),
    ("GridFTP data ", "gridftp data"),
    ("GridFTP MODE E", "connect back"),
    ("SFTP ", "sftp"),
    ("DIMSE ", "dimse"),
    ("front to ", "front"),
)
_BASIC: Final[dict[tuple[str, str], Kind]] = {
    ("DNS", "resolver"): "dns",
    ("NTP", "time server"): "ntp",
    ("packages", "package proxy"): "packages",
}


@dataclass(frozen=True, slots=True)
class ExceptionRow:
    """One exception. Whoever is the source opens the connection; answers come back on it.

    `parties` are who is at the far side, `ours` what of ours is at this one, `enters` whether the connection comes to
    us. `host` is the host of ours whose address stands here; `seen_as` is that address as the far side sees it, None
    where nothing translates. `number` counts from 1 through all rows of a site.
    """

    number: int
    direction: Direction
    enters: bool
    parties: tuple[str, ...]
    ours: str
    source_addresses: tuple[IPv4Network, ...]
    destination_address: IPv4Network
    protocol: Protocol
    ports: PortRange
    purposes: tuple[str, ...]
    kinds: tuple[Kind, ...]
    guests: tuple[str, ...]
    host: str
    seen_as: IPv4Address | None

    @property
    def source(self) -> str:
        return ", ".join(self.parties) if self.enters else self.ours

    @property
    def destination(self) -> str:
        return self.ours if self.enters else ", ".join(self.parties)

    @property
    def purpose(self) -> str:
        return "; ".join(self.purposes)

    @property
    def initiated_by(self) -> str:
        """Who opens the connection. In GridFTP's MODE E it is the sender of the data, once a receiver has asked."""
        return f"{self.source}, asked by the receiver" if self.kinds == ("connect back",) else self.source


def rows(site: Site) -> tuple[ExceptionRow, ...]:
    """Every exception of a site: inbound, outbound, LAN, then what stays within; numbered."""
    flows = derive(site)
    found: dict[tuple[object, ...], ExceptionRow] = {}
    for row in (*_entering(site, flows), *_leaving(site, flows)):
        # Within the site sources are merged, too: there is nobody who has to type them in
        sources = () if row.direction == "inner" else row.source_addresses
        key = (row.direction, row.enters, sources, row.destination_address, row.protocol, row.ports)
        found[key] = _merged(found[key], row) if key in found else row
    ordered = sorted(found.values(), key=lambda row: _order(site, row))
    return tuple(replace(row, number=number) for number, row in enumerate(ordered, start=1))


def mirrored(site: Site, peer: Peer) -> tuple[ExceptionRow, ...]:
    """What a peer's firewall must let through for us: our rows with it as they look from there, inbound first.

    Numbers, guests and whom a row enters stay ours; direction and addresses are theirs.
    """
    label = f"site {peer.site}"
    ours = [row for row in rows(site) if row.direction in ("in", "out") and label in row.parties]
    return tuple(_from_there(site, row) for row in sorted(ours, key=lambda row: row.enters))


def _from_there(site: Site, row: ExceptionRow) -> ExceptionRow:
    seen = None if row.seen_as is None else IPv4Network(row.seen_as)
    return replace(
        row,
        direction="out" if row.enters else "in",
        ours=f"site {site.name}",
        source_addresses=row.source_addresses if row.enters or seen is None else (seen,),
        destination_address=seen if row.enters and seen is not None else row.destination_address,
        seen_as=None,
    )


def _merged(one: ExceptionRow, other: ExceptionRow) -> ExceptionRow:
    guests = _both(one.guests, other.guests)
    return replace(
        one,
        parties=_both(one.parties, other.parties),
        ours=one.ours if one.ours == other.ours else f"guests {', '.join(guests)}",
        source_addresses=_both(one.source_addresses, other.source_addresses),
        purposes=_both(one.purposes, other.purposes),
        kinds=_both(one.kinds, other.kinds),
        guests=guests,
    )


def _both(one: tuple[_T, ...], other: tuple[_T, ...]) -> tuple[_T, ...]:
    return tuple(dict.fromkeys((*one, *other)))


def _order(site: Site, row: ExceptionRow) -> tuple[int, bool, int, str, IPv4Network, str, PortRange]:
    """Direction, what comes before what goes, peers as in the file, anybody last."""
    peers, far = [f"site {peer.site}" for peer in site.peers], row.parties[0]
    rank = peers.index(far) if far in peers else len(peers) + (far == "anybody")
    direction = DIRECTIONS.index(row.direction)
    return direction, not row.enters, rank, far, row.destination_address, row.protocol, row.ports


def _entering(site: Site, flows: Flows) -> Iterator[ExceptionRow]:
    """One row per door and party; what comes from our own guests is told by their exits."""
    for door in flows.doors:
        parties: dict[tuple[Direction, str], list[IPv4Network]] = {}
        for client in door.clients:
            if client.side != "site":
                direction = _direction(site, client.network, client.side, "in")
                parties.setdefault((direction, client.label), []).append(client.network)
        for (direction, label), networks in parties.items():
            yield _entry(site, door, direction, label, tuple(networks))


def _entry(site: Site, door: Door, direction: Direction, label: str, networks: tuple[IPv4Network, ...]) -> ExceptionRow:
    # Within the institution nothing translates: the host's own address is the one to write down there
    outside = direction == "in" and door.public != door.address
    return ExceptionRow(
        number=0,
        direction=direction,
        enters=True,
        parties=(label,),
        ours=f"host {door.host}",
        source_addresses=tuple(dict.fromkeys(networks)),
        destination_address=IPv4Network(door.address),
        protocol=door.protocol,
        ports=door.ports,
        purposes=(door.purpose,),
        kinds=(kind_of_door(site.guest(door.guest), door),),
        guests=(door.guest,),
        host=door.host,
        seen_as=door.public if outside else None,
    )


def _leaving(site: Site, flows: Flows) -> Iterator[ExceptionRow]:
    for way in flows.exits:
        guest = site.guest(way.guest)
        direction: Direction = "inner"
        if way.side != "site" or _other_gateway(site, guest, way):
            direction = _direction(site, way.target, way.side, "out")
        name, address, seen_as = _leaves_from(site, guest, way.target)
        inner = direction == "inner"
        yield ExceptionRow(
            number=0,
            direction=direction,
            enters=False,
            parties=(way.whose,),
            ours=f"guest {guest.name}" if inner else f"host {name}",
            source_addresses=(IPv4Network(guest.address if inner else address),),
            destination_address=way.target,
            protocol=way.protocol,
            ports=way.ports,
            purposes=(way.purpose,),
            kinds=(kind_of_exit(guest, way),),
            guests=(guest.name,),
            host=name,
            seen_as=seen_as if direction == "out" else None,
        )


def _direction(site: Site, network: IPv4Network, side: str, across: Literal["in", "out"]) -> Direction:
    """Where a network lies. What the file does not place within the institution counts as outside."""
    if side in ("lan", "site") and network != ANYWHERE:
        return "lan"
    peers = (net for peer in site.peers for net in (IPv4Network(peer.public), *peer.sources))
    if network == ANYWHERE or any(network.overlaps(net) for net in peers):
        return across
    return "lan" if any(network.subnet_of(net) for net in institution(site)) else across


def institution(site: Site) -> tuple[IPv4Network, ...]:
    """The networks that are the institution's own, as far as one can tell from its hosts' interfaces."""
    lans = (net for host in site.hosts if host.lan for net in host.lan.reach)
    uplinks = (host.uplink.address.network for host in site.hosts if host.uplink)
    return tuple(dict.fromkeys((*lans, *uplinks, *PRIVATE)))


def _other_gateway(site: Site, guest: Guest, way: Exit) -> bool:
    """Whether a way to one of our own doors leads from one gateway to another one, by the institution's network."""
    own = site.gateway_of(guest)
    others = (host for host in site.hosts if host.uplink is not None and host is not own)
    return any(way.target.network_address in (host.public, host.uplink.ip) for host in others if host.uplink)


def _leaves_from(site: Site, guest: Guest, target: IPv4Network) -> tuple[str, IPv4Address, IPv4Address | None]:
    """The host whose address hides a guest on the way to `target`, that address, and what it is seen as if not that."""
    gateway = site.gateway_of(guest)
    for host in (site.host(guest.host), gateway):
        if host.lan is not None and any(target.subnet_of(net) for net in host.lan.reach):
            return host.name, host.lan.ip, None
    assert gateway.uplink is not None and gateway.public is not None  # what `check` made sure of
    return gateway.name, gateway.uplink.ip, gateway.public if gateway.public != gateway.uplink.ip else None


def kind_of_door(guest: Guest, door: Door) -> Kind:
    """What is spoken at a door, by what the guest has there and not by words that somebody typed."""
    if door.route == "ssh":
        return "sftp"
    if door.route == "name":
        return "https" if any(service.name == door.name for service in guest.services) else "other"
    if guest.gridftp is not None and door.ports == PortRange.one(guest.gridftp.control):
        return "gridftp"
    if guest.gridftp is not None and door.ports == guest.gridftp.data:
        return "gridftp data"
    if guest.active is not None and door.ports == guest.active:
        return "connect back"
    if guest.sftp is not None and door.ports == PortRange.one(guest.sftp):
        return "sftp"
    if guest.dimse is not None and door.inside == PortRange.one(DIMSE_PORT):
        return "dimse"
    if guest.dimse is not None and door.inside == PortRange.one(DIMSE_TLS_PORT):
        return "dicom tls"
    return "other"


def kind_of_exit(guest: Guest, way: Exit) -> Kind:
    """What is spoken there; a guest without roles says so itself."""
    if (way.purpose, way.whose) in _BASIC:
        return _BASIC[way.purpose, way.whose]
    if not guest.roles:
        return "other"
    return next((kind for start, kind in _EXIT_KINDS if way.purpose.startswith(start)), "other")
