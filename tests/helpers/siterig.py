"""A site file in real namespaces, held against the oracle: who connects where, who answers, whom he sees.

    with Rig.of(lab, document) as rig:
        rig.enforce("nft", bridged=False)
        assert rig.mistakes() == []

Every guest and every host listens on what is declared and on what is not; every client that the file names has a
machine. A probe asks who answers: an open port that leads to the wrong guest is as wrong as a shut one.
"""

from __future__ import annotations

import os
import shutil
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from random import Random
from typing import Literal

import pytest

from dgis.deploy import hostfiles, iptables, nat, routes, topology
from dgis.deploy.model import SiteFile
from dgis.deploy.topology import Site
from tests.helpers.netlab import Lab
from tests.helpers.netnode import Node
from tests.helpers.netprobe import Greeting, read_greeting
from tests.helpers.sitecalls import USUAL, one_of
from tests.helpers.sitedoors import SSH_NAME
from tests.helpers.sitefacts import Document, Facts, Host
from tests.helpers.sitelab import World
from tests.helpers.siteoracle import CLOSED, Call, End, Oracle

# First quickly; what was not as expected is asked again, so that a busy machine is no mistake
QUICK, PATIENT = 0.3, 3.0
_AT_ONCE = 160
_EMPTY = {"nft": "table inet dgis\ndelete table inet dgis\n", "iptables": "*nat\nCOMMIT\n*filter\nCOMMIT\n"}
_LOADERS = {"nft": ["nft", "-f", "-"], "iptables": ["iptables-restore"]}


@dataclass(frozen=True, slots=True)
class Vantage:
    """A machine that probes; `source` is its address, for those with one."""

    node: Node
    kind: Literal["guest", "host", "beyond"]
    name: str
    source: IPv4Address | None = None


@dataclass(frozen=True, slots=True)
class Want:
    """Who must answer, at which port of his, and whom he must see where that is known; nobody by default."""

    node: str = ""
    port: int = 0
    peer: IPv4Address | None = None

    def met(self, got: Greeting | None) -> bool:
        """Whether that is what came."""
        if got is None or not self.node:
            return got is None and not self.node
        return (got.node, got.port) == (self.node, self.port) and self.peer in (None, IPv4Address(got.peer[0]))


@dataclass(frozen=True, slots=True)
class Probe:
    """One address from one machine: what is wanted of each port, and what came that was not."""

    vantage: Vantage
    address: IPv4Address
    protocol: str
    wanted: dict[int, Want]
    got: dict[int, Greeting] = field(default_factory=dict)

    def left(self, patience: float) -> Probe:
        """The same for those ports where something else came than was wanted."""
        udp = self.protocol == "udp"
        got = self.vantage.node.answers(str(self.address), self.wanted, udp=udp, timeout=patience)
        return replace(self, wanted={p: w for p, w in self.wanted.items() if not w.met(got.get(p))}, got=got)

    def words(self) -> Iterator[str]:
        """Each port that is wrong."""
        for port, want in self.wanted.items():
            yield f"{self.vantage.name} to {self.address} {self.protocol} {port}: {self.got.get(port)}, not {want}"


