"""The site that a file describes: hosts, networks, guests, services and peers, with everything that follows from them.

Nothing here is typed by an operator: MAC addresses, UUIDs, service names, certificate subjects and inside ports are
derived, so that two renderings of one file never disagree. Pure.
"""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Literal

from dgis.deploy.model import AeTable, EgressTable, ForwardTable, GuestTable, NameTable, Role, SiteFile, Zone
from dgis.deploy.values import PortRange

ServiceRole = Literal["dgis", "catalog", "storage", "ca"]
HTTPS_PORTS: dict[str, int] = {"catalog": 9441, "dgis": 9442, "storage": 9443}
SFTP_PORT, DIMSE_PORT, DIMSE_TLS_PORT = 2222, 11112, 2762
GRID_ROLES: dict[str, str] = {"dgis": "gateway", "catalog": "catalog", "storage": "storage"}
AREA = "main"
_NAMESPACE = uuid.UUID("6f2a1d3c-52c1-5d0f-9a57-0d6715d0c0de")
# Xen's own and QEMU's prefix: tools and people tell by them what a card is
_MAC_PREFIX = {"xen": "00:16:3e", "kvm": "52:54:00"}


@dataclass(frozen=True, slots=True)
class Network:
    """A bridge of one host, for guests."""

    name: str
    bridge: str
    cidr: IPv4Network
    gateway: IPv4Address
    zone: Zone


@dataclass(frozen=True, slots=True)
class Wire:
    """An interface of a host with its address. `networks` lie behind `gateway`, beside the interface's own."""

    interface: str
    address: IPv4Interface
    gateway: IPv4Address | None = None
    networks: tuple[IPv4Network, ...] = ()

    @property
    def ip(self) -> IPv4Address:
        return self.address.ip

    @property
    def reach(self) -> tuple[IPv4Network, ...]:
        """Every network that is behind this interface by name."""
        return (self.address.network, *self.networks)


@dataclass(frozen=True, slots=True)
class Host:
    """A machine that runs guests; `gateway` is the host whose public address its guests share, itself mostly."""

    name: str
    hypervisor: Literal["xen", "kvm"]
    guest_type: str
    uplink: Wire | None
    public: IPv4Address | None
    inner: Wire | None
    lan: Wire | None
    behind: str | None
    networks: tuple[Network, ...]
    firewall: Literal["nft", "iptables"]
    front_port: int
    ssh_port: int
    others: tuple[str, ...]
    images: str

    @property
    def wires(self) -> tuple[Wire, ...]:
        """Its interfaces that lead away from the guests."""
        return tuple(wire for wire in (self.uplink, self.inner, self.lan) if wire is not None)

    @property
    def gateway(self) -> str:
        return self.behind or self.name

    def network(self, name: str) -> Network:
        """One of its networks by name. Raises KeyError."""
        return next(network for network in self.networks if network.name == name)


@dataclass(frozen=True, slots=True)
class Gridftp:
    """Ports of a GridFTP door."""

    control: int
    data: PortRange


@dataclass(frozen=True, slots=True)
class Dimse:
    """The AE of a DGIS."""

    aet: str
    port: int
    tls_port: int | None
    networks: tuple[IPv4Network, ...]
    aes: tuple[AeTable, ...]


@dataclass(frozen=True, slots=True)
class Service:
    """One of our services in a guest. `name` is its DNS name and the CN of its certificate."""

    role: ServiceRole
    guest: str
    name: str
    element: str

    @property
    def https_port(self) -> int | None:
        return HTTPS_PORTS.get(self.role)

    @property
    def directory(self) -> str:
        """What its files are called: the DGIS itself is `node`."""
        return "node" if self.role == "dgis" else self.role


@dataclass(frozen=True, slots=True)
class Guest:
    """A virtual machine of this site. Sizes are bytes."""

    name: str
    host: str
    network: str
    address: IPv4Address
    roles: tuple[Role, ...]
    services: tuple[Service, ...]
    mac: str
    uuid: str
    memory: int
    cpus: int
    disk: int
    data: int
    dimse: Dimse | None
    gridftp: Gridftp | None
    sftp: int | None
    active: PortRange | None
    forwards: tuple[ForwardTable, ...]
    names: tuple[NameTable, ...]
    egress: tuple[EgressTable, ...]

    def service(self, role: ServiceRole) -> Service | None:
        """Its service of that role, if it has one."""
        return next((service for service in self.services if service.role == role), None)


