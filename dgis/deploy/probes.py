"""What to try from where, and what must come of it. Pure: tries out, verdicts in.

From a vantage point every door is tried that it may use, and a few that it may not; next to each door the ports that
nobody declared. What a vantage point may do follows from its address and the host's plan (`decide`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Literal

from dgis.deploy.decide import Connection, destination, judge
from dgis.deploy.flows import Door, Flows
from dgis.deploy.plan import HostPlan
from dgis.deploy.topology import Guest
from dgis.deploy.values import PortRange

Kind = Literal["tcp", "tls", "ssh"]
Expected = Literal["open", "closed"]
# Ports that are open somewhere by mistake more often than others
_USUAL = (
    21,
    22,
    23,
    25,
    53,
    80,
    104,
    111,
    139,
    443,
    445,
    2049,
    2375,
    3306,
    3389,
    5432,
    5900,
    8000,
    8042,
    8080,
    9443,
    16509,
)
# Where a guest looks first once it has been broken into
_INSIDE = (22, 80, 443, 2222, 9443, 11112)


@dataclass(frozen=True, slots=True)
class Try:
    """One connection to try: `name` is the TLS server name where the kind is tls.

    Where it may be `idle` somebody has to answer, but nothing has to listen just now.
    """

    kind: Kind
    address: IPv4Address
    port: int
    name: str
    expected: Expected
    what: str
    idle: bool = False


def of_doors(plan: HostPlan, flows: Flows, vantage: IPv4Address, *, inside: bool) -> tuple[Try, ...]:
    """Every door of a host as seen from an address; `inside` uses the host's own address, others the public one."""
    tries = [one for door in flows.doors if door.host == plan.host.name for one in _door(plan, door, vantage, inside)]
    return tuple(dict.fromkeys([*tries, *_undeclared(plan, flows, vantage, inside)]))


def of_guest(plan: HostPlan, flows: Flows, guest: Guest, others: Iterable[Guest]) -> tuple[Try, ...]:
    """What a guest may connect to, and what it may not: its host, guests beside it, other ports of its peers.

    Other protocols than TCP cannot be tried so.
    """
    exits = tuple(
        Try("tcp", way.target.network_address, port, "", "open", f"{way.purpose} ({way.whose})", idle=True)
        for way in flows.exits
        if way.guest == guest.name and way.protocol == "tcp" and way.target.prefixlen == 32
        for port in dict.fromkeys((way.ports.first, way.ports.last))
    )
    open_ones = {(one.address, one.port) for one in exits}
    gateways = [network.gateway for network in plan.host.networks if guest.address in network.cidr]
    targets = [*gateways, *(other.address for other in others if other is not guest), *(one.address for one in exits)]
    closed = (
        Try("tcp", address, port, "", "closed", "nobody declared it")
        for address in dict.fromkeys(targets)
        for port in _INSIDE
        if (address, port) not in open_ones
        and judge(plan, Connection(guest.address, address, "tcp", port)) == "refused"
    )
    return (*dict.fromkeys(exits), *closed)


def _door(plan: HostPlan, door: Door, vantage: IPv4Address, inside: bool) -> Iterator[Try]:
    if door.protocol != "tcp":
        return
    address = door.address if inside else door.public
    for port in dict.fromkeys((door.ports.first, door.ports.last)):
        first = Connection(vantage, address, door.protocol, port)
        # The doors of a guest that does not run are shut: no translation, no route
        leads = destination(plan, first) != (address, port) if door.route == "dnat" else _routed(plan, door, vantage)
        allowed = leads and judge(plan, first) == "allowed"
        kind: Kind = {"dnat": "tcp", "name": "tls", "ssh": "ssh"}[door.route]  # type: ignore[assignment]
        name = door.name if door.route == "name" else ""
        idle = door.ports.count > 1  # a data port has a listener during a transfer only
        yield Try(kind, address, port, name, "open" if allowed else "closed", door.purpose, idle)


def _routed(plan: HostPlan, door: Door, vantage: IPv4Address) -> bool:
    """Whether the front leads this client to this name."""
    routes = plan.front.routes if plan.front is not None else ()
    return any(route.name == door.name and any(vantage in net for net in route.sources) for route in routes)


def _undeclared(plan: HostPlan, flows: Flows, vantage: IPv4Address, inside: bool) -> Iterator[Try]:
    doors = [door for door in flows.doors if door.host == plan.host.name]
    addresses = dict.fromkeys(door.address if inside else door.public for door in doors)
    ranges = [door.ports for door in doors]
    near = [port for ports in ranges for port in (ports.first - 1, ports.last + 1)]
    for address in addresses:
        for port in sorted({*_USUAL, *near} & set(range(1, 65536))):
            if not _declared(ranges, port) and judge(plan, Connection(vantage, address, "tcp", port)) != "allowed":
                yield Try("tcp", address, port, "", "closed", "nobody declared it")


def _declared(ranges: list[PortRange], port: int) -> bool:
    return any(port in ports for ports in ranges)
