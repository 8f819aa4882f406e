"""What one host has to do: translate, admit, let out, route. Pure; the firewall's text and `verify` are made from it.

All lists are disjoint: no two rules match the same packet, so that their order never matters and a set of them can be
replaced element by element.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from dgis.deploy.flows import Door, Flows, basic_services
from dgis.deploy.topology import Guest, Host, Site, side_of
from dgis.deploy.values import PortRange, Protocol


@dataclass(frozen=True, slots=True, order=True)
class Translation:
    """Packets to `address` and `ports` go to `target`; `inside` counts for a single port, a range keeps its numbers."""

    address: IPv4Address
    protocol: Protocol
    ports: PortRange
    target: IPv4Address
    inside: PortRange
    purpose: str


@dataclass(frozen=True, slots=True, order=True)
class Permission:
    """`source` may open connections to `ports` of `target`."""

    source: IPv4Network
    target: IPv4Network
    protocol: Protocol
    ports: PortRange


@dataclass(frozen=True, slots=True)
class FrontRoute:
    """A server name of the front's port (or `ssh:`), where it leads, and who may use it."""

    name: str
    target: IPv4Address
    port: int
    sources: tuple[IPv4Network, ...]


@dataclass(frozen=True, slots=True)
class Front:
    """The shared port; `guest` names the guest that serves it, None means the host itself.

    `address` is where it runs, `called` are the host's addresses at which clients call it.
    """

    port: int
    guest: str | None
    address: IPv4Address
    called: tuple[IPv4Address, ...]
    routes: tuple[FrontRoute, ...]


@dataclass(frozen=True, slots=True)
class HostPlan:
    """All that follows for one host.

    `outer` are interfaces towards networks that are not the site's, `inner` those between its hosts, `bridges` those of
    guests. `translations` come before routing; `admitted` is towards guests, `leaving` from them, `inputs` to the host.
    `hairpins` are pairs of interfaces where an answer would not come back this way by itself. `neighbours` are the
    other hosts on the inner wire, `behind` those whose way out this one is; `others` interfaces that are not ours.
    """

    site: str
    host: Host
    outer: tuple[str, ...]
    inner: tuple[str, ...]
    bridges: tuple[str, ...]
    guest_networks: tuple[IPv4Network, ...]
    neighbours: tuple[IPv4Address, ...]
    behind: tuple[IPv4Address, ...]
    others: tuple[str, ...]
    translations: tuple[Translation, ...]
    admitted: tuple[Permission, ...]
    leaving: tuple[Permission, ...]
    inputs: tuple[Permission, ...]
    hairpins: tuple[tuple[str, str], ...]
    front: Front | None


def plan(site: Site, flows: Flows, host: Host, *, running: frozenset[str] | None = None) -> HostPlan:
    """Work out the plan of one host. With `running` the doors of guests that are not in it stay shut."""
    doors = tuple(door for door in flows.doors if running is None or door.guest in running)
    inner = (host.inner.interface,) if host.inner is not None else ()
    bridges = tuple(network.bridge for network in host.networks)
    here = {guest.name for guest in site.guests_through(host)}
    shared = _front(site, site.host(host.gateway), doors)
    if shared is not None and shared.guest is not None and running is not None and shared.guest not in running:
        shared = None
    front = shared if host.behind is None else None
    return HostPlan(
        site=site.name,
        host=host,
        outer=tuple(dict.fromkeys(wire.interface for wire in (host.uplink, host.lan) if wire is not None)),
        inner=inner,
        bridges=bridges,
        guest_networks=tuple(sorted(site.guest_networks)),
        neighbours=_neighbours(site, host),
        behind=_behind(site, host),
        others=host.others,
        translations=tuple(sorted(_translations(site, host, doors, front))),
        admitted=disjoint(_admitted(site, host, doors, shared, here)),
        leaving=disjoint(_leaving(site, host, flows, here)),
        inputs=disjoint(_inputs(site, host, doors, front)),
        hairpins=tuple((name, name) for name in (*bridges, *inner)),
        front=front,
    )


