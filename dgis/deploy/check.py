"""Does a site file fit together? What one table cannot know about the others. Pure: findings with their lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from dgis.deploy import checkplaces, checkroles, sitefile, topology
from dgis.deploy.errors import Finding, SiteFileError
from dgis.deploy.model import HostTable, SiteFile
from dgis.deploy.sitefile import Loc, Source
from dgis.deploy.topology import Peer, Site

Problem = tuple[Loc, str]
_LONGEST_NAME = 64  # of a certificate's common name (RFC 5280, ub-common-name)


def load(path: Path) -> Site:
    """Read, check and resolve a site file. Raises SiteFileError with everything that is wrong."""
    file, source = sitefile.read(path)
    return resolved(file, source)


def resolved(file: SiteFile, source: Source) -> Site:
    """Check what was read and resolve it. Raises SiteFileError."""
    findings = sorted(problems(file, source), key=lambda finding: finding.line)
    if findings:
        raise SiteFileError(tuple(findings))
    return topology.resolve(file)


def problems(file: SiteFile, source: Source) -> tuple[Finding, ...]:
    """Everything that does not fit. References come first: where one leads nowhere the rest is not asked."""
    found = [*_names(file), *checkplaces.names(file), *_references(file)]
    if not found:
        found = [*_hosts(file), *_wires(file), *_networks(file), *_addresses(file)]
        found += [*checkplaces.problems(file), *checkroles.problems(file)]
    return tuple(source.finding(loc, text) for loc, text in found)


def contradictions(site: Site, others: Iterable[Site], source: Source) -> tuple[Finding, ...]:
    """What a file says of its peers while the peers' own files say otherwise."""
    known = {other.name: other for other in others if other.name != site.name}
    return tuple(
        source.finding(("peers", number), text)
        for number, peer in enumerate(site.peers)
        if peer.site in known
        for text in _differences(site, peer, known[peer.site])
    )


def _differences(site: Site, peer: Peer, other: Site) -> Iterator[str]:
    if site.name not in {each.site for each in other.peers}:
        yield f"its own file does not name {site.name} as a peer: its doors are shut to us"
    publics = sorted({host.public for host in other.hosts if host.public is not None})
    if peer.public not in publics:
        yield f"its own file has the public address {', '.join(map(str, publics))}, not {peer.public}"
    if peer.domain != other.domain:
        yield f"its own file has the domain {other.domain}, not {peer.domain}"
    for far in peer.guests:
        own = next((guest for guest in other.guests if guest.name == far.name), None)
        if own is None:
            yield f"its own file has no guest {far.name}"
        elif (far.gridftp, far.sftp, far.active) != (own.gridftp, own.sftp, own.active):
            yield f"its own file has other ports for the guest {far.name}"
        elif not {each.role for each in far.services} <= {each.role for each in own.services}:
            yield f"its own file has other roles for the guest {far.name}"


def _names(file: SiteFile) -> Iterator[Problem]:
    yield from _twice((("hosts", n), host.name) for n, host in enumerate(file.hosts))
    yield from _twice((("guests", n), guest.name) for n, guest in enumerate(file.guests))
    yield from _twice((("peers", n), peer.site) for n, peer in enumerate(file.peers))
    for number, host in enumerate(file.hosts):
        place: Loc = ("hosts", number, "networks")
        yield from _twice(((*place, n, "name"), network.name) for n, network in enumerate(host.networks))
        yield from _twice(((*place, n, "bridge"), network.bridge) for n, network in enumerate(host.networks))
    for number, peer in enumerate(file.peers):
        if peer.site == file.site:
            yield ("peers", number, "site"), "a site is no peer of itself: leave it out"
        yield from _twice((("peers", number, "guests", n), far.name) for n, far in enumerate(peer.guests))
    for number, guest in enumerate(file.guests):
        longest = max((len(f"{role}.{guest.name}.{file.domain}") for role in guest.roles), default=0)
        if longest > _LONGEST_NAME:
            text = f"a service name ROLE.{guest.name}.{file.domain} has {longest} characters; certificates take 64"
            yield ("guests", number, "name"), f"{text}: shorten this name or the domain"