@dataclass(frozen=True, slots=True)
class PeerGuest:
    """A guest of another site, as far as we meet it; `stock` servers connect back for downloads (MODE E)."""

    name: str
    services: tuple[Service, ...]
    gridftp: Gridftp | None
    sftp: int | None
    active: PortRange | None
    stock: bool

    def service(self, role: ServiceRole) -> Service | None:
        """Its service of that role, if it has one."""
        return next((service for service in self.services if service.role == role), None)


@dataclass(frozen=True, slots=True)
class Peer:
    """Another site of the grid."""

    site: str
    domain: str
    public: IPv4Address
    sources: tuple[IPv4Network, ...]
    front_port: int
    guests: tuple[PeerGuest, ...]

    def has(self, role: ServiceRole) -> bool:
        """Whether any of its guests has that role."""
        return any(guest.service(role) for guest in self.guests)


@dataclass(frozen=True, slots=True)
class Site:
    """Everything that one site file says, resolved."""

    name: str
    title: str
    organisation: str
    domain: str
    admins: tuple[IPv4Network, ...]
    admin_keys: tuple[str, ...]
    operators: tuple[str, ...]
    resolvers: tuple[IPv4Address, ...]
    time: tuple[IPv4Address, ...]
    updates: tuple[tuple[IPv4Address, int], ...]
    catalog: str | None
    copies: int
    hosts: tuple[Host, ...]
    guests: tuple[Guest, ...]
    peers: tuple[Peer, ...]

    def host(self, name: str) -> Host:
        """A host by name. Raises KeyError."""
        for host in self.hosts:
            if host.name == name:
                return host
        raise KeyError(name)

    def guest(self, name: str) -> Guest:
        """A guest by name. Raises KeyError."""
        for guest in self.guests:
            if guest.name == name:
                return guest
        raise KeyError(name)

    def gateway_of(self, guest: Guest) -> Host:
        """The host whose public address a guest shares."""
        return self.host(self.host(guest.host).gateway)

    def network_of(self, guest: Guest) -> Network:
        """The network that a guest is in."""
        return self.host(guest.host).network(guest.network)

    def guests_at(self, host: Host) -> tuple[Guest, ...]:
        """The guests that run on a host."""
        return tuple(guest for guest in self.guests if guest.host == host.name)

    def guests_through(self, host: Host) -> tuple[Guest, ...]:
        """The guests whose traffic passes a host: its own, and those of the hosts behind it."""
        return tuple(guest for guest in self.guests if host.name in (guest.host, self.host(guest.host).gateway))

    def hosts_behind(self, host: Host) -> tuple[Host, ...]:
        """The hosts that share this one's public address."""
        return tuple(other for other in self.hosts if other.behind == host.name)

    def with_role(self, role: Role) -> tuple[Guest, ...]:
        """The guests that have a role."""
        return tuple(guest for guest in self.guests if role in guest.roles)

    def front_of(self, gateway: Host) -> Guest | None:
        """The guest that is the front of a gateway host, None when the host does it itself."""
        return next((guest for guest in self.guests_through(gateway) if "front" in guest.roles), None)

    @property
    def guest_networks(self) -> tuple[IPv4Network, ...]:
        """Every network of guests, of all hosts."""
        return tuple(network.cidr for host in self.hosts for network in host.networks)

    @property
    def catalog_service(self) -> tuple[Service, IPv4Address, int] | None:
        """The VO's catalog: the service, the public address and the port at which everybody reaches it."""
        for guest in self.with_role("catalog"):
            own, gateway = guest.service("catalog"), self.gateway_of(guest)
            if own is not None and gateway.public is not None and self.catalog == self.name:
                return own, gateway.public, gateway.front_port
        for peer in self.peers:
            for far in peer.guests:
                theirs = far.service("catalog")
                if theirs is not None and peer.site == self.catalog:
                    return theirs, peer.public, peer.front_port
        return None


def service(role: ServiceRole, guest: str, *, site: str, domain: str) -> Service:
    """The service that a guest's role makes."""
    return Service(role=role, guest=guest, name=f"{role}.{guest}.{domain}", element=f"{site}-{guest}")


def mac_of(site: str, guest: str, hypervisor: str) -> str:
    """A MAC address that stays the same for a guest of a site on a kind of hypervisor (locally unique by hash)."""
    digest = hashlib.sha256(f"{site}/{guest}".encode()).digest()
    return _MAC_PREFIX[hypervisor] + "".join(f":{byte:02x}" for byte in digest[:3])


