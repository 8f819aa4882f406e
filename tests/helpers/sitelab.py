"""Whole sites in network namespaces: what site files say stands as hosts, bridges and guests on a small Internet.

    with Lab("pilot") as lab:
        world = World(lab)
        site = world.add(check.load(path))
        world.apply("cesnet", "xen1")
        world.outside.connect("198.51.100.10", 8080)

Every uplink network is a segment of one router, which is the Internet; an uplink with another `public` address gets a
one-to-one translation there, as an institution's firewall does it.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from dgis.deploy import apply, flows, hostfiles, plan
from dgis.deploy.apply import Applied, Way
from dgis.deploy.machine import Machine
from dgis.deploy.plan import HostPlan
from dgis.deploy.topology import Guest, Host, Site, Wire
from tests.helpers.netlab import Bridge, Lab
from tests.helpers.netnode import Node

OUTSIDE = IPv4Interface("100.64.0.10/24")
# Starts the front, or has it read its files again; its pid file is the first argument, its configuration the second
_FRONT = (
    'if [ -s "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null; then kill -USR2 "$(cat "$1")"; '
    'else haproxy -W -D -S "$3" -p "$1" -f "$2"; fi'
)


@dataclass
class World:
    """A router, the sites that were added to it, and a place outside of all of them."""

    lab: Lab
    sites: dict[str, Site] = field(default_factory=dict)
    nodes: dict[tuple[str, str], Node] = field(default_factory=dict)
    segments: dict[IPv4Network, Bridge] = field(default_factory=dict)
    _translated: list[tuple[IPv4Address, IPv4Address]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.router = self.lab.node("router")
        self.router.sysctl("net.ipv4.ip_forward", 1)
        self.router.sysctl("net.bridge.bridge-nf-call-iptables", 0)
        self.outside = self.place("outside", OUTSIDE)

    def place(self, name: str, at: IPv4Interface, *, via: IPv4Address | None = None) -> Node:
        """A machine on a segment of the Internet (or of an institution, which is a segment, too)."""
        node = self.lab.node(name)
        segment = self.segment(at.network, via)
        segment.join(node, "eth0", str(at), via=str(via or at.network.network_address + 1))
        return node

    def segment(self, network: IPv4Network, gateway: IPv4Address | None = None) -> Bridge:
        """The segment of a network; the router has its first address, or the gateway's."""
        if network not in self.segments:
            address = f"{gateway or network.network_address + 1}/{network.prefixlen}"
            self.segments[network] = self.lab.bridge(self.router, f"seg{len(self.segments)}", address)
        return self.segments[network]

    def add(self, site: Site) -> Site:
        """Put up a site's hosts and guests, with nothing on them yet."""
        self.sites[site.name] = site
        for host in site.hosts:
            self._host(site, host)
        for guest in site.guests:
            self.put(site, guest)
        return site

    def node(self, site: str, name: str) -> Node:
        """A host or guest."""
        return self.nodes[site, name]

    def put(self, site: Site, guest: Guest) -> Node:
        """Start a guest where the site file has it now; it has no processes yet."""
        number = sum(1 for key in self.nodes if key[0] == site.name)
        node = self.lab.node(f"{site.name}{number}{guest.name}"[:12])
        network = site.network_of(guest)
        bridge = Bridge(self.lab, self.node(site.name, guest.host), network.bridge)
        bridge.join(node, "eth0", f"{guest.address}/{network.cidr.prefixlen}", via=str(network.gateway))
        self.nodes[site.name, guest.name] = node
        return node

    def way(self, site: str, host: str) -> Way:
        """How `dgis deploy` gets at a host: its own directory, its own front."""
        root = self.lab.folder / f"{site}-{host}"
        root.mkdir(exist_ok=True)
        machine = Machine(tuple(self.node(site, host).command([])))
        reload = ("sh", "-c", _FRONT, "sh", str(root / "pid"), str(root / "haproxy.cfg"), str(root / "master.sock"))
        return Way(machine, str(root), str(root / "front.sock"), reload)

    def options(self, site: str, host: str) -> list[str]:
        """The same as command-line options, for a `dgis deploy` that runs on the host."""
        way = self.way(site, host)
        return ["--host", host, "--root", way.root, "--socket", way.socket, "--reload", shlex.join(way.reload)]

    def plan(self, site: str, host: str) -> HostPlan:
        """The plan of a host as the site stands now."""
        here = self.sites[site]
        return plan.plan(here, flows.derive(here), here.host(host))

    def apply(self, site: str, host: str) -> Applied:
        """`dgis deploy apply` there."""
        return apply.apply(self.plan(site, host), self.way(site, host))

    def apply_all(self) -> None:
        """Everywhere."""
        for site in self.sites.values():
            for host in site.hosts:
                self.apply(site.name, host.name)

    def _host(self, site: Site, host: Host) -> None:
        node = self.lab.node(f"{site.name}{host.name}"[:12])
        self.nodes[site.name, host.name] = node
        for network in host.networks:
            self.lab.bridge(node, network.bridge, f"{network.gateway}/{network.cidr.prefixlen}")
        if host.uplink is not None:
            self._uplink(node, host, host.uplink)
        if host.lan is not None:
            self._wire(node, host.lan)
            for network in host.lan.networks:
                if network != host.lan.address.network and host.lan.gateway is not None:
                    node.route(str(network), via=str(host.lan.gateway))
        if host.inner is not None:
            self._inner(site, node, host)

    def _uplink(self, node: Node, host: Host, uplink: Wire) -> None:
        self._wire(node, uplink)
        node.route("default", via=str(uplink.gateway or uplink.address.network.network_address + 1))
        if host.public is not None and host.public != uplink.ip:
            self._translated.append((host.public, uplink.ip))
            pairs = ", ".join(f"{public} : {own}" for public, own in self._translated)
            back = ", ".join(f"{own} : {public}" for public, own in self._translated)
            self.router.nft(
                "table ip onetoone\ndelete table ip onetoone\ntable ip onetoone {\n"
                " chain pre { type nat hook prerouting priority dstnat; "
                f"dnat to ip daddr map {{ {pairs} }}; }}\n"
                " chain post { type nat hook postrouting priority srcnat; "
                f"snat to ip saddr map {{ {back} }}; }}\n}}"
            )

    def _wire(self, node: Node, wire: Wire) -> None:
        self.segment(wire.address.network, wire.gateway).join(node, wire.interface, str(wire.address))

    def _inner(self, site: Site, node: Node, host: Host) -> None:
        assert host.inner is not None
        key = IPv4Network(f"127.{len(self.sites)}.0.0/16")  # a segment of its own, not the router's
        if key not in self.segments:
            self.segments[key] = self.lab.switch(f"{site.name}inner"[:12])
        self.segments[key].join(node, host.inner.interface, str(host.inner.address))
        for destination, hop in hostfiles.routes(site, host):
            node.route("default" if destination == "0.0.0.0/0" else destination, via=hop)