def _neighbours(site: Site, host: Host) -> tuple[IPv4Address, ...]:
    """The other hosts on the inner wire."""
    group = (host.behind or host.name,)
    others = (other for other in site.hosts if other.gateway in group and other is not host)
    return tuple(sorted(other.inner.ip for other in others if other.inner is not None))


def _behind(site: Site, host: Host) -> tuple[IPv4Address, ...]:
    """The hosts that go out through this one."""
    return tuple(sorted(other.inner.ip for other in site.hosts_behind(host) if other.inner is not None))


def _front(site: Site, host: Host, doors: tuple[Door, ...]) -> Front | None:
    routes: dict[str, FrontRoute] = {}
    called: dict[IPv4Address, None] = {}
    for door in doors:
        if door.host == host.name and door.route != "dnat":
            sources = _sources(site, door)
            if any(_of_guests(site, source) for source in sources):
                sources += _masks(site, host)
            before = routes[door.name].sources if door.name in routes else ()
            target = site.guest(door.guest).address
            routes[door.name] = FrontRoute(door.name, target, door.inside.first, widest((*before, *sources)))
            called[door.address] = None
    if not routes or host.uplink is None:
        return None
    guest = site.front_of(host)
    address = guest.address if guest is not None else host.uplink.ip
    return Front(host.front_port, guest.name if guest else None, address, tuple(called), tuple(routes.values()))


def _sources(site: Site, door: Door) -> tuple[IPv4Network, ...]:
    """Where the clients of a door come from, as its host sees them.

    A guest of another gateway comes by that one's addresses: which of them shows depends on the way between the two.
    """
    found = [client.network for client in door.clients if client.side != "site"]
    own = {client.network for client in door.clients if client.side == "site"}
    for guest in (guest for guest in site.guests if IPv4Network(guest.address) in own):
        gateway = site.gateway_of(guest)
        if gateway.name == site.host(door.host).gateway:
            found.append(IPv4Network(guest.address))
        elif gateway.uplink is not None and gateway.public is not None:
            found += [IPv4Network(gateway.uplink.ip), IPv4Network(gateway.public)]
    return tuple(found)


def _masks(site: Site, host: Host) -> tuple[IPv4Network, ...]:
    """The addresses that hide a guest of ours which comes by the public address to a front in a guest."""
    if site.front_of(host) is None:
        return ()
    own = [network.gateway for network in host.networks] + ([host.inner.ip] if host.inner else [])
    return tuple(IPv4Network(address) for address in own)


def _translations(site: Site, host: Host, doors: tuple[Door, ...], front: Front | None) -> Iterator[Translation]:
    for door in doors:
        if door.host == host.name and door.route == "dnat":
            target = site.guest(door.guest).address
            for address in dict.fromkeys((door.address, door.public)):
                yield Translation(address, door.protocol, door.ports, target, door.inside, door.purpose)
    if front is None or host.uplink is None or host.public is None:
        return
    port, purpose = PortRange.one(front.port), "HTTPS and SFTP by name"
    if front.guest is not None:
        aliases = {host.public} if host.uplink.ip in front.called else set()
        for address in sorted({*front.called, *aliases}):
            yield Translation(address, "tcp", port, front.address, port, purpose)
    elif host.public != host.uplink.ip:
        # On the host itself only its other, public address needs a translation
        yield Translation(host.public, "tcp", port, host.uplink.ip, port, purpose)


