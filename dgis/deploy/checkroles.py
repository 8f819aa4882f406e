"""Roles, zones, catalogs and ports of a site file: whether its services can work, and nothing clashes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network

from dgis.deploy.model import GuestTable, HostTable, NetworkTable, SiteFile
from dgis.deploy.sitefile import Loc
from dgis.deploy.topology import DIMSE_PORT, DIMSE_TLS_PORT, HTTPS_PORTS, SFTP_PORT, catalog_site
from dgis.deploy.values import PortRange, Protocol

Problem = tuple[Loc, str]
_PRIVILEGED = 1024  # services run as ordinary users


def problems(file: SiteFile) -> Iterator[Problem]:
    """Everything that is wrong with roles and ports; wants references that hold."""
    yield from _people(file)
    yield from _catalog(file)
    yield from _once(file)
    yield from _neighbours(file)
    yield from _dimse(file)
    for number, guest in enumerate(file.guests):
        yield from _ports_of(number, guest)
        yield from _facing(file, number, guest)
        yield from _own_ports(number, guest)
        yield from _reachable(file, number, guest)
    yield from _clashes(file)
    yield from _names_twice(file)


def _people(file: SiteFile) -> Iterator[Problem]:
    seen: dict[str, str] = {}
    for number, peer in enumerate(file.peers):
        other = seen.setdefault(str(peer.address), peer.site)
        if other != peer.site:
            yield ("peers", number, "address"), f"is the public address of {other}: two sites cannot share one"


def _catalog(file: SiteFile) -> Iterator[Problem]:
    own = [number for number, guest in enumerate(file.guests) if "catalog" in guest.roles]
    theirs = [peer.site for peer in file.peers if any("catalog" in far.roles for far in peer.guests)]
    for number in own[1:]:
        yield ("guests", number, "roles"), "a site has one catalog: leave the role out here"
    site = catalog_site(file)
    if any("dgis" in guest.roles for guest in file.guests) and site is None:
        if theirs:
            yield ("catalog",), f"several peers have one: name the VO's, catalog: {' or '.join(theirs)}"
        else:
            yield ("guests",), "no catalog anywhere: give a guest the role catalog, or name a peer's guest that has it"
    elif file.catalog is not None and file.catalog not in (*theirs, *([file.site] if own else [])):
        able = ", ".join((*theirs, *([file.site] if own else []))) or "none here"
        yield ("catalog",), f"no such site with the role catalog; write one of: {able}"


def _once(file: SiteFile) -> Iterator[Problem]:
    """A gateway has one front, and SSH on the shared port leads to one guest: SSH shows no name."""
    for role in ("front", "sftp"):
        holder: dict[str, str] = {}
        for number, guest in enumerate(file.guests):
            gateway = _gateway(file, guest)
            if not (guest.sftp == gateway.front if role == "sftp" else role in guest.roles):
                continue
            other = holder.setdefault(gateway.name, guest.name)
            if other != guest.name and role == "sftp":
                text = f"SFTP on the port of HTTPS leads to {other} already: give this guest its own, like 2222"
                yield ("guests", number, "sftp"), text
            elif other != guest.name:
                text = f"{other} is the front of {gateway.name} already: leave front out here"
                yield ("guests", number, "roles"), text


def _neighbours(file: SiteFile) -> Iterator[Problem]:
    """On a bridge guests reach one another past the host's rules: what is not ours does not sit beside services."""
    ours: dict[tuple[str, str], str] = {}
    for guest in file.guests:
        if guest.roles:
            ours.setdefault((guest.host, _network(file, guest).name), guest.name)
    for number, guest in enumerate(file.guests):
        network = _network(file, guest).name
        if not guest.roles and (guest.host, network) in ours:
            text = (
                f"has no roles and shares the network {network} with {ours[guest.host, network]}, which it would reach"
            )
            yield ("guests", number, "network"), f"{text} past every rule: give other projects a network of their own"


def _dimse(file: SiteFile) -> Iterator[Problem]:
    titles: dict[str, str] = {}
    for number, guest in enumerate(file.guests):
        if guest.dimse is None:
            continue
        other = titles.setdefault(guest.dimse.aet, guest.name)
        if other != guest.name:
            text = f"is the AE title of {other}, too: viewers could not tell them apart"
            yield ("guests", number, "dimse", "aet"), text
        if guest.dimse.port == guest.dimse.tls_port:
            yield ("guests", number, "dimse", "tls_port"), "plain and TLS need ports of their own: write another one"


