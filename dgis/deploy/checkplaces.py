"""Names and addresses of a site file that no host or guest can have, and networks that are wider than anybody's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network

from dgis.deploy.model import SiteFile
from dgis.deploy.sitefile import Loc

Problem = tuple[Loc, str]
WIDEST = 8  # the prefix of the widest network that one institution has (RFC 1918: 10.0.0.0/8)
# RFC 6890: what is nobody's address on a wire
_NOBODYS = {
    IPv4Network("0.0.0.0/8"): "this network itself",
    IPv4Network("127.0.0.0/8"): "the loopback",
    IPv4Network("224.0.0.0/4"): "multicast",
    IPv4Network("240.0.0.0/4"): "reserved, and broadcast",
}
_LINK_LOCAL = {IPv4Network("169.254.0.0/16"): "link-local"}
# What stands beside the hosts' directories in a rendered tree, and beside the guests' in one of certificates
_TREE, _CERTIFICATES = frozenset({"inventory"}), frozenset({"trust"})


def names(file: SiteFile) -> Iterator[Problem]:
    """Names that are taken: a guest is found by its own in an inventory and in a tree, and so is a host."""
    hosts = {host.name for host in file.hosts}
    for number, host in enumerate(file.hosts):
        if host.name in _TREE:
            yield ("hosts", number, "name"), f"{host.name} is a directory of the rendered tree: choose another name"
    for number, guest in enumerate(file.guests):
        if guest.name in hosts:
            yield ("guests", number, "name"), f"{guest.name} is a host of this site: give the guest another name"
        if guest.name in _CERTIFICATES:
            yield ("guests", number, "name"), f"{guest.name} is a directory of certificates: choose another name"


def problems(file: SiteFile) -> Iterator[Problem]:
    """Addresses and widths; wants references that hold."""
    yield from _hosts(file)
    yield from _publics(file)
    for number, network in enumerate(file.admins):
        if network.prefixlen < WIDEST:
            yield ("admins", number), "SSH to the hosts from anybody: name the networks of those who administer them"
    for number, peer in enumerate(file.peers):
        yield from _none(("peers", number, "address"), peer.address, _NOBODYS | _LINK_LOCAL)
        for place, network in enumerate(peer.sources):
            if network.prefixlen < WIDEST:
                text = "a site's connections do not come from everywhere: name its public addresses"
                yield ("peers", number, "sources", place), text
    for number, guest in enumerate(file.guests):
        for place, network in enumerate(guest.dimse.networks if guest.dimse is not None else ()):
            if network.prefixlen < WIDEST:
                text = "DIMSE is for the institution's own networks, never for anybody: name them"
                yield ("guests", number, "dimse", "networks", place), text


def _hosts(file: SiteFile) -> Iterator[Problem]:
    for number, host in enumerate(file.hosts):
        for key in ("uplink", "inner", "lan"):
            wire, loc = getattr(host, key), ("hosts", number, key, "address")
            if wire is None:
                continue
            network, address = wire.address.network, wire.address.ip
            yield from _none(loc, address, _NOBODYS)
            if network.prefixlen < WIDEST:
                yield loc, f"no network is that wide: write the prefix length of the {key}'s own, like {address}/24"
            elif network.prefixlen < 31 and address in (network.network_address, network.broadcast_address):
                which = "network" if address == network.network_address else "broadcast"
                yield loc, f"is the {which} address of {network}: write the host's own"
        for place, each in enumerate(host.networks):
            here: Loc = ("hosts", number, "networks", place, "cidr")
            for net, what in (_NOBODYS | _LINK_LOCAL).items():
                if each.cidr.overlaps(net) and each.cidr.prefixlen >= WIDEST:
                    yield here, f"{net} is {what}: take a private network, like 10.77.{number}.0/24"
        if ".." in host.images.split("/"):
            yield ("hosts", number, "images"), "write the directory itself, without .."


def _publics(file: SiteFile) -> Iterator[Problem]:
    """A public address is one by which others see a host: none of this site's networks has it inside."""
    inside = [
        (f"the network {network.name} of {host.name}", network.cidr) for host in file.hosts for network in host.networks
    ]
    inside += [(f"the inner of {host.name}", host.inner.address.network) for host in file.hosts if host.inner]
    for number, host in enumerate(file.hosts):
        if host.uplink is None or host.uplink.public is None:
            continue
        loc: Loc = ("hosts", number, "uplink", "public")
        yield from _none(loc, host.uplink.public, _NOBODYS | _LINK_LOCAL)
        yield from _inside(loc, host.uplink.public, inside)


def _inside(loc: Loc, address: IPv4Address, networks: Iterable[tuple[str, IPv4Network]]) -> Iterator[Problem]:
    for owner, network in networks:
        if address in network:
            yield loc, f"lies in {owner} ({network}): write the address that other institutions see"
            return


def _none(loc: Loc, address: IPv4Address, none: dict[IPv4Network, str]) -> Iterator[Problem]:
    for network, what in none.items():
        if address in network:
            yield loc, f"{address} is nobody's ({network} is {what}): write a real one"
