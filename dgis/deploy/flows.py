"""Who must reach whom, derived from roles and peers: the doors of a site and what its guests connect to. Pure.

A `Door` is an address, protocol and ports of a host at which something can be reached, and by whom. An `Exit` is what a
guest may connect to. NAT rules, firewall rules, the front's routes, the exception sheet and what `verify` tries are all
made from these two lists, so none of them can say something else than the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from typing import Literal

from dgis.deploy.topology import DIMSE_PORT, DIMSE_TLS_PORT, SFTP_PORT, Guest, Host, Peer, Service, Site
from dgis.deploy.values import ANYWHERE, PortRange, Protocol

Side = Literal["outside", "lan", "site", "admins"]
Route = Literal["dnat", "name", "ssh"]
SSH_NAME = "ssh:"  # what SSH is called where other connections have a server name; no DNS name holds a colon


@dataclass(frozen=True, slots=True)
class Client:
    """Somebody who may come: a network, which side of the site it is on, and what people call it."""

    network: IPv4Network
    side: Side
    label: str


@dataclass(frozen=True, slots=True)
class Door:
    """Where a host lets somebody reach a guest.

    `address` is the host's own, `public` what clients use (another one only behind a translating firewall). A route
    `dnat` translates `ports` to as many `inside` ports; `name` and `ssh` share the front's port and are told apart by
    the TLS server name `name`, or by speaking SSH first.
    """

    host: str
    guest: str
    address: IPv4Address
    public: IPv4Address
    protocol: Protocol
    ports: PortRange
    inside: PortRange
    route: Route
    name: str
    clients: tuple[Client, ...]
    purpose: str


@dataclass(frozen=True, slots=True)
class Exit:
    """What a guest may connect to, and on which side that lies."""

    guest: str
    target: IPv4Network
    protocol: Protocol
    ports: PortRange
    side: Side
    purpose: str
    whose: str


@dataclass(frozen=True, slots=True)
class Flows:
    """Both lists of one site, in the order of the file."""

    doors: tuple[Door, ...]
    exits: tuple[Exit, ...]


ALL_PORTS = PortRange(1, 65535)


def derive(site: Site) -> Flows:
    """Work out every door and every exit of a site."""
    doors = tuple(door for guest in site.guests for door in _doors(site, guest) if door.clients)
    exits = tuple(dict.fromkeys(way for guest in site.guests for way in _exits(site, guest, doors)))
    return Flows(doors, exits)


def _doors(site: Site, guest: Guest) -> Iterator[Door]:
    gateway = site.gateway_of(guest)
    for service in guest.services:
        if service.https_port is not None:
            clients = _https_clients(site, guest, service)
            yield from _named(gateway, guest, service.name, service.https_port, clients)
    if guest.gridftp is not None:
        clients = _storage_clients(site, guest)
        control, data = PortRange.one(guest.gridftp.control), guest.gridftp.data
        yield from _door(gateway, guest, control, control, clients, f"GridFTP control of {guest.name}")
        yield from _door(gateway, guest, data, data, clients, f"GridFTP data of {guest.name}, towards it")
    if guest.sftp is not None:
        yield from _sftp(gateway, guest, guest.sftp, _storage_clients(site, guest))
    if guest.active is not None:
        purpose = f"GridFTP MODE E to {guest.name}: a stock server connects back for downloads"
        yield from _door(gateway, guest, guest.active, guest.active, _stock_servers(site), purpose)
    yield from _dimse_doors(site, guest)
    yield from _own_doors(site, gateway, guest)


def _named(gateway: Host, guest: Guest, name: str, port: int, clients: tuple[Client, ...]) -> Iterator[Door]:
    front = PortRange.one(gateway.front_port)
    made = _door(gateway, guest, front, PortRange.one(port), clients, f"HTTPS of {name}")
    yield from (replace(door, route="name", name=name) for door in made)


def _sftp(gateway: Host, guest: Guest, port: int, clients: tuple[Client, ...]) -> Iterator[Door]:
    shared = port == gateway.front_port
    text = f"SFTP of {guest.name}" + (" on the port of HTTPS" if shared else "")
    made = _door(gateway, guest, PortRange.one(port), PortRange.one(SFTP_PORT), clients, text)
    yield from (replace(door, route="ssh", name=SSH_NAME) if shared else door for door in made)


def _door(
    gateway: Host, guest: Guest, ports: PortRange, inside: PortRange, clients: tuple[Client, ...], purpose: str
) -> Iterator[Door]:
    """A translated door at the public address, and one at the LAN's for clients whose way to the host that is.

    A host with two sides answers each client by the side that leads back to it; the other one would drop the call.
    """
    assert gateway.uplink is not None and gateway.public is not None  # what `check` made sure of
    near = tuple(client for client in clients if client.side != "site" and _by_lan(gateway, client.network))
    door = Door(
        host=gateway.name,
        guest=guest.name,
        address=gateway.uplink.ip,
        public=gateway.public,
        protocol="tcp",
        ports=ports,
        inside=inside,
        route="dnat",
        name="",
        clients=tuple(client for client in clients if client not in near),
        purpose=purpose,
    )
    if gateway.lan is not None and near:
        yield replace(door, address=gateway.lan.ip, public=gateway.lan.ip, clients=near)
    yield door


def _by_lan(host: Host, network: IPv4Network) -> bool:
    return host.lan is not None and any(network.subnet_of(net) for net in host.lan.reach)


def _dimse_doors(site: Site, guest: Guest) -> Iterator[Door]:
    """DIMSE is for the institution's own networks: at the LAN's address of the guest's host where it has one."""
    if guest.dimse is None:
        return
    host, gateway = site.host(guest.host), site.gateway_of(guest)
    clients = tuple(Client(network, "lan", "viewers and modalities") for network in guest.dimse.networks)
    listeners = [(guest.dimse.port, DIMSE_PORT, "DIMSE")]
    if guest.dimse.tls_port is not None:
        listeners.append((guest.dimse.tls_port, DIMSE_TLS_PORT, "DICOM TLS"))
    for port, inside, what in listeners:
        purpose = f"{what} to the AE {guest.dimse.aet}"
        made = _door(gateway, guest, PortRange.one(port), PortRange.one(inside), clients, purpose)
        if host.lan is None:
            yield from made
        else:
            *_, door = made
            yield replace(door, host=host.name, address=host.lan.ip, public=host.lan.ip, clients=clients)