def _admitted(
    site: Site, host: Host, doors: tuple[Door, ...], shared: Front | None, here: set[str]
) -> Iterator[Permission]:
    """Ways to guests `here`; `shared` is the front of the gateway, which may be in a guest of a host behind it."""
    for door in doors:
        guest = site.guest(door.guest)
        target = IPv4Network(guest.address)
        if guest.name not in here:
            continue
        if door.route == "dnat":
            gateways = _gateways(site, host, guest) if door.host != host.name else ()
            for source in (*_sources(site, door), *gateways):
                yield Permission(source, target, door.protocol, door.inside)
        else:
            for source in _front_sources(site, host, guest):
                yield Permission(source, target, "tcp", door.inside)
    if shared is not None and shared.guest in here:
        gateways = _gateways(site, host, site.guest(shared.guest))
        for source in (*_callers(site, site.host(host.gateway), shared), *gateways):
            yield Permission(source, IPv4Network(shared.address), "tcp", PortRange.one(shared.port))
    yield from _front_passes(site, host, doors)


def _callers(site: Site, gateway: Host, shared: Front) -> Iterator[IPv4Network]:
    """Who may call a front in a guest.

    It sees guests by an address that hides them all. Where that one has rights, guests that came in as anybody, or in
    some wide network, would have them, too: only those pass that a client names.
    """
    sources = [source for route in shared.routes for source in route.sources]
    hidden = [network.cidr for host in site.hosts if host.gateway == gateway.name for network in host.networks]
    hidden += [IPv4Network(address) for address in _neighbours(site, gateway)]
    masked = any(_of_guests(site, source) for source in sources)
    for source in sources:
        yield from (_without(source, hidden) if masked and not _of_guests(site, source) else (source,))


def _of_guests(site: Site, network: IPv4Network) -> bool:
    """Whether it is a guest of this site, or several."""
    return any(network.subnet_of(guests) for guests in site.guest_networks)


def _without(network: IPv4Network, holes: Iterable[IPv4Network]) -> tuple[IPv4Network, ...]:
    """A network without those that lie within it, as several ones."""
    left = [network]
    for hole in widest(each for each in holes if each.subnet_of(network)):
        left = [part for each in left for part in (each.address_exclude(hole) if hole.subnet_of(each) else (each,))]
    return tuple(left)


def _gateways(site: Site, host: Host, guest: Guest) -> tuple[IPv4Network, ...]:
    """On a host behind: its gateway, which stands for itself and for guests whose way back it has to keep.

    What the gateway itself sends to one of its own addresses has that one as its source, too.
    """
    gateway = site.gateway_of(guest)
    if host.behind is None:
        return ()
    return tuple(IPv4Network(wire.ip) for wire in gateway.wires)


def _front_sources(site: Site, host: Host, guest: Guest) -> tuple[IPv4Network, ...]:
    """From where the front connects to a guest: a front guest, or the gateway itself."""
    front = site.front_of(site.gateway_of(guest))
    if front is None:
        return _gateways(site, host, guest)
    return (IPv4Network(front.address),) if front.name != guest.name else ()


def _front_passes(site: Site, host: Host, doors: tuple[Door, ...]) -> Iterator[Permission]:
    """The first half of the way, on the host of a front guest whose targets run elsewhere."""
    for door in doors:
        front, guest = site.front_of(site.host(door.host)), site.guest(door.guest)
        if front is not None and front.host == host.name and door.route != "dnat" and guest.host != host.name:
            yield Permission(IPv4Network(front.address), IPv4Network(guest.address), "tcp", door.inside)


def _leaving(site: Site, host: Host, flows: Flows, here: set[str]) -> Iterator[Permission]:
    """What guests connect to beyond the site's guests; the host's own doors are no way out."""
    own = {IPv4Network(wire.ip) for wire in host.wires} | ({IPv4Network(host.public)} if host.public else set())
    for way in flows.exits:
        if way.guest in here and way.target not in own:
            if any(way.target.subnet_of(network) for network in site.guest_networks):
                continue
            guest = site.guest(way.guest)
            for target in _outward(site, guest, way.target):
                yield Permission(IPv4Network(guest.address), target, way.protocol, way.ports)
    for address in _behind(site, host):
        for service in basic_services(site):
            yield Permission(IPv4Network(address), service.target, service.protocol, service.ports)