def uuid_of(site: str, guest: str) -> str:
    """The UUID of a guest, the same wherever it runs."""
    return str(uuid.uuid5(_NAMESPACE, f"{site}/{guest}"))


def resolve(file: SiteFile) -> Site:
    """Turn a file that `check.problems` found nothing wrong with into a Site."""
    hosts = tuple(_host(file, number) for number in range(len(file.hosts)))
    known = {host.name: host for host in hosts}
    return Site(
        name=file.site,
        title=file.title or file.site,
        organisation=file.organisation,
        domain=file.domain,
        admins=file.admins,
        admin_keys=file.admin_keys,
        operators=file.operators,
        resolvers=file.resolvers,
        time=file.time,
        updates=tuple((table.address, table.port) for table in file.updates),
        catalog=catalog_site(file),
        copies=file.copies,
        hosts=hosts,
        guests=tuple(_guest(file, table, known[table.host]) for table in file.guests),
        peers=tuple(_peer(file, number) for number in range(len(file.peers))),
    )


def catalog_site(file: SiteFile) -> str | None:
    """The site of the VO's catalog: the one named, else our own if it has one, else the peer that has."""
    if file.catalog is not None:
        return file.catalog
    if any("catalog" in guest.roles for guest in file.guests):
        return file.site
    theirs = [peer.site for peer in file.peers for guest in peer.guests if "catalog" in guest.roles]
    return theirs[0] if len(set(theirs)) == 1 else None


def _host(file: SiteFile, number: int) -> Host:
    table = file.hosts[number]
    hypervisor = table.hypervisor or file.hypervisor
    uplink, inner, lan = table.uplink, table.inner, table.lan
    networks = tuple(
        Network(each.name, each.bridge, each.cidr, each.gateway or each.cidr.network_address + 1, each.zone)
        for each in table.networks
    )
    return Host(
        name=table.name,
        hypervisor=hypervisor.kind,
        guest_type=hypervisor.guest_type,
        uplink=Wire(uplink.interface, uplink.address, uplink.gateway) if uplink else None,
        public=(uplink.public or uplink.address.ip) if uplink else None,
        inner=Wire(inner.interface, inner.address) if inner else None,
        lan=Wire(lan.interface, lan.address, lan.gateway, lan.networks) if lan else None,
        behind=table.behind,
        networks=networks,
        firewall=table.firewall,
        front_port=table.front,
        ssh_port=table.ssh,
        others=table.others,
        images=table.images,
    )


def _guest(file: SiteFile, table: GuestTable, host: Host) -> Guest:
    roles = tuple(dict.fromkeys(table.roles))
    dimse = table.dimse
    return Guest(
        name=table.name,
        host=host.name,
        network=table.network or host.networks[0].name,
        address=table.address,
        roles=roles,
        services=_services(roles, table.name, site=file.site, domain=file.domain),
        mac=mac_of(file.site, table.name, host.hypervisor),
        uuid=uuid_of(file.site, table.name),
        memory=table.memory,
        cpus=table.cpus,
        disk=table.disk,
        data=table.data,
        dimse=Dimse(dimse.aet, dimse.port, dimse.tls_port, dimse.networks, dimse.aes) if dimse else None,
        gridftp=Gridftp(table.gridftp.port, table.gridftp.data) if table.gridftp else None,
        sftp=table.sftp,
        active=table.active,
        forwards=table.forwards,
        names=table.names,
        egress=table.egress,
    )


def _services(roles: tuple[Role, ...], guest: str, *, site: str, domain: str) -> tuple[Service, ...]:
    return tuple(service(role, guest, site=site, domain=domain) for role in roles if role != "front")


def _peer(file: SiteFile, number: int) -> Peer:
    table = file.peers[number]
    guests = tuple(
        PeerGuest(
            name=far.name,
            services=_services(far.roles, far.name, site=table.site, domain=table.domain),
            gridftp=Gridftp(far.gridftp.port, far.gridftp.data) if far.gridftp else None,
            sftp=far.sftp,
            active=far.active,
            stock=far.stock,
        )
        for far in table.guests
    )
    return Peer(table.site, table.domain, table.address, table.networks, table.front, guests)


def side_of(host: Host, network: IPv4Network) -> tuple[IPv4Address, ...]:
    """The address at which a host answers a network that is not the site's; none where it has neither side."""
    near = host.lan is not None and any(network.overlaps(net) for net in host.lan.reach)
    wires = (host.lan,) if near or host.uplink is None else (host.uplink,)
    return tuple(wire.ip for wire in wires if wire is not None)