def _own_doors(site: Site, gateway: Host, guest: Guest) -> Iterator[Door]:
    """What a guest says about itself: forwards and server names of other projects."""
    for forward in guest.forwards:
        clients = tuple(_typed(site, network) for network in forward.sources)
        inside, purpose = forward.guest or forward.public, f"{forward.purpose} ({guest.name})"
        made = _door(gateway, guest, forward.public, inside, clients, purpose)
        yield from (replace(door, protocol=forward.protocol) for door in made)
    for entry in guest.names:
        clients = tuple(_typed(site, network) for network in entry.sources)
        yield from _named(gateway, guest, entry.name, entry.port, clients)


def _typed(site: Site, network: IPv4Network) -> Client:
    if network == ANYWHERE:
        return Client(network, "outside", "anybody")
    lans = [net for host in site.hosts if host.lan for net in host.lan.reach]
    inside = any(network.subnet_of(net) for net in lans)
    return Client(network, "lan" if inside else "outside", str(network))


def _peer_clients(peers: Iterator[Peer]) -> tuple[Client, ...]:
    return tuple(Client(network, "outside", f"site {peer.site}") for peer in peers for network in peer.sources)


def _own_clients(site: Site, guest: Guest, *roles: str) -> tuple[Client, ...]:
    """Guests of this site that use a service of `guest`, itself too when it has the role: names are the same inside."""
    return tuple(
        Client(IPv4Network(other.address), "site", f"guest {other.name}")
        for other in site.guests
        if any(role in other.roles for role in roles) and (other is not guest or len(other.services) > 1)
    )


def _admin_clients(site: Site) -> tuple[Client, ...]:
    return tuple(Client(network, "admins", "administrators") for network in site.admins)


def _https_clients(site: Site, guest: Guest, service: Service) -> tuple[Client, ...]:
    """A DGIS's own HTTPS is for those who watch it; catalog and storage serve the grid besides.

    Guests inside are not watched through the public address: they have no door there.
    """
    watching = _admin_clients(site) if site.network_of(guest).zone != "inside" else ()
    if service.role == "storage":
        return _storage_clients(site, guest) + watching
    if service.role == "catalog":
        shared = site.catalog == site.name
        peers = _peer_clients(peer for peer in site.peers if shared and peer.has("dgis"))
        return _own_clients(site, guest, "dgis") + peers + watching
    return watching