def _ports_of(number: int, guest: GuestTable) -> Iterator[Problem]:
    loc: Loc = ("guests", number)
    inside: list[tuple[Loc, PortRange]] = []
    if guest.gridftp is not None:
        inside += [((*loc, "gridftp", "port"), PortRange.one(guest.gridftp.port))]
        inside += [((*loc, "gridftp", "data"), guest.gridftp.data)]
    if guest.active is not None:
        inside += [((*loc, "active"), guest.active)]
    for place, ports in inside:
        if ports.first < _PRIVILEGED:
            yield place, f"services listen without privileges: take ports from {_PRIVILEGED} on"
        for port, what in _fixed(guest).items():
            if port in ports:
                yield place, f"port {port} is this guest's {what}: take others"
    for number_of, forward in enumerate(guest.forwards):
        target = forward.guest or forward.public
        if forward.public.count > 1 and target != forward.public:
            text = f"a range keeps its numbers: leave guest out, or write {forward.public}"
            yield (*loc, "forwards", number_of, "guest"), text
        elif target.count != forward.public.count:
            yield (*loc, "forwards", number_of, "guest"), "one public port leads to one port: write a single one"
    for count in (n for n, forward in enumerate(guest.forwards) if forward.public.count > 20000):
        yield (*loc, "forwards", count, "public"), "that is a third of all ports: write the ones that are needed"


def _fixed(guest: GuestTable) -> dict[int, str]:
    """The ports at which services listen in a guest, whatever they are outside."""
    ports = {HTTPS_PORTS[role]: "HTTPS" for role in guest.roles if role in HTTPS_PORTS}
    ports |= {SFTP_PORT: "SFTP"} if guest.sftp is not None else {}
    if guest.dimse is not None:
        ports |= {DIMSE_PORT: "DIMSE"} | ({DIMSE_TLS_PORT: "DICOM TLS"} if guest.dimse.tls_port is not None else {})
    return ports


def _facing(file: SiteFile, number: int, guest: GuestTable) -> Iterator[Problem]:
    """Zones: who is inside may not face out; who is in the DMZ may not reach into the institution."""
    zone, loc = _network(file, guest).zone, ("guests", number)
    if zone == "inside":
        for key in ("forwards", "names", "active"):
            if getattr(guest, key):
                yield (*loc, key), "this guest is in a network inside: put it into one of zone dmz or open to face out"
        for role in ("catalog", "storage", "front"):
            if role in guest.roles and (file.peers or role == "front"):
                text = f"the role {role} faces other sites, but this network is inside: move it to zone dmz or open"
                yield (*loc, "roles"), text
    lans = [net for host in file.hosts if host.lan for net in (host.lan.address.network, *host.lan.networks)]
    for place, way in enumerate(guest.egress if zone == "dmz" else ()):
        if any(way.to.subnet_of(net) for net in lans):
            text = "is the institution's own, and guests in the DMZ may not reach in: leave it out, or use zone open"
            yield (*loc, "egress", place, "to"), text
    if zone == "dmz" and guest.dimse is not None:
        for place, entity in enumerate(guest.dimse.aes):
            if entity.host is not None:
                text = (
                    "C-MOVE connects to this AE, and guests in the DMZ may not reach in: put the DGIS into a network "
                    "of zone inside or open, or leave host and port out (C-GET needs neither)"
                )
                yield (*loc, "dimse", "aes", place, "host"), text


def _own_ports(number: int, guest: GuestTable) -> Iterator[Problem]:
    """No forward and no name leads to a service of ours: who may come there follows from the roles."""
    own = set(HTTPS_PORTS.values()) | {DIMSE_PORT, DIMSE_TLS_PORT, SFTP_PORT}
    own |= {guest.gridftp.port} if guest.gridftp is not None else set()
    if not guest.roles:
        return
    for key, each in (("forwards", "guest"), ("names", "port")):
        for place, entry in enumerate(getattr(guest, key)):
            inside = (entry.guest or entry.public) if key == "forwards" else PortRange.one(entry.port)
            taken = sorted(port for port in own if port in inside)
            if taken:
                text = f"port {taken[0]} is a service's of this guest: who may come there follows from its roles"
                yield ("guests", number, key, place, each), f"{text}; leave this out"


def _reachable(file: SiteFile, number: int, guest: GuestTable) -> Iterator[Problem]:
    """Clients that would get no answer: a host behind answers its own LAN directly, not by the gateway they came by."""
    host, gateway = _host(file, guest), _gateway(file, guest)
    lans = (host.lan.address.network, *host.lan.networks) if host.lan is not None and host is not gateway else ()
    for place, forward in enumerate(guest.forwards):
        for each, network in enumerate(forward.sources):
            if any(network.subnet_of(lan) for lan in lans):
                text = (
                    f"these are in the LAN of {host.name}, which would answer them past {gateway.name}: leave them out"
                )
                yield (
                    ("guests", number, "forwards", place, "from", each),
                    f"{text}, or move this guest to {gateway.name}",
                )
    for place, entry in enumerate(guest.names if "front" in guest.roles else ()):
        if entry.port == gateway.front:
            text = "is the front itself, which would call itself for ever: write the port of a service"
            yield ("guests", number, "names", place, "port"), text


