"""A small Internet in network namespaces, for tests of sites behind NAT. Needs root; `require_netlab()` skips without.

    with Lab("nat") as lab:
        internet = lab.switch("inet")
        host, viewer = lab.node("host"), lab.node("viewer")
        internet.join(host, "pub0", "198.51.100.10/24")
        internet.join(viewer, "eth0", "198.51.100.99/24")
        guests = lab.bridge(host, "br-guest", "10.77.0.1/24")
        guest = lab.node("guest")
        guests.join(guest, "eth0", "10.77.0.11/24", via="10.77.0.1")
        host.sysctl("net.ipv4.ip_forward", 1)
        host.nft("table ip site { ... }")
        with guest.serve_echo([9442]):
            assert viewer.scan("198.51.100.10", [443, 9442]) == {443: "open", 9442: "silent"}
            assert viewer.ask("198.51.100.10", 443).node == "guest"

Each node is a namespace with a name of its own per process, so tests may run at once; its processes see the real file
system with an /etc/hosts of their own. Leaving the block kills them and removes everything; what a killed run left is
removed by the next one.

As a new namespace of this kernel has it, net.bridge.bridge-nf-call-iptables is 1 in each node: frames between guests of
one bridge meet the forward chain, as on a real host with br_netfilter. A lab leaves that to whoever makes the rules.
"""

from __future__ import annotations

import functools
import itertools
import os
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers import netns
from tests.helpers.netnode import LabError, Node, Shared, run_ip
from tests.helpers.netssh import SshAccess
from tests.helpers.netwan import Wan
from tests.helpers.wanem import Shape

_COUNTER = itertools.count(1)
_PROBE_RULES = """
table ip probe {
    map ports { type inet_service : ipv4_addr . inet_service; elements = { 80 : 192.0.2.2 . 8080 } }
    chain arriving { type nat hook prerouting priority dstnat; dnat ip to tcp dport map @ports; }
}
"""


class Lab:
    """Namespaces, links and processes that live as long as the ``with`` block."""

    def __init__(self, prefix: str) -> None:
        """``prefix``: lower-case letters and digits; it shows in the namespaces' names."""
        if not prefix.isascii() or not prefix.isalnum() or prefix != prefix.lower():
            raise ValueError("a lab's prefix has lower-case letters and digits only: it becomes part of a name")
        self._stem = f"nl-{prefix}-{os.getpid()}-{next(_COUNTER)}"
        self._ports = itertools.count(1)
        self._shared = Shared(netns.FOLDERS / self._stem, ExitStack())
        self.nodes: dict[str, Node] = {}

    def __enter__(self) -> Lab:
        netns.remove_stale()
        self.folder.mkdir()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._shared.stack.close()
        finally:
            netns.remove(node.namespace for node in self.nodes.values())
            for node in self.nodes.values():
                node.reap()
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def folder(self) -> Path:
        """Where the lab's files lie; goes with it."""
        return self._shared.folder

    @property
    def ssh(self) -> SshAccess:
        """The lab's own ssh key pair and known_hosts, for every ``Node.sshd``."""
        return self._shared.ssh

    def node(self, name: str) -> Node:
        """Make a host: a namespace with loopback up and nothing else."""
        if name in self.nodes:
            raise ValueError(f"there is a node {name} already")
        node = Node(name, f"{self._stem}-{name}", self._shared)
        # Known before it is there: a failure on the way leaves nothing behind
        self.nodes[name] = node
        node.set_up()
        return node

    def link(self, a: Node, dev_a: str, b: Node, dev_b: str) -> None:
        """Join two nodes by a cable (veth), up at both ends."""
        run_ip("link", "add", dev_a, "netns", a.namespace, "type", "veth", "peer", "name", dev_b, "netns", b.namespace)
        a.ip(f"link set {dev_a} up")
        b.ip(f"link set {dev_b} up")

    def wan(self, a: Node, dev_a: str, b: Node, dev_b: str, *, ab: Shape, ba: Shape, seed: int = 1) -> Wan:
        """Join two nodes by a slow line (``wanem``); it lasts until ``stop``, or as long as the lab."""
        line = Wan(f"{a.namespace}:{dev_a}", f"{b.namespace}:{dev_b}", ab=ab, ba=ba, seed=seed)
        self._shared.stack.callback(line.stop)
        a.ip(f"link set {dev_a} up")
        b.ip(f"link set {dev_b} up")
        return line

    def bridge(self, node: Node, dev: str, cidr: str | None = None) -> Bridge:
        """Make a bridge on a node, with an address of that node's when one is given."""
        node.ip(f"link add {dev} type bridge", f"link set {dev} up")
        if cidr is not None:
            node.address(dev, cidr)
        return Bridge(self, node, dev)

    def switch(self, name: str) -> Bridge:
        """Make a segment that many nodes join: an "Internet", with no address and no rules of its own."""
        node = self.node(name)
        node.sysctl("net.bridge.bridge-nf-call-iptables", 0)
        return self.bridge(node, "br0")

    def next_port(self) -> str:
        """Name a device at the bridge's end."""
        return f"port{next(self._ports)}"


@dataclass(frozen=True, slots=True)
class Bridge:
    """A bridge on a node, and how others come to it."""

    lab: Lab
    node: Node
    dev: str

    def join(
        self,
        node: Node,
        dev: str,
        cidr: str | None = None,
        *,
        via: str | None = None,
        line: tuple[Shape, Shape] | None = None,
    ) -> None:
        """Join a node by its ``dev``, with an address and a default route when given.

        ``line``: not by cable but by a slow line, with its shape to the bridge and back.
        """
        port = self.lab.next_port()
        if line is None:
            self.lab.link(node, dev, self.node, port)
        else:
            self.lab.wan(node, dev, self.node, port, ab=line[0], ba=line[1])
        self.attach(port)
        if cidr is not None:
            node.address(dev, cidr)
        if via is not None:
            node.route("default", via=via)

    def attach(self, dev: str) -> None:
        """Make a device that is there already (a guest's TAP) a port of the bridge."""
        self.node.ip(f"link set {dev} master {self.dev} up")


@functools.cache
def probe_netlab() -> str | None:
    """Return why no lab can be made here, or None: tries a namespace, a cable and nftables with a port map."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [f"{name} ({package})" for name, package in (("ip", "iproute2"), ("nft", "nftables")) if not _has(name)]
    if missing:
        return f"not installed (Debian package): {', '.join(missing)}"
    try:
        with Lab("probe") as lab:
            one, other = lab.node("one"), lab.node("other")
            lab.link(one, "eth0", other, "eth0")
            one.address("eth0", "192.0.2.1/24")
            one.nft(_PROBE_RULES)
    except (LabError, OSError) as error:
        return f"no network namespaces with nftables here: {error}"
    return None


def require_netlab() -> None:
    """Skip a test where no lab can be made; where DGIS_MUST_RUN names ``netlab``, fail instead."""
    reason = probe_netlab()
    if reason is None:
        return
    if "netlab" in os.environ.get("DGIS_MUST_RUN", "").split(","):
        pytest.fail(f"netlab must run here: {reason}")
    pytest.skip(f"netlab: {reason}")


def _has(program: str) -> bool:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is not None