def _storage_clients(site: Site, guest: Guest) -> tuple[Client, ...]:
    """Gateways store and read; storage elements pull from one another."""
    peers = _peer_clients(peer for peer in site.peers if peer.has("dgis") or peer.has("storage"))
    return _own_clients(site, guest, "dgis", "storage") + peers


def _stock_servers(site: Site) -> tuple[Client, ...]:
    return _peer_clients(peer for peer in site.peers if any(far.stock for far in peer.guests))


def _exits(site: Site, guest: Guest, doors: tuple[Door, ...]) -> Iterator[Exit]:
    yield from _own_exits(guest, doors)
    if "dgis" in guest.roles or "storage" in guest.roles:
        for peer in site.peers:
            yield from _peer_exits(site, guest, peer)
    if guest.dimse is not None:
        for entity in guest.dimse.aes:
            if entity.host is not None and entity.port is not None:
                purpose = f"DIMSE to the AE {entity.title}: C-MOVE connects to the viewer"
                target = IPv4Network(entity.host)
                yield Exit(guest.name, target, "tcp", PortRange.one(entity.port), "lan", purpose, entity.title)
    if "front" in guest.roles:
        yield from _front_exits(site, guest, doors)
    yield from _basic_exits(site, guest)


def _own_exits(guest: Guest, doors: tuple[Door, ...]) -> Iterator[Exit]:
    """The doors of its own site that a guest uses, by their public address like everybody."""
    own = IPv4Network(guest.address)
    for door in doors:
        if any(client.side == "site" and client.network == own for client in door.clients):
            target = IPv4Network(door.public)
            yield Exit(guest.name, target, door.protocol, door.ports, "site", door.purpose, f"host {door.host}")


def _peer_exits(site: Site, guest: Guest, peer: Peer) -> Iterator[Exit]:
    target, whose = IPv4Network(peer.public), f"site {peer.site}"

    def to(ports: PortRange, purpose: str) -> Exit:
        return Exit(guest.name, target, "tcp", ports, "outside", purpose, whose)

    if "dgis" in guest.roles and site.catalog == peer.site:
        yield to(PortRange.one(peer.front_port), "HTTPS of the VO's catalog")
    for far in peer.guests:
        if far.service("storage") is not None:
            if not far.stock:
                yield to(PortRange.one(peer.front_port), f"HTTPS of storage at {peer.site}")
            if far.gridftp is not None:
                yield to(PortRange.one(far.gridftp.control), f"GridFTP control at {peer.site}")
                yield to(far.gridftp.data, f"GridFTP data at {peer.site}, towards it")
            if far.sftp is not None:
                yield to(PortRange.one(far.sftp), f"SFTP at {peer.site}")
        if far.active is not None and "storage" in guest.roles:
            yield to(far.active, f"GridFTP MODE E: our server connects back to the DGIS at {peer.site}")


def _front_exits(site: Site, front: Guest, doors: tuple[Door, ...]) -> Iterator[Exit]:
    gateway = site.gateway_of(front)
    for door in doors:
        if door.host == gateway.name and door.route != "dnat" and door.guest != front.name:
            target = IPv4Network(site.guest(door.guest).address)
            yield Exit(front.name, target, "tcp", door.inside, "site", f"front to {door.guest}", f"guest {door.guest}")


def _basic_exits(site: Site, guest: Guest) -> Iterator[Exit]:
    yield from (replace(way, guest=guest.name) for way in basic_services(site))
    for entry in guest.egress:
        label = "anybody" if entry.to == ANYWHERE else str(entry.to)
        yield Exit(guest.name, entry.to, entry.protocol, entry.ports or ALL_PORTS, "outside", entry.purpose, label)


def basic_services(site: Site) -> Iterator[Exit]:
    """What every machine of a site uses: names, time, packages."""
    for resolver in site.resolvers:
        for protocol in ("udp", "tcp"):
            net = IPv4Network(resolver)
            yield Exit("", net, protocol, PortRange.one(53), "outside", "DNS", "resolver")
    for server in site.time:
        yield Exit("", IPv4Network(server), "udp", PortRange.one(123), "outside", "NTP", "time server")
    for address, port in site.updates:
        yield Exit("", IPv4Network(address), "tcp", PortRange.one(port), "outside", "packages", "package proxy")