@dataclass(frozen=True, slots=True)
class _Claim:
    """Ports of an address that somebody wants."""

    loc: Loc
    owner: str
    protocol: Protocol
    ports: PortRange


def _clashes(file: SiteFile) -> Iterator[Problem]:
    """No two doors of one address want the same port."""
    claims: dict[str, list[_Claim]] = {}
    for number, host in enumerate(file.hosts):
        ssh = _Claim(("hosts",), f"ssh of the host {host.name}", "tcp", PortRange.one(host.ssh))
        front = _Claim(("hosts",), "the front", "tcp", PortRange.one(host.front))
        claims |= {f"{host.name} outside": [ssh, front], f"{host.name} lan": [ssh]}
        if host.uplink is not None and host.ssh == host.front:
            yield ("hosts", number, "ssh"), "is the port of HTTPS and SFTP, too: give SSH to the host another one"
    for number, guest in enumerate(file.guests):
        gateway = _gateway(file, guest)
        for place, claim in _claimed(number, guest, gateway, _host(file, guest)):
            for other in claims.setdefault(place, []):
                if claim.protocol == other.protocol and claim.ports.overlaps(other.ports) and claim.loc != other.loc:
                    yield claim.loc, f"port {claim.ports} is taken by {other.owner} ({other.ports}): choose another"
            claims[place].append(claim)


def _claimed(number: int, guest: GuestTable, gateway: HostTable, host: HostTable) -> Iterator[tuple[str, _Claim]]:
    loc, outside = ("guests", number), f"{gateway.name} outside"

    def claim(place: Loc, ports: PortRange, what: str, protocol: Protocol = "tcp") -> _Claim:
        return _Claim((*loc, *place), f"{what} of {guest.name}", protocol, ports)

    if guest.gridftp is not None:
        yield outside, claim(("gridftp", "port"), PortRange.one(guest.gridftp.port), "gridftp")
        yield outside, claim(("gridftp", "data"), guest.gridftp.data, "gridftp data")
    if guest.sftp is not None and guest.sftp != gateway.front:
        yield outside, claim(("sftp",), PortRange.one(guest.sftp), "sftp")
    if guest.active is not None:
        yield outside, claim(("active",), guest.active, "active")
    if guest.dimse is not None:
        places = _sides(gateway, guest.dimse.networks) if host.lan is None else (f"{host.name} lan",)
        for key in ("port", "tls_port"):
            port = getattr(guest.dimse, key)
            if port is not None:
                yield from ((place, claim(("dimse", key), PortRange.one(port), "dimse")) for place in places)
    for each, forward in enumerate(guest.forwards):
        made = claim(("forwards", each, "public"), forward.public, "a forward", forward.protocol)
        yield from ((place, made) for place in _sides(gateway, forward.sources))


def _sides(gateway: HostTable, clients: tuple[IPv4Network, ...]) -> tuple[str, ...]:
    """Where a translated door of the gateway is: at its LAN's address, too, when clients come by that (`flows`)."""
    lans = (gateway.lan.address.network, *gateway.lan.networks) if gateway.lan is not None else ()
    near = any(network.subnet_of(lan) for network in clients for lan in lans)
    return (f"{gateway.name} outside", *((f"{gateway.name} lan",) if near else ()))


def _host(file: SiteFile, guest: GuestTable) -> HostTable:
    return next(host for host in file.hosts if host.name == guest.host)


def _gateway(file: SiteFile, guest: GuestTable) -> HostTable:
    host = _host(file, guest)
    return next(other for other in file.hosts if other.name == (host.behind or host.name))


def _network(file: SiteFile, guest: GuestTable) -> NetworkTable:
    return next(each for each in _host(file, guest).networks if guest.network in (None, each.name))


def _names_twice(file: SiteFile) -> Iterator[Problem]:
    """Two guests that claim one server name: the front could lead to one of them only."""
    seen: dict[str, str] = {}
    derived = {f"{role}.{guest.name}.{file.domain}": guest.name for guest in file.guests for role in guest.roles}
    for number, guest in enumerate(file.guests):
        for place, entry in enumerate(guest.names):
            other = derived.get(entry.name) or seen.get(entry.name)
            if other is not None:
                yield ("guests", number, "names", place, "name"), f"is a name of {other} already: choose another"
            seen[entry.name] = guest.name