def _twice(named: Iterable[tuple[Loc, str]]) -> Iterator[Problem]:
    seen: dict[str, Loc] = {}
    for loc, name in named:
        if name in seen:
            yield loc, f"{name} stands here twice: give each its own name"
        seen.setdefault(name, loc)


def _references(file: SiteFile) -> Iterator[Problem]:
    hosts = {host.name: host for host in file.hosts}
    for number, host in enumerate(file.hosts):
        if host.behind is not None and (host.behind not in hosts or hosts[host.behind].uplink is None):
            able = ", ".join(other.name for other in file.hosts if other.uplink is not None) or "none here"
            yield ("hosts", number, "behind"), f"write the name of a host with an uplink: {able}"
    for number, guest in enumerate(file.guests):
        if guest.host not in hosts:
            yield ("guests", number, "host"), f"no such host; write one of {', '.join(hosts)}"
            continue
        names = [network.name for network in hosts[guest.host].networks]
        if guest.network is None and len(names) > 1:
            yield ("guests", number), f"name its network: one of {', '.join(names)}"
        if guest.network is not None and guest.network not in names:
            yield ("guests", number, "network"), f"{guest.host} has no such network; write one of {', '.join(names)}"


def _hosts(file: SiteFile) -> Iterator[Problem]:
    hosts = {host.name: host for host in file.hosts}
    for number, host in enumerate(file.hosts):
        gateway = hosts.get(host.behind or "")
        if gateway is not None and host.inner is not None:
            yield from _behind(number, host, gateway)
        wires = [(key, getattr(host, key)) for key in ("uplink", "inner", "lan") if getattr(host, key) is not None]
        yield from _twice(((("hosts", number, key, "interface"), wire.interface)) for key, wire in wires)
        for place, network in enumerate(host.networks):
            if any(network.bridge == wire.interface for _, wire in wires):
                text = "is an interface of this host: a bridge is a new interface, like dgisbr0"
                yield ("hosts", number, "networks", place, "bridge"), text
    publics: dict[IPv4Address, str] = {}
    for number, host in enumerate(file.hosts):
        if host.uplink is not None:
            public = host.uplink.public or host.uplink.address.ip
            other = publics.setdefault(public, host.name)
            if other != host.name:
                yield ("hosts", number, "uplink"), f"{public} is the public address of {other}: give each its own"
    for number, peer in enumerate(file.peers):
        if peer.address in publics:
            yield ("peers", number, "address"), f"is {publics[peer.address]}'s own public address: write the peer's"


def _behind(number: int, host: HostTable, gateway: HostTable) -> Iterator[Problem]:
    place: Loc = ("hosts", number, "inner")
    if gateway.inner is None:
        yield place, f"{gateway.name} has no inner: give it one in the same network"
    elif host.inner is not None and host.inner.address.network != gateway.inner.address.network:
        yield (*place, "address"), f"write an address of {gateway.inner.address.network}, like {gateway.name}'s inner"


def _wires(file: SiteFile) -> Iterator[Problem]:
    """Interfaces: an address stands once in a network, and a network is behind one interface of a host."""
    taken: dict[tuple[str, IPv4Address], str] = {}
    for number, host in enumerate(file.hosts):
        seen: list[tuple[str, IPv4Network]] = []
        for key in ("uplink", "inner", "lan"):
            wire, loc = getattr(host, key), ("hosts", number, key)
            if wire is None:
                continue
            network, own = wire.address.network, f"the {key} of {host.name}"
            # Uplinks behind firewalls of their own may be alike, and each gateway has an inner wire of its own
            where = {"uplink": host.name, "inner": host.behind or host.name, "lan": ""}[key]
            other = taken.setdefault((f"{key} {where}", wire.address.ip), own)
            if other != own:
                yield (*loc, "address"), f"is {other} already: write another address of {network}"
            for name, near in seen:
                if network.overlaps(near):
                    text = f"lies in the network of its {name} ({near}): a host has one interface in a network"
                    yield (*loc, "address"), text
            seen.append((key, network))
            gateway = getattr(wire, "gateway", None)
            if gateway is not None and (gateway not in network or gateway == wire.address.ip):
                yield (*loc, "gateway"), f"write another address of {network}"
        yield from _lan(number, host)