@dataclass
class Rig:
    """The lab, the site in it, and everybody who probes."""

    world: World
    site: Site
    oracle: Oracle
    vantages: list[Vantage] = field(default_factory=list)
    listening: dict[tuple[str, str], set[int]] = field(default_factory=dict)
    bridged: bool = False

    @classmethod
    def of(cls, lab: Lab, document: Document) -> Rig:
        """Put everything up; no rules are in force yet."""
        world = World(lab)
        site = world.add(topology.resolve(SiteFile.model_validate(dict(document))))
        rig = cls(world, site, Oracle.of(document))
        rig._people()
        rig._services()
        return rig

    @property
    def facts(self) -> Facts:
        return self.oracle.facts

    def node(self, name: str) -> Node:
        """A host or guest."""
        return self.world.node(self.site.name, name)

    # Who is there

    def _people(self) -> None:
        self._add(self.world.outside, "a stranger", IPv4Address("100.64.0.10"))
        for number, address in enumerate(self._addresses()):
            at = IPv4Interface(f"{address}/{self._prefix(address)}")
            node = self.world.place(f"c{number}", at, via=self._gateway(at.network))
            self._add(node, f"client {address}", address)
        self._neighbour()
        for host in self.facts.hosts.values():
            self.vantages.append(Vantage(self.node(host.name), "host", host.name))
        for guest in self.facts.guests.values():
            self.vantages.append(Vantage(self.node(guest.name), "guest", guest.name, guest.address))

    def _add(self, node: Node, name: str, address: IPv4Address) -> None:
        node.serve_echo(self._exit_ports("tcp"), udp=self._exit_ports("udp"))
        self.vantages.append(Vantage(node, "beyond", name, address))

    def _neighbour(self) -> None:
        """A machine beside a host's uplink that takes it for its router to all guests."""
        wire = next(gateway.uplink for gateway in self.facts.gateways)
        assert wire is not None
        network = wire.address.network
        address = network[77]
        node = self.world.place("near", IPv4Interface(f"{address}/{network.prefixlen}"), via=self._gateway(network))
        for guests in self.facts.guest_networks:
            node.route(str(guests), via=str(wire.ip))
        self._add(node, "a neighbour outside", address)

    def _addresses(self) -> list[IPv4Address]:
        """One address of each network that the file names, peers' own before others."""
        draw = Random(1)
        peers = [IPv4Address(peer["address"]) for peer in self.facts.document.get("peers", ())]
        nets = [net for door in self.oracle.doors.every for net in door.networks if net.prefixlen > 0]
        exits = [each.target for guest in self.facts.guests.values() for each in self.oracle.doors.exits(guest)]
        found = [*peers, *(one_of(net, draw) for net in (*nets, *(e for e in exits if e.prefixlen > 0)))]
        own = {each for host in self.facts.hosts.values() for each in (*host.own, host.public)}
        ends = {net[place] for net in (*self.world.segments, *map(_around, found)) for place in (0, 1, -1)}
        ends |= {wire.gateway for host in self.facts.hosts.values() for wire in host.wires if wire.gateway is not None}
        inside = self.facts.guest_networks
        kept = [each for each in found if each not in own | ends and not any(each in net for net in inside)]
        return list(dict.fromkeys(kept))[:7]

    def _prefix(self, address: IPv4Address) -> int:
        """That of the segment that an address is in, else of a new one beside the others and what is translated."""
        inside = [net.prefixlen for net in self.world.segments if address in net]
        lengths = (length for length in range(24, 31) if not self._overlaps(address, length))
        return inside[0] if inside else next(lengths)

    def _overlaps(self, address: IPv4Address, length: int) -> bool:
        made = IPv4Network(f"{address}/{length}", strict=False)
        publics = (gateway.public for gateway in self.facts.gateways)
        return any(made.overlaps(net) for net in self.world.segments) or any(each in made for each in publics)

    def _gateway(self, network: IPv4Network) -> IPv4Address:
        wires = [wire for host in self.facts.hosts.values() for wire in host.wires if wire.address.network == network]
        return next((wire.gateway for wire in wires if wire.gateway is not None), network[1])

    def _exit_ports(self, protocol: str) -> set[int]:
        exits = [each for guest in self.facts.guests.values() for each in self.oracle.doors.exits(guest)]
        found = {port for each in exits if each.protocol == protocol for port in each.ports}
        return {min(port, 65534) for port in found} | {7, 8050}

    def _services(self) -> None:
        doors = self.oracle.doors.every
        for guest in self.facts.guests.values():
            own = [door for door in doors if door.guest == guest.name]
            tcp = {port for door in own for port in (door.inside, door.leads(door.ports[1]))} | set(USUAL)
            gateway = self.facts.gateway_of(guest)
            if guest is self.facts.front_of(gateway):
                tcp.discard(gateway.front)
            udp = {port for door in own if door.protocol == "udp" for port in (door.inside, door.leads(door.ports[1]))}
            self._serve(guest.name, tcp, udp | {53, 7})
        for host in self.facts.hosts.values():
            public = {port for door in doors if door.host == host.name for port in door.ports}
            taken = {host.front} if self.facts.front_of(host) is None else set()
            self._serve(host.name, (public | {host.ssh, *USUAL}) - taken, set())
        for gateway in self.facts.gateways:
            self._front(gateway)

    def _serve(self, name: str, tcp: set[int], udp: set[int]) -> None:
        self.node(name).serve_echo(tcp, udp=udp)
        self.listening |= {(name, "tcp"): tcp, (name, "udp"): udp}

    def _front(self, gateway: Host) -> None:
        front = self.world.plan(self.site.name, gateway.name).front
        if front is None:
            return
        folder = self.world.lab.folder / f"front-{gateway.name}"
        folder.mkdir()
        for name, text in routes.files(front, socket=str(folder / "admin.sock")).items():
            (folder / name).write_text(text, encoding="utf-8")
        node = self.node(front.guest or gateway.name)
        child = node.popen(["haproxy", "-f", folder / routes.CONFIG], log=folder / "log")
        node.await_listening(gateway.front, child=child)

    # Rules

    def enforce(self, kind: str, *, bridged: bool) -> None:
        """Put every host's rules of one kind in force, none of the other; `bridged` shows bridged frames to them."""
        self.bridged = bridged
        for host in self.site.hosts:
            node, made = self.node(host.name), self.world.plan(self.site.name, host.name)
            for each in _EMPTY:
                node.run(_LOADERS[each], stdin=_EMPTY[each])
            text = {"nft": nat.ruleset, "iptables": iptables.ruleset}[kind](made)
            node.run(_LOADERS[kind], stdin=text)
            settings = hostfiles.sysctl(host) | {"net.bridge.bridge-nf-call-iptables": "1" if bridged else "0"}
            for name, value in settings.items():
                node.sysctl(name, value)

    # Probing

    def mistakes(self, *, only: str = "") -> list[str]:
        """Everything that is not as the oracle says, in words; `only` some kind of vantage points."""
        probes = [probe for vantage in self.vantages if only in ("", vantage.kind) for probe in self._probes(vantage)]
        names = [vantage for vantage in self.vantages if only in ("", vantage.kind)]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            left = [probe for probe in pool.map(lambda probe: probe.left(QUICK), probes) if probe.wanted]
            left = [probe for probe in pool.map(lambda probe: probe.left(PATIENT), left) if probe.wanted]
            told = [text for texts in pool.map(self._names, names) for text in texts]
        return [text for probe in left for text in probe.words()] + told

    def _probes(self, vantage: Vantage) -> Iterator[Probe]:
        for address in self._targets(vantage):
            for protocol in ("tcp", "udp"):
                calls = [Call(address, protocol, port) for port in self._ports(protocol)]
                wanted = {call.port: self._wanted(vantage, call) for call in calls}
                kept = {port: want for port, want in wanted.items() if want is not None}
                if kept:
                    yield Probe(vantage, address, protocol, kept)

    def _targets(self, vantage: Vantage) -> list[IPv4Address]:
        found = [each for host in self.facts.hosts.values() for each in (*host.own, host.public) if each is not None]
        found += [guest.address for guest in self.facts.guests.values()]
        if vantage.kind == "guest":
            found += [each.source for each in self.vantages if each.kind == "beyond" and each.source is not None]
        return list(dict.fromkeys(each for each in found if each != vantage.source))

    def _ports(self, protocol: str) -> list[int]:
        doors = [door for door in self.oracle.doors.every if door.protocol == protocol and not door.name]
        found = {port + by for door in doors for port in door.ports for by in (-1, 0, 1)}
        found |= {port for door in self.oracle.doors.every for port in (door.inside, door.leads(door.ports[1]))}
        found |= {*self._exit_ports(protocol), *(USUAL if protocol == "tcp" else (53, 7))}
        return sorted(port for port in found if 0 < port < 65536 and port not in self._fronts())

    def _fronts(self) -> set[int]:
        return {gateway.front for gateway in self.facts.gateways}

    def _wanted(self, vantage: Vantage, call: Call) -> Want | None:
        """What must come of a connection, None where nothing can be said."""
        end = self._end(vantage, call)
        if end is None or end.kind == "host" and call.protocol == "udp":
            return None
        if end.kind == "away":
            there = [each for each in self.vantages if each.kind == "beyond" and each.source == call.target]
            serves = there and call.port in self._exit_ports(call.protocol)
            return Want(there[0].node.name, call.port) if serves else None
        if end.kind == "closed":
            return Want()
        if not end.name or not self._listens(end, call.protocol):
            return None
        if self.bridged and end.name == vantage.name and call.target != vantage.source:
            return None  # the kernel sends no bridged frame back to where it came from
        return Want(self.node(end.name).name, end.port, vantage.source if vantage.kind == "beyond" else None)

    def _end(self, vantage: Vantage, call: Call) -> End | None:
        if vantage.kind == "guest":
            return self.oracle.from_guest(self.facts.guests[vantage.name], call)
        if vantage.kind == "host":
            return self.oracle.from_host(self.facts.hosts[vantage.name], call)
        assert vantage.source is not None
        owner = next((h for h in self.facts.hosts.values() if call.target in (*h.own, h.public)), None)
        if owner is None:
            return CLOSED  # a guest's own address
        entered = owner.lan if owner.lan is not None and call.target == owner.lan.ip else owner.uplink
        if entered is None or entered is owner.uplink and call.target not in (entered.ip, owner.public):
            return CLOSED  # nobody outside has a way to the inner wire or to a bridge
        if entered is owner.uplink and call.target != entered.ip and vantage.source in entered.address.network:
            return None  # answered past the firewall that translated
        if owner.way(vantage.source) != entered.interface:
            return CLOSED  # comes from another side than its network lies
        # The firewall outside translates every port of the public address
        target = entered.ip if call.target == owner.public else call.target
        return self.oracle.from_beyond(owner, vantage.source, replace(call, target=target))

    def _listens(self, end: End, protocol: str) -> bool:
        return end.port in self.listening.get((end.name, protocol), ())

    # Names on the shared port

    def _names(self, vantage: Vantage) -> list[str]:
        """What is wrong with the names that somebody is led to at each front."""
        told: list[str] = []
        for gateway in self.facts.gateways if vantage.kind != "host" else ():
            doors = self.oracle.doors.routes(gateway)
            addresses = {address for door in doors for address in door.addresses}
            for target in sorted(addresses if vantage.kind == "beyond" else addresses & {gateway.public}):
                told += self._named_at(vantage, gateway, target)
        return told

    def _named_at(self, vantage: Vantage, gateway: Host, target: IPv4Address) -> Iterator[str]:
        end, source = self._end(vantage, Call(target, "tcp", gateway.front)), vantage.source
        if end is None or source is None:
            return
        guest = self.facts.guests.get(vantage.name) if vantage.kind == "guest" else None
        if self.bridged and guest is not None and guest is self.facts.front_of(gateway):
            return  # the kernel sends no bridged frame back to where it came from
        if guest is not None and self.facts.gateway_of(guest) is not gateway:
            source = self.oracle.seen_as(self.facts.gateway_of(guest), target)
        doors = self.oracle.doors.routes(gateway)
        for name in sorted({door.name for door in doors})[: 1 if end is CLOSED else None]:
            alike = [door for door in doors if door.name == name]
            due = end is not CLOSED and any(source in net for door in alike for net in self.oracle.doors.clients(door))
            if guest is not None and not due and end is not CLOSED and self.facts.front_of(gateway) is not None:
                continue  # guests have the names in common that one of them has
            want = (self.node(alike[0].guest).name, alike[0].inside) if due else None
            got = led(vantage.node, str(target), gateway.front, name, QUICK)
            if got != want:
                got = led(vantage.node, str(target), gateway.front, name, PATIENT)
            if got != want:
                yield f"{vantage.name} asks {target} for {name}: {got}, not {want}"


def require_front() -> None:
    """Skip a test where no HAProxy reads a configuration."""
    if shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
        pytest.skip("not installed (Debian package): haproxy")


def led(node: Node, address: str, port: int, name: str, patience: float) -> tuple[str, int] | None:
    """Who answers behind a front, at which port: it leads by the first bytes alone, no TLS is needed behind it."""

    def ask() -> tuple[str, int] | None:
        try:
            with socket.create_connection((address, port), patience) as link:
                link.settimeout(patience)
                link.sendall(b"SSH-2.0-probe\r\n" if name == SSH_NAME else hello(name))
                said = read_greeting(link)
                return said.node, said.port
        except OSError:
            return None

    return node.inside(ask)


def hello(name: str) -> bytes:
    """The first message of TLS to a server of that name."""
    context = ssl.create_default_context()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    shaking = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with suppress(ssl.SSLWantReadError):
        shaking.do_handshake()
    return outgoing.read()


def _around(address: IPv4Address) -> IPv4Network:
    return IPv4Network(f"{address}/24", strict=False)