def _outward(site: Site, guest: Guest, target: IPv4Network) -> tuple[IPv4Network, ...]:
    """A network that a guest may connect to: anywhere, for one in the DMZ, does not mean the institution's LANs."""
    if site.network_of(guest).zone != "dmz":
        return (target,)
    lans = (net for host in site.hosts if host.lan is not None for net in host.lan.reach)
    return _without(target, (lan for lan in lans if lan != target))


def _inputs(site: Site, host: Host, doors: tuple[Door, ...], front: Front | None) -> Iterator[Permission]:
    """What reaches the host itself: administrators, by the side that leads back to them, and the front's clients."""
    ssh = PortRange.one(host.ssh_port)
    for network in site.admins:
        for target in side_of(host, network):
            yield Permission(network, IPv4Network(target), "tcp", ssh)
    gateway = site.host(host.gateway)
    if host.lan is None and host.inner is not None and gateway.inner is not None and gateway is not host:
        # no other way in for those who administer it
        yield Permission(IPv4Network(gateway.inner.ip), IPv4Network(host.inner.ip), "tcp", ssh)
    if front is not None and front.guest is None:
        for door in doors:
            if door.host == host.name and door.route != "dnat":
                for source in _sources(site, door):
                    yield Permission(source, IPv4Network(door.address), "tcp", PortRange.one(front.port))


def widest(networks: Iterable[IPv4Network]) -> tuple[IPv4Network, ...]:
    """The networks without those that lie within another one, in order."""
    kept: list[IPv4Network] = []
    for network in sorted(set(networks), key=lambda net: (net.prefixlen, net)):
        if not any(network.subnet_of(other) for other in kept):
            kept.append(network)
    return tuple(sorted(kept))


def disjoint(permissions: Iterable[Permission]) -> tuple[Permission, ...]:
    """The same permissions as a sorted list in which no two overlap, however many packets both would match.

    Wants one side of all of them, source or target, to be single addresses (or all the same): networks are nested or
    strangers, so per such address the port ranges are cut at every border, the widest networks kept, and equal
    neighbours joined again.
    """
    left = list(dict.fromkeys(permissions))
    by_source = all(each.source.prefixlen == 32 for each in left) and not _single(left)
    groups: dict[tuple[IPv4Network, Protocol], list[Permission]] = {}
    for each in left:
        groups.setdefault((each.source if by_source else each.target, each.protocol), []).append(each)
    merged = (each for key, group in groups.items() for each in _by_ports(key, group, by_source=by_source))
    return tuple(sorted(merged))


def _single(permissions: list[Permission]) -> bool:
    """Whether every target is a single address, or all are the same."""
    return all(each.target.prefixlen == 32 for each in permissions) or len({each.target for each in permissions}) <= 1


def _by_ports(key: tuple[IPv4Network, Protocol], group: list[Permission], *, by_source: bool) -> Iterator[Permission]:
    borders = sorted({each.ports.first for each in group} | {each.ports.last + 1 for each in group})
    slices: list[tuple[PortRange, tuple[IPv4Network, ...]]] = []
    for first, after in zip(borders, borders[1:], strict=False):
        ports = PortRange(first, after - 1)
        matching = [each for each in group if each.ports.overlaps(ports)]
        networks = widest(each.target if by_source else each.source for each in matching)
        if slices and networks and slices[-1][1] == networks and slices[-1][0].last + 1 == first:
            slices[-1] = (PortRange(slices[-1][0].first, ports.last), networks)
        elif networks:
            slices.append((ports, networks))
    fixed, protocol = key
    for ports, networks in slices:
        for network in networks:
            source, target = (fixed, network) if by_source else (network, fixed)
            yield Permission(source, target, protocol, ports)