def _lan(number: int, host: HostTable) -> Iterator[Problem]:
    if host.lan is None:
        return
    loc: Loc = ("hosts", number, "lan", "networks")
    for place, network in enumerate(host.lan.networks):
        if network.prefixlen < checkplaces.WIDEST:
            yield (*loc, place), "the LAN is not the way to everywhere: name the networks that are behind its gateway"
        elif host.lan.gateway is None and not network.subnet_of(host.lan.address.network):
            yield loc, f"nobody leads to {network}: write the gateway of the LAN, too"


def _networks(file: SiteFile) -> Iterator[Problem]:
    """Guests' networks overlap neither one another nor anything else that has to be told from them."""
    seen: list[tuple[str, IPv4Network]] = []
    outside = [
        (f"the peer {peer.site}", network)
        for peer in file.peers
        for network in (IPv4Network(peer.address), *peer.networks)
    ]
    outside += [("admins", network) for network in file.admins]
    for host in file.hosts:
        wires = (host.uplink, host.inner, host.lan)
        outside += [(f"an interface of {host.name}", wire.address.network) for wire in wires if wire is not None]
        outside += [(f"the LAN of {host.name}", network) for network in (host.lan.networks if host.lan else ())]
    for number, host in enumerate(file.hosts):
        for place, network in enumerate(host.networks):
            loc: Loc = ("hosts", number, "networks", place, "cidr")
            if not 8 <= network.cidr.prefixlen <= 29:
                yield loc, "write a network with a prefix of 8 to 29, like 10.77.0.0/24"
                continue
            for owner, other in (*seen, *outside):
                if network.cidr.overlaps(other) and other.prefixlen > 0:
                    yield loc, f"overlaps {other} of {owner}: take a network of its own, like 10.77.{number}.0/24"
            edges = (network.cidr.network_address, network.cidr.broadcast_address)
            if network.gateway is not None and (network.gateway not in network.cidr or network.gateway in edges):
                yield (*loc[:-1], "gateway"), f"write an address of {network.cidr} that a host can have"
            seen.append((f"the network {network.name} of {host.name}", network.cidr))


def _addresses(file: SiteFile) -> Iterator[Problem]:
    hosts = {host.name: host for host in file.hosts}
    taken: dict[IPv4Address, str] = {}
    macs: dict[str, str] = {}
    for number, guest in enumerate(file.guests):
        loc: Loc = ("guests", number, "address")
        networks = hosts[guest.host].networks
        network = next(each for each in networks if guest.network in (None, each.name))
        gateway = network.gateway or network.cidr.network_address + 1
        if guest.address not in network.cidr:
            yield loc, f"write an address of {network.cidr}, the network {network.name} of {guest.host}"
        elif guest.address in (gateway, network.cidr.network_address, network.cidr.broadcast_address):
            yield loc, f"is the network's own; write another address of {network.cidr}"
        elif guest.address in taken:
            yield loc, f"is {taken[guest.address]}'s; write another address of {network.cidr}"
        taken.setdefault(guest.address, guest.name)
        mac = topology.mac_of(file.site, guest.name, "kvm")
        if mac in macs:
            yield ("guests", number, "name"), f"its MAC address would be {macs[mac]}'s: choose another name"
        macs.setdefault(mac, guest.name)
